"""A plain twin of steps and caches: lists and dicts, slow, written from the rules and not from hwsim's code.

It knows what a step is (`steps_of`), caches of experts that serve whole events in bytes (`EventCache`), caches of rows
and columns that hold a number of units (`UnitCache`), and how a policy decides the members of a step (`replay`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

Unit = Hashable


class Step(NamedTuple):
    """Tokens that go through the model together: (sequence, row) each; a prompt's chunk emits 0 tokens."""

    members: list[tuple[int, int]]
    emitted: int
    fresh: bool  # whether the caches are empty before it


def steps_of(
    sequences: list[tuple[int, int]], *, prompts: bool = False, chunk: int | None = None, lockstep: int = 1,
    drafts: int = 0, right: Callable[[int, list[int]], list[bool]] | None = None, keep: bool = False,
) -> list[Step]:  # fmt: skip
    """The steps of sequences of (tokens, prompt); `right` says which drafts of a step are right."""
    first, at = [], 0
    for tokens, _ in sequences:
        first.append(at)
        at += tokens
    steps: list[Step] = []

    def add(members: list[tuple[int, int]], emitted: int) -> None:
        steps.append(Step(members, emitted, fresh[0]))
        fresh[0] = False

    fresh = [True]
    for begin in range(0, len(sequences), lockstep):
        together = range(begin, min(begin + lockstep, len(sequences)))
        if not keep or not steps:
            fresh[0] = True
        for number in together if prompts else ():
            prompt = list(range(first[number], first[number] + sequences[number][1]))
            size = chunk or len(prompt)
            while prompt:
                part, prompt = prompt[:size], prompt[size:]
                add([(number, row) for row in part], 0)
        rows = {n: list(range(first[n] + sequences[n][1], first[n] + sequences[n][0])) for n in together}
        if drafts:
            assert lockstep == 1
            left = rows[begin]
            while left:
                own, *drafted = left[: 1 + drafts]
                assert right is not None
                accepted = 0
                for good in right(drafts, drafted)[: len(drafted)]:
                    if not good:
                        break
                    accepted += 1
                add([(begin, row) for row in [own, *drafted]], 1 + accepted)
                left = left[1 + accepted :]
            continue
        for token in range(max(map(len, rows.values()))):
            members = [(n, rows[n][token]) for n in together if token < len(rows[n])]
            add(members, len(members))
    return steps


class EventCache:
    """A cache of experts of one or several layers; a unit is (layer, expert)."""

    def __init__(self, size: int, rule: str, bytes_of: Callable[[Unit], int]) -> None:
        self.size, self.rule, self.bytes_of, self.bypass = size, rule, bytes_of, rule == "belady-bypass"
        self.begin([])

    def begin(self, future: list[list[Unit]]) -> None:
        self.held: set[Unit] = set()
        self.count: dict[Unit, int] = {}
        self.in_cache: dict[Unit, int] = {}  # uses since it entered
        self.event_of: dict[Unit, int] = {}  # event of the last use
        self.entered: dict[Unit, int] = {}  # event at which it entered
        self.recency: dict[Unit, int] = {}
        self.clock = self.event = 0
        self.future = future

    def serve(self, units: list[Unit]) -> set[Unit]:
        """Serve an event, units in the order of their use, each once; return the hits."""
        if self.size == 0:
            return set()
        hits = {unit for unit in units if unit in self.held}
        for unit in units:
            self.clock += 1
            self.recency[unit], self.event_of[unit] = self.clock, self.event
            self.count[unit] = self.count.get(unit, 0) + 1
            if unit in hits:
                self.in_cache[unit] += 1
            else:
                self.entered[unit], self.in_cache[unit] = self.event, 1
        self.held |= set(units)
        while sum(map(self.bytes_of, self.held)) > self.size:
            may_leave = self.held if self.bypass else self.held - set(units)
            if not may_leave:
                break
            new = set(units) - hits
            self.held.remove(min(may_leave, key=lambda unit: (self.rank(unit), unit not in new, self.recency[unit])))
        self.event += 1
        return hits

    def rank(self, unit: Unit) -> float:
        if self.rule == "lru":
            return self.event_of[unit]
        if self.rule == "lfu":
            return self.count[unit]
        if self.rule == "fifo":
            return self.entered[unit]
        if self.rule == "lfru":
            return self.in_cache[unit] / (self.event - self.event_of[unit] + 1)
        later = (number for number in range(self.event + 1, len(self.future)) if unit in self.future[number])
        return -next(later, math.inf)


class UnitCache:
    """A cache of rows or columns of one group, which holds a number of units."""

    def __init__(self, capacity: int, rule: str) -> None:
        self.capacity, self.rule = capacity, rule
        self.begin([])

    def begin(self, future: list[set[int]]) -> None:
        self.held: set[int] = set()
        self.rank_of: dict[int, float] = {}
        self.event, self.future = 0, future

    def serve(self, mask: set[int]) -> set[int]:
        if not self.capacity:
            return set()
        hits = mask & self.held
        entering = set(sorted(mask - hits)[: max(0, self.capacity - len(hits))])
        for unit in mask:
            if self.rule == "lru":
                self.rank_of[unit] = self.event
            elif self.rule == "lfu":
                self.rank_of[unit] = self.rank_of.get(unit, 0) + 1
            elif self.rule == "fifo" and unit in entering:
                self.rank_of[unit] = self.event
            elif self.rule == "belady":
                later = (n for n in range(self.event + 1, len(self.future)) if unit in self.future[n])
                self.rank_of[unit] = -next(later, math.inf)
        others = sorted(self.held - mask, key=lambda unit: (self.rank_of[unit], -unit), reverse=True)
        room = max(0, self.capacity - len(hits | entering))
        if len(mask) > self.capacity:
            room = 0
        self.held = hits | entering | set(others[:room])
        self.event += 1
        return hits


class Served(NamedTuple):
    """What a step asked of one cache at one place, and got."""

    units: list[Any]  # each once, the last used last
    hits: set[Any]
    used: int  # units summed over the members


Choose = Callable[[Any, int, set[Any], dict[str, Any]], list[Any]]
"""(place, row, cached units of the place, state of the sequence at the place) -> units in the order of their use."""


def replay(
    steps: list[Step], rounds: list[tuple[Any, list[Any]]], choose: Choose, whole: Callable[[Any, int], list[Any]],
    cached: Callable[[Any, Any], set[Any]], *, foresight: bool = False,
) -> dict[tuple[int, Any], Served]:  # fmt: skip
    """Serve all steps from caches, each with the places that it serves; by (number of the step, place)."""
    served: dict[tuple[int, Any], Served] = {}
    for cache, places in rounds:
        states: dict[tuple[Any, int], dict[str, Any]] = {}

        def demand(step: Step, place: Any, cache: Any = cache, states: Any = states) -> tuple[list[Any], int]:
            asked, kept = [], None
            for number, (sequence, row) in enumerate(step.members, 1):
                state = states.setdefault((place, sequence), {})
                asked += whole(place, row) if step.emitted == 0 else choose(place, row, cached(cache, place), state)
                if number == step.emitted:
                    kept = copy.deepcopy(state)
            if step.emitted and len({sequence for sequence, _ in step.members}) == 1:
                states[place, step.members[0][0]] = kept
            order: list[Any] = []
            for unit in asked:  # the last use counts
                if unit in order:
                    order.remove(unit)
                order.append(unit)
            return order, len(asked)

        begins = [number for number, step in enumerate(steps) if step.fresh]
        for begin, end in zip(begins, [*begins[1:], len(steps)], strict=True):
            states.clear()
            numbers = range(begin, end)
            future = [demand(steps[n], place)[0] for n in numbers for place in places] if foresight else []
            states.clear()
            cache.begin([set(units) for units in future])
            for number in numbers:
                for place in places:
                    order, used = demand(steps[number], place)
                    served[number, place] = Served(order, cache.serve(order), used)
    return served

"""What a step needs of one group of one layer: the masks of its members, united."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from hwsim.cache.experts import in_order
from hwsim.masking.decider import Block, Decider
from hwsim.masking.streams import Masking, SignalSource, signal_blocks
from hwsim.memory.groups import GroupPlan, Place
from hwsim.trace.sequences import Sequences
from hwsim.trace.steps import Steps


class Demand(NamedTuple):
    """The needs of one step.

    Attributes:
        units: int64, experts in the order of their use, each once; of other groups the mask, bool ``[units]``.
        used: units, summed over the members.
        last_used: members that need the last unit of the group.
    """

    units: np.ndarray
    used: int
    last_used: int


class Needs(NamedTuple):
    """The needs of consecutive steps of experts.

    Attributes:
        units: int64, the units of all steps, each step's in the order of their use, each once.
        counts: int64 ``[steps]``: units of each step.
        used: int64 ``[steps]``: units, summed over the members of each step.
    """

    units: np.ndarray
    counts: np.ndarray
    used: np.ndarray


class Chooser:
    """Decides the masks of one place for the members of each step; each sequence has its own state.

    Args:
        source: gives the signals.
        sequences: windows of the trace.
        steps: the steps.
        masking: the policy.
        place: place of the group.
        cached: bool ``[units]``: the cached units, read-only; None: the policy may not read them, because the eviction
            must know the future.
        values: values of a signal that may be held at once.
    """

    def __init__(
        self, source: SignalSource, sequences: Sequences, steps: Steps, masking: Masking, place: Place,
        cached: np.ndarray | None, values: int,
    ) -> None:  # fmt: skip
        self._source, self._steps, self._masking, self._place = source, steps, masking, place
        self._cached, self._values = cached, values
        self._prompts = steps.prompts
        self._drafted = bool((steps.emitted < steps.sizes)[~self._prompts].any())
        self._ends = {part.number: part.rows.stop for part in sequences.decoded()}
        self._deciders: dict[int, Decider] = {}
        self._blocks: dict[int, _Rows] = {}
        self._one_by_one = False  # whether a token was decided by itself since the beginning

    def begin(self) -> None:
        """Forget the state of all sequences: the caches begin anew."""
        self._deciders, self._blocks = {}, {}
        self._one_by_one = False

    def demand(self, step: int) -> Demand:
        """What a step needs.

        Raises:
            ContractError: the policy broke its contract.
        """
        members = self._steps.members(step)
        rows = self._steps.rows[members]
        if self._prompts[step]:
            return self._whole(rows)
        numbers = self._steps.sequences[members]
        if len(self._blocks) > len(rows):  # of sequences that have ended
            self._blocks = {number: self._blocks[number] for number in numbers.tolist() if number in self._blocks}
        if len(rows) == 1:
            return self._united([self._choice(int(numbers[0]), int(rows[0]))])
        if numbers[0] != numbers[-1]:
            return self._united([self._choice(*member) for member in zip(numbers.tolist(), rows.tolist(), strict=True)])
        return self._verified(step, int(numbers[0]), rows)

    @property
    def knows_beforehand(self) -> bool:
        """Whether the policy may decide the masks of many tokens at once, because they do not depend on the cache."""
        plan = self._place.plan
        return plan.routed and not self._drafted and self._masking.decider(self._place).masks_blocks

    def needs(self, steps: range) -> Needs | None:
        """What consecutive steps need; None: the policy decides token by token after all, so `begin` must be called.

        Raises:
            ContractError: the policy broke its contract.
        """
        parts, counts, used = [], [], []
        step = steps.start
        while step < steps.stop:
            stop = min(int(self._steps.runs[step]), steps.stop)
            member = self._steps.members(step)
            number, row = int(self._steps.sequences[member.start]), int(self._steps.rows[member.start])
            if self._prompts[step] or member.stop - member.start > 1:
                demand = self.demand(step)
                if self._one_by_one:
                    return None
                parts.append(demand.units)
                counts.append(np.array([len(demand.units)]))
                used.append(np.array([demand.used]))
                stop = step + 1
            else:
                self._blocks = {number: self._blocks[number]} if number in self._blocks else {}
                decided = self._block(number, row).decided
                if decided is None:
                    return None
                at = row - self._blocks[number].first
                stop = min(stop, step + len(decided) - at)
                units, numbers = decided.some(at, at + stop - step)
                parts.append(units)
                counts.append(numbers)
                used.append(numbers)
            step = stop
        return Needs(np.concatenate(parts), np.concatenate(counts), np.concatenate(used))

    def _verified(self, step: int, number: int, rows: np.ndarray) -> Demand:
        """What a step with drafted tokens needs; the state goes on after the last accepted one."""
        choices, saved = [], None
        decider = self._decider(number)
        for place, row in enumerate(rows.tolist(), 1):
            choices.append(self._choice(number, row))
            if place == self._steps.emitted[step]:
                saved = decider.save()
        assert saved is not None
        decider.restore(saved)
        return self._united(choices)

    def _whole(self, rows: np.ndarray) -> Demand:
        """What a chunk of a prompt needs: the model's own experts, or all units."""
        plan = self._place.plan
        read = self._source.read
        sparse = plan.routed or plan.choice is not None
        chosen = read(plan.layer, "experts", int(rows[0]), int(rows[-1]) + 1) if sparse else None
        return prompt_demand(plan, len(rows), chosen)

    def _united(self, choices: list[np.ndarray]) -> Demand:
        if self._place.plan.routed:
            if len(choices) == 1:
                return Demand(choices[0], len(choices[0]), 0)
            joined = np.concatenate(choices)
            return Demand(last_uses(joined), len(joined), 0)
        if len(choices) == 1:
            mask = choices[0]
            return Demand(mask, int(np.count_nonzero(mask)), int(mask[-1]))
        masks = np.array(choices)
        return Demand(np.asarray(masks.any(axis=0)), int(np.count_nonzero(masks)), int(np.count_nonzero(masks[:, -1])))

    def _decider(self, number: int) -> Decider:
        if number not in self._deciders:
            decider = self._masking.decider(self._place)
            decider.begin(number, self._cached)
            self._deciders[number] = decider
        return self._deciders[number]

    def _block(self, number: int, row: int) -> _Rows:
        """The rows of a sequence that are held now, with `row` among them."""
        block = self._blocks.get(number)
        if block is None or not block.first <= row < block.stop:
            block = self._blocks[number] = self._read(self._decider(number), row, self._ends[number])
        return block

    def _choice(self, number: int, row: int) -> np.ndarray:
        """One token's units: int64 by use for experts, else bool ``[units]``; the caller must not change them."""
        block = self._block(number, row)
        at = row - block.first
        if block.decided is not None:
            return block.decided[at]
        self._one_by_one = True
        mask = self._decider(number).decide(block.signals[at])
        return in_order(mask, block.experts[at]) if self._place.plan.routed else mask.copy()

    def _read(self, decider: Decider, row: int, end: int) -> _Rows:
        block = next(signal_blocks(self._source, self._place.plan, range(row, end), self._values))
        decided = None
        if self._place.plan.routed and decider.masks_blocks and not self._drafted:
            decided = _decided(decider, block)
        if decided is not None:
            return _Rows(row, row + block.tokens, [], [], decided)
        return _Rows(row, row + block.tokens, list(block.rows()), list(block.choices()), None)


class _Decided:
    """The experts of consecutive tokens.

    Args:
        units: int64, those of all tokens, each token's in the order of their use.
        counts: int64 ``[tokens]``: experts of each token.
    """

    def __init__(self, units: np.ndarray, counts: np.ndarray) -> None:
        self._units, self._counts = units, counts
        self._offsets = [0, *np.cumsum(counts).tolist()]

    def __len__(self) -> int:
        return len(self._counts)

    def __getitem__(self, token: int) -> np.ndarray:
        """The experts of one token."""
        return self._units[self._offsets[token] : self._offsets[token + 1]]

    def some(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """The experts of some tokens, and their number for each of them."""
        return self._units[self._offsets[start] : self._offsets[stop]], self._counts[start:stop]


def _decided(decider: Decider, block: Block) -> _Decided | None:
    """The experts of each token of a block; None: they are asked one by one."""
    masks, experts = decider.masks(block), block.experts
    if masks is None or experts is None:
        return None
    counts = np.count_nonzero(masks, axis=1)
    listed = np.take_along_axis(masks, np.maximum(experts, 0), axis=1) & (experts >= 0)
    if np.array_equal(np.count_nonzero(listed, axis=1), counts):  # in_order of all tokens, without others
        return _Decided(experts[listed], counts)
    rows = [in_order(mask, row[row >= 0]) for mask, row in zip(masks, experts, strict=True)]
    return _Decided(np.concatenate(rows), counts)


class _Rows(NamedTuple):
    """Some rows of a sequence: the signals of each, the model's experts, and what was decided at once, if it was."""

    first: int
    stop: int
    signals: list[dict[str, np.ndarray]]
    experts: list[Any]
    decided: _Decided | None


def prompt_demand(plan: GroupPlan, tokens: int, experts: np.ndarray | None) -> Demand:
    """What a chunk of a prompt needs: the model's own experts, or all units.

    Args:
        plan: the group.
        tokens: of the chunk.
        experts: int64 ``[tokens, used]``: the model's own choice by falling rank, -1 where there are fewer; only for
            experts and groups within them.
    """
    if experts is None:
        return Demand(np.ones(plan.units, bool), tokens * plan.units, tokens)
    chosen = experts.ravel()
    chosen = chosen[chosen >= 0]
    if plan.choice is not None:
        mask = np.zeros((plan.choice.units, plan.width), bool)
        mask[chosen] = True
        return Demand(mask.ravel(), len(chosen) * plan.width, 0)
    return Demand(last_uses(chosen), len(chosen), 0)


def last_uses(units: np.ndarray) -> np.ndarray:
    """Each unit once, in the order of its last use: int64."""
    return np.array(list(dict.fromkeys(units[::-1].tolist())), np.int64)[::-1]

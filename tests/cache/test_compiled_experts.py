"""The compiled loop for caches of experts: bit-identical to the cache, event by event."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwsim.cache.compiled_events import CompiledEvents, can_serve
from hwsim.cache.experts import ExpertCache, _ByUpdate, _ByUse
from hwsim.evictions.lru import Lru
from hwsim.simulation.plugins import EVICTIONS

pytest.importorskip("numba", reason="the compiled loop needs the extra `fast`")

RULES = ("lru", "lfu", "fifo", "belady")


class Case:
    """Events of some parts, and the size of their cache."""

    def __init__(self, parts: list[list[int]], events: list[tuple[int, list[int]]], size: int, cuts: list[int]) -> None:
        self.parts = [np.array(sizes, np.int64) for sizes in parts]
        self.events = [(part, np.array(units, np.int64)) for part, units in events]
        self.size, self.cuts = size, cuts

    def cache(self, rule: str) -> ExpertCache:
        return ExpertCache(self.parts, self.size, EVICTIONS.make(rule)[1])

    def plain(self, rule: str) -> tuple[list[int], ExpertCache]:
        cache = self.cache(rule)
        cache.start(self.events if rule == "belady" else None)
        return [cache.serve(cache.parts[part], units) for part, units in self.events], cache

    def compiled(self, rule: str) -> tuple[list[int], ExpertCache]:
        cache = self.cache(rule)
        loop, hits = CompiledEvents(cache), []
        loop.start()
        cuts = [] if rule == "belady" else self.cuts
        for start, stop in zip([0, *cuts], [*cuts, len(self.events)], strict=True):
            events = self.events[start:stop]
            units = [units + cache.parts[part].first for part, units in events]
            offsets = np.cumsum([0, *map(len, units)]).astype(np.int64)
            hits += loop.serve(np.concatenate([np.empty(0, int), *units]).astype(np.int32), offsets).tolist()
        return hits, cache


@st.composite
def cases(draw: Any) -> Case:
    sizes = st.integers(1, 4)
    parts = draw(st.lists(st.lists(sizes, min_size=1, max_size=7), min_size=1, max_size=3))
    events = []
    for part in draw(st.lists(st.integers(0, len(parts) - 1), max_size=40)):
        units = draw(st.lists(st.integers(0, len(parts[part]) - 1), unique=True, max_size=5))
        events.append((part, units))
    size = draw(st.integers(1, 1 + sum(map(sum, parts))))
    return Case(parts, events, size, sorted(draw(st.lists(st.integers(0, len(events)), max_size=3))))


@given(cases(), st.sampled_from(RULES))
def test_the_loop_is_its_plain_twin(case: Case, rule: str) -> None:
    (hits, plain), (ours, cache) = case.plain(rule), case.compiled(rule)
    assert ours == hits
    assert np.array_equal(cache.cached, plain.cached)
    assert cache.used == plain.used == int(cache.bytes[cache.cached].sum())


@given(cases(), st.lists(st.booleans(), min_size=21, max_size=21), st.booleans())
def test_the_order_of_uses_is_the_heap_of_ranks(case: Case, chosen: list[bool], pinned: bool) -> None:
    some = np.array(chosen[: sum(map(len, case.parts))])
    case.size = max(case.size, int(np.concatenate(case.parts)[some].sum()))
    outcomes = []
    for rule in (_ByUse, _ByUpdate):
        first = (some, None) if pinned else (None, some)
        cache = ExpertCache(case.parts, case.size, Lru(), pinned=first[0], warm=first[1])
        cache._rule = rule(cache)
        cache.start()
        hits = [cache.serve(cache.parts[part], units) for part, units in case.events]
        outcomes.append((hits, cache.cached.tolist(), cache.used))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("share", [0.01, 0.3, 0.9])
def test_the_loop_at_the_size_of_a_model(rule: str, share: float, rng: np.random.Generator) -> None:
    parts = [[int(size)] * 64 for size in rng.integers(5, 9, 12)]
    popularity = 1 / np.arange(1, 65) / (1 / np.arange(1, 65)).sum()
    events = [(at % 12, rng.choice(64, 6, replace=False, p=popularity).tolist()) for at in range(2400)]
    case = Case(parts, events, int(share * sum(map(sum, parts))), [7, 1000])
    (hits, plain), (ours, cache) = case.plain(rule), case.compiled(rule)
    assert ours == hits
    assert np.array_equal(cache.cached, plain.cached)


def test_what_the_loop_does_not_serve() -> None:
    sizes = [np.ones(4, np.int64)]
    some = np.array([True, False, False, False])
    lfu = EVICTIONS.make("lfu")[1]
    assert can_serve(ExpertCache(sizes, 2, lfu))
    assert not can_serve(ExpertCache(sizes, 2, lfu, admission="bypass"))
    assert not can_serve(ExpertCache(sizes, 2, lfu, pinned=some))
    assert not can_serve(ExpertCache(sizes, 2, lfu, warm=some))
    assert not can_serve(ExpertCache(sizes, 2, EVICTIONS.make("random")[1]))
    assert not can_serve(ExpertCache(sizes, 0, lfu))

"""The cache itself; tests/evictions/ holds every rule against its plain twin."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwsim.cache.cache import Cache
from hwsim.errors import ContractError
from hwsim.evictions import Eviction
from hwsim.simulation.plugins import EVICTIONS
from hwsim.util import kernels


def run(rule, masks, units, capacity):
    cache = Cache(units, capacity, EVICTIONS.make(rule)[1])
    cache.start()
    return [cache.step(np.isin(np.arange(units), sorted(mask)))[1] for mask in masks]


MASKS = st.integers(1, 12).flatmap(
    lambda units: st.tuples(
        st.just(units), st.integers(0, units + 2), st.lists(st.sets(st.integers(0, units - 1)), min_size=1, max_size=25)
    )
)


def test_none_keeps_nothing():
    assert run("none", [{0, 1}, {0, 1}, {1}], 3, 3) == [0, 0, 0]


def test_lru_hits_nothing_when_one_unit_masks_cycle_over_more_than_the_capacity():
    masks = [{token % 6} for token in range(60)]
    assert sum(run("lru", masks, 6, 5)) == 0
    assert sum(run("lru", masks, 6, 6)) == 54


def test_a_mask_larger_than_the_capacity_keeps_hits_then_the_lowest_misses():
    cache = Cache(10, 4, EVICTIONS.make("lfu")[1])
    cache.start()
    first, second = np.zeros(10, bool), np.zeros(10, bool)
    first[[7, 8]] = True
    second[[1, 2, 3, 5, 8, 9]] = True
    cache.step(first)
    assert cache.step(second) == (6, 1)
    assert np.flatnonzero(cache.view).tolist() == [1, 2, 3, 8]


def test_a_sequence_starts_empty(rng):
    cache = Cache(8, 8, EVICTIONS.make("lru")[1])
    mask = rng.random(8) < 0.5
    for _ in range(2):
        cache.start()
        assert cache.step(mask) == (mask.sum(), 0)
        assert cache.step(mask) == (mask.sum(), mask.sum())


def test_the_view_cannot_be_written():
    with pytest.raises(ValueError, match="read-only"):
        Cache(4, 2, EVICTIONS.make("lru")[1]).view[0] = True


class Raises(Eviction):
    """Raises."""

    def rank(self, state):
        return {}[1]


class Keeps(Eviction):
    """Keeps everybody."""

    def stay(self, state, candidates, count):
        return candidates


@pytest.mark.parametrize(
    ("rule", "text"), [(Raises, "Raises: raised KeyError"), (Keeps, r"Keeps: stay\(\) must return a mask of exactly")]
)
def test_a_rule_that_breaks_the_contract_is_named(rule, text):
    cache = Cache(6, 2, rule())
    cache.start()
    with pytest.raises(ContractError, match=text):
        for unit in range(4):
            cache.step(np.arange(6) == unit)


class First(Eviction):
    """Keeps the first, and writes down what it is told."""

    def start(self, units, capacity, future):
        return []

    def use(self, state, use):
        state.append(use.token)

    def stay(self, state, candidates, count):
        assert 0 <= count < candidates.sum()  # it is asked only if somebody must leave
        return kernels.first_k(candidates, count)


@given(case=MASKS)
def test_a_rule_is_asked_only_when_somebody_must_leave(case):
    units, capacity, masks = case
    cache = Cache(units, capacity, First())
    cache.start()
    cached = set()
    for mask in masks:
        _, hits = cache.step(np.isin(np.arange(units), sorted(mask)))
        assert hits == len(mask & cached)
        if capacity:
            new = sorted(mask - cached)[: max(0, capacity - hits)]
            idle = [] if len(mask) > capacity else sorted(cached - mask)[: capacity - len(mask)]
            cached = (mask & cached) | set(new) | set(idle)
        assert set(np.flatnonzero(cache.view)) == cached
    if capacity:
        assert cache._state == list(range(len(masks)))  # tokens count from 0, prompts apart


def test_the_compiled_scan_serves_plain_caches_only():
    """It knows neither pinned units nor bypass; a cache without room needs no rank at all."""
    held = np.arange(10) < 2
    for rule, update in (("lru", "last"), ("lfu", "count"), ("fifo", "first"), ("arc", None), ("belady", None)):
        made = EVICTIONS.make(rule)[1]
        assert Cache(10, 4, made).rank_update == update
        assert Cache(10, 0, made).rank_update == "count"
        if update:
            assert Cache(10, 4, made, pinned=held).rank_update is None
            assert Cache(10, 4, made, admission="bypass").rank_update is None
            assert Cache(10, 4, made, warm=held).rank_update == update


def test_a_rank_of_no_number_is_refused():
    class Broken(Eviction):
        """Ranks unit 3 by nothing."""

        def start(self, units: int, capacity: int, future: np.ndarray | None) -> None:
            """No state."""

        def rank(self, state: None) -> np.ndarray:
            """NaN for one unit."""
            return np.where(np.arange(8) == 3, np.nan, 1.0)

    cache = Cache(8, 2, Broken())
    cache.start()
    with pytest.raises(ContractError, match=r"rank\(\) returned NaN for unit 3"):
        for unit in range(4):
            cache.step(np.arange(8) == unit)

"""Does the cache, under each eviction rule, do what a few lines of plain Python do?"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwsim import kernels
from hwsim.cache import Cache
from hwsim.errors import ContractError
from hwsim.evictions import Eviction
from hwsim.plugins import EVICTIONS

RULES = ("lru", "lfu", "fifo", "belady")


def plain_worth(rule, unit, token, masks, admitted):
    """How much a plain cache thinks a unit is worth keeping after `token`: the twin of each rule, a line each."""
    used = [t for t, mask in enumerate(masks) if unit in mask]
    if rule == "lru":
        return max(t for t in used if t <= token)
    if rule == "lfu":
        return sum(t <= token for t in used)
    if rule == "fifo":
        return admitted[unit]
    return -min((t for t in used if t > token), default=10**9)  # belady


def plain_hits(rule, masks, capacity):
    """Hits of every token, by sets and loops."""
    cached, admitted, hits = set(), {}, []
    for token, mask in enumerate(masks):
        there = mask & cached
        hits.append(len(there))
        if rule == "none" or capacity == 0:
            continue
        new = sorted(mask - cached)
        if len(mask) > capacity:
            new, cached = new[: capacity - len(there)], there
        admitted |= dict.fromkeys(new, token)
        cached = cached | set(new)
        worth = {unit: plain_worth(rule, unit, token, masks, admitted) for unit in cached - mask}
        leaving = sorted(worth, key=lambda unit: (worth[unit], -unit))
        cached = cached - set(leaving[: max(0, len(cached) - capacity)])
    return hits


def run(rule, masks, units, capacity):
    cache = Cache(units, capacity, EVICTIONS.make(rule)[1])
    dense = np.zeros((len(masks), units), bool)
    for token, mask in enumerate(masks):
        dense[token, sorted(mask)] = True
    cache.start(dense)
    hits = []
    for token, mask in enumerate(dense):
        needed, found = cache.step(mask)
        assert needed == len(masks[token])
        assert cache.view.sum() <= cache.capacity
        hits.append(found)
    return hits


MASKS = st.integers(1, 12).flatmap(
    lambda units: st.tuples(
        st.just(units), st.integers(0, units + 2), st.lists(st.sets(st.integers(0, units - 1)), min_size=1, max_size=25)
    )
)


@pytest.mark.parametrize("rule", [*RULES, "none"])
@given(case=MASKS)
def test_as_the_plain_twin(rule, case):
    units, capacity, masks = case
    assert run(rule, masks, units, capacity) == plain_hits(rule, masks, capacity)


@pytest.mark.parametrize("rule", [*RULES, "none"])
def test_as_the_plain_twin_on_a_long_run(rule, rng):
    units, capacity = 60, 25
    popular = rng.dirichlet(np.full(units, 0.4))
    masks = [
        set(rng.choice(units, 1 + rng.integers(0, 30), replace=False, p=popular * 0.9 + 0.1 / units))
        for _ in range(300)
    ]
    assert run(rule, masks, units, capacity) == plain_hits(rule, masks, capacity)


@given(data=st.data())
def test_belady_misses_least_on_fixed_masks_no_larger_than_the_capacity(data):
    units = data.draw(st.integers(2, 12))
    capacity = data.draw(st.integers(1, units))
    sets = st.sets(st.integers(0, units - 1), max_size=capacity)
    masks = data.draw(st.lists(sets, min_size=1, max_size=40))
    best = sum(run("belady", masks, units, capacity))
    assert all(best >= sum(run(rule, masks, units, capacity)) for rule in RULES)


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


@pytest.mark.parametrize("rule", ["lru", "lfu", "fifo"])
@pytest.mark.parametrize("k", [1, 7])
def test_uniform_requests_hit_at_capacity_over_units(rule, k, rng):
    """No rule without foresight can do better or worse, also for sets of k; sampling error is about 0.5 %."""
    units, capacity, tokens = 64, 24, 6000
    cache = Cache(units, capacity, EVICTIONS.make(rule)[1])
    cache.start()
    asked = found = 0
    for token in range(tokens):
        mask = np.zeros(units, bool)
        mask[rng.choice(units, k, replace=False)] = True
        needed, hits = cache.step(mask)
        if token > 300:  # the cache is full by then
            asked, found = asked + needed, found + hits
    assert found / asked == pytest.approx(capacity / units, abs=0.02)


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

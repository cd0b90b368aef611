"""Is every eviction rule what its plain twin is, on sets of any size, and what its paper says, on one unit at a time?"""

from __future__ import annotations

from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsim.cache.cache import Cache
from hwsim.simulation.plugins import EVICTIONS
from tests.evictions.plain import QUEUES, RANKED, plain_run
from tests.evictions.textbook import TEXTBOOK

few = settings(max_examples=15)  # of each rule; the long runs see more
RULES = (*RANKED, *QUEUES)
FIRST = [rule for rule in RULES if rule not in ("static", "belady-bypass")]  # those that admit whatever is needed


def dense(units, masks):
    found = np.zeros((len(masks), units), bool)
    for token, mask in enumerate(masks):
        found[token, sorted(mask)] = True
    return found


def run(rule, masks, units, capacity, *, bypass=None, pinned=(), warm=(), **parameters):
    """As `plain_run`."""
    sets = {name: dense(units, [set(part)])[0] for name, part in (("pinned", pinned), ("warm", warm)) if part}
    admission = None if bypass is None else "bypass" if bypass else "always"
    cache = Cache(units, capacity, EVICTIONS.make(rule, parameters)[1], admission=admission, **sets)
    rows = dense(units, masks)
    cache.start(rows)
    hits, held = [], []
    for mask in rows:
        needed, found = cache.step(mask)
        assert needed == mask.sum()
        hits.append(found)
        held.append(set(np.flatnonzero(cache.view).tolist()))
        assert len(held[-1]) <= max(capacity, 0)
    return hits, held


@st.composite
def cases(draw, largest=12, tokens=30):
    """Units, capacity from 0 to more than units, and masks of every size."""
    units = draw(st.integers(1, largest))
    capacity = draw(st.integers(0, units + 1))
    sets = st.sets(st.integers(0, units - 1))
    return units, capacity, draw(st.lists(sets, min_size=1, max_size=tokens))


@pytest.mark.parametrize("rule", RULES)
@few
@given(case=cases())
def test_as_the_plain_twin(rule, case):
    units, capacity, masks = case
    assert run(rule, masks, units, capacity) == plain_run(rule, masks, units, capacity)


@pytest.mark.parametrize("rule", RANKED)
@few
@given(case=cases(), bypass=st.booleans())
def test_either_admission(rule, case, bypass):
    units, capacity, masks = case
    found = run(rule, masks, units, capacity, bypass=bypass)
    assert found == plain_run(rule, masks, units, capacity, bypass=bypass)


@pytest.mark.parametrize("rule", RULES)
@few
@given(case=cases(), data=st.data())
def test_with_pinned_and_warm_units(rule, case, data):
    units, capacity, masks = case
    order = data.draw(st.permutations(range(units)))
    pins = data.draw(st.integers(0, min(units, capacity)))
    warms = data.draw(st.integers(0, min(units, capacity) - pins))
    parts = {"pinned": order[:pins], "warm": order[pins : pins + warms]}
    found = run(rule, masks, units, capacity, **parts)
    assert found == plain_run(rule, masks, units, capacity, **parts)
    assert all(set(order[:pins]) <= held for held in found[1])


PARAMETERS = [
    ("clock", {"bits": 2}),
    ("s3fifo", {"small": 0.5, "ghost": 0.0}),
    ("s3fifo", {"small": 0.3, "ghost": 2.0, "threshold": 1}),
    ("lfu-aged", {"period": 3}),
    ("random", {"seed": 5}),
]


@pytest.mark.parametrize(("rule", "parameters"), PARAMETERS)
@few
@given(case=cases())
def test_with_other_parameters(rule, parameters, case):
    units, capacity, masks = case
    assert run(rule, masks, units, capacity, **parameters) == plain_run(rule, masks, units, capacity, **parameters)


@pytest.mark.parametrize("rule", RULES)
def test_as_the_plain_twin_on_a_long_run(rule, rng):
    """Long enough for every memory of a rule to fill and to be forgotten; some masks exceed the capacity."""
    units, capacity = 60, 25
    popular = rng.dirichlet(np.full(units, 0.4)) * 0.9 + 0.1 / units
    sizes = [int(rng.integers(0, 30)) if rng.random() < 0.5 else 1 for _ in range(400)]
    masks = [set(rng.choice(units, size, replace=False, p=popular).tolist()) for size in sizes]
    assert run(rule, masks, units, capacity) == plain_run(rule, masks, units, capacity)


@pytest.mark.parametrize("rule", TEXTBOOK)
@few
@given(capacity=st.integers(1, 12), stream=st.lists(st.integers(0, 14), min_size=1, max_size=150))
def test_one_unit_at_a_time_it_is_what_its_paper_says(rule, capacity, stream):
    cache = TEXTBOOK[rule](capacity)
    assert run(rule, [{unit} for unit in stream], 15, capacity)[0] == [int(cache.get(unit)) for unit in stream]


@few
@given(case=cases(tokens=12))
def test_no_other_rule_hits_more_than_belady_where_masks_fit(case):
    units, capacity, masks = case
    masks = [set(sorted(mask)[:capacity]) for mask in masks]
    best = sum(run("belady", masks, units, capacity)[0])
    assert all(best >= sum(run(rule, masks, units, capacity, bypass=False)[0]) for rule in RULES)


@few
@given(case=cases(tokens=12))
def test_no_rule_hits_more_than_belady_bypass(case):
    units, capacity, masks = case
    best = sum(run("belady-bypass", masks, units, capacity)[0])
    assert all(best >= sum(run(rule, masks, units, capacity)[0]) for rule in RULES)
    assert all(best >= sum(run(rule, masks, units, capacity, bypass=True)[0]) for rule in RANKED)


def most_hits(masks, capacity, *, bypass):
    """By trying everything that a cache can do: after each token it holds any of what it held and what was read."""
    best = {frozenset(): 0}
    for mask in masks:
        after = {}
        for cached, before in best.items():
            hits = before + len(cached & mask)
            must = frozenset() if bypass else frozenset(mask)
            rest = sorted((cached | mask) - must)
            sizes = range(max(0, min(len(rest), capacity - len(must))) + 1)
            for more in chain.from_iterable(combinations(rest, size) for size in sizes):
                state = must | frozenset(more)
                after[state] = max(after.get(state, 0), hits)
        best = after
    return max(best.values())


@few
@given(case=cases(largest=5, tokens=7))
def test_belady_bypass_is_the_best_that_can_be(case):
    units, capacity, masks = case
    assert sum(run("belady-bypass", masks, units, capacity)[0]) == most_hits(masks, capacity, bypass=True)


@few
@given(case=cases(largest=5, tokens=7))
def test_belady_is_the_best_that_admits_whatever_is_needed(case):
    units, capacity, masks = case
    masks = [set(sorted(mask)[:capacity]) for mask in masks]
    assert sum(run("belady", masks, units, capacity)[0]) == most_hits(masks, capacity, bypass=False)


@pytest.mark.parametrize("rule", [rule for rule in FIRST if rule != "belady"])
@pytest.mark.parametrize(("k", "tokens"), [(1, 4000), (7, 1200)])
def test_uniform_requests_hit_at_capacity_over_units(rule, k, tokens, rng):
    """No rule without foresight can do better or worse, also for sets of k; sampling error is about 0.5 %."""
    units, capacity = 64, 24
    masks = [set(rng.choice(units, k, replace=False).tolist()) for _ in range(tokens)]
    hits = run(rule, masks, units, capacity)[0][300:]
    assert sum(hits) / (k * len(hits)) == pytest.approx(capacity / units, abs=0.02)


def test_a_static_set_is_what_was_admitted_first():
    masks = [{7, 8}, {1, 2, 3}, {1, 2, 7}, {0}]
    assert run("static", masks, 10, 4)[1] == [{7, 8}, {1, 2, 7, 8}, {1, 2, 7, 8}, {1, 2, 7, 8}]


def test_bypass_refuses_whom_it_ranks_no_higher():
    masks = [{0}, {0}, {1}, {2}, {2}, {2}]
    assert run("lfu", masks, 3, 1, bypass=True)[1] == [{0}, {0}, {0}, {0}, {0}, {2}]
    assert run("lfu", masks, 3, 1)[1] == [{0}, {0}, {1}, {2}, {2}, {2}]


def test_other_seeds_keep_other_units():
    masks = [{0, 1, 2, 3, 4}, {5}, {6}, {7}]
    held = {frozenset(run("random", masks, 8, 5, seed=seed)[1][-1]) for seed in range(8)}
    assert len(held) > 1
    assert run("random", masks, 8, 5, seed=1) == run("random", masks, 8, 5, seed=1)

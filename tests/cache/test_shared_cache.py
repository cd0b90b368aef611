"""Do caches that groups share do what a few lines of plain Python with sets do, to the byte?"""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsim.cache.cache import Cache
from hwsim.cache.shared import SharedCache, check_shared
from hwsim.errors import ContractError, SettingError
from hwsim.evictions import Eviction
from hwsim.masking.mask_file import MaskFile, MaskWriter
from hwsim.policy import Field, Group, Policy
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.simulation.replay import replay as replay_run
from hwsim.simulation.settings import Settings
from hwsim.testing import SMALL_MODEL, RandomSignals
from hwsim.trace import Sequence, Trace
from tests.conftest import flat_profile, write_trace
from tests.runs import Told, layout, replay, replay_masks, run_of, scan

RULES = ("lru", "lfu", "fifo", "lfru")


def plain(rule, sizes, size, services):
    """Hits of each service: a cache of (group, unit), with dicts and loops. `services`: (group, set of units)."""
    cached, uses, last, admitted, stay, hits = set(), {}, {}, {}, {}, []

    def weigh(some):
        return sum(sizes[g][u] for g, u in some)

    for now, (group, mask) in enumerate(services):
        asked = {(group, unit) for unit in mask}
        for each in asked:
            uses[each], last[each] = uses.get(each, 0) + 1, now
        there = asked & cached
        stay |= {each: stay.get(each, 0) + 1 for each in asked}
        hits.append(len(there))
        if rule == "none" or not size:
            continue
        if weigh(asked) > size:
            cached = set(there)
            for each in sorted(asked - there):
                if weigh(cached) + weigh([each]) <= size:
                    cached.add(each)
                    admitted[each], stay[each] = now, 1
            continue
        admitted |= dict.fromkeys(asked - there, now)
        stay |= dict.fromkeys(asked - there, 1)
        cached |= asked
        per_age = {each: Fraction(stay[each], now - last[each] + 1) for each in cached}
        worth = {"lru": last, "lfu": uses, "fifo": admitted, "lfru": per_age}[rule]
        leaving = sorted(cached - asked, key=lambda each: (worth[each], -each[0], -each[1]))
        while weigh(cached) > size:
            cached.remove(leaving.pop(0))
    return hits, cached


GROUPS = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3)


@st.composite
def cases(draw):
    """Groups of units of one size, the last of which may be smaller; a size; services."""
    sizes = [[big] * (units - 1) + [min(big, last)] for units, big, last in draw(GROUPS)]
    size = draw(st.integers(0, sum(map(sum, sizes)) + 3))
    group = st.integers(0, len(sizes) - 1)
    service = group.flatmap(lambda g: st.tuples(st.just(g), st.sets(st.integers(0, len(sizes[g]) - 1))))
    return sizes, size, draw(st.lists(service, min_size=1, max_size=30))


def run(rule, sizes, size, services):
    cache = SharedCache([np.array(each, np.int64) for each in sizes], size, EVICTIONS.make(rule)[1])
    for _ in range(2):  # a sequence starts empty
        hits = []
        cache.start()
        for part in cache.parts:
            part.start()
        for group, mask in services:
            part = cache.parts[group]
            needed, found = part.step(np.isin(np.arange(part.units), sorted(mask)))
            assert needed == len(mask)
            hits.append(found)
            assert cache.used == sum(int(part.bytes[part.view].sum()) for part in cache.parts) <= size
    return hits, {(g, int(u)) for g, part in enumerate(cache.parts) for u in np.flatnonzero(part.view)}


@pytest.mark.parametrize("rule", RULES)
@given(case=cases())
@settings(max_examples=60)
def test_as_the_plain_twin(rule, case):
    if case[1] == 0:
        assert run(rule, *case)[0] == [0] * len(case[2])
    else:
        assert run(rule, *case) == plain(rule, *case)


@pytest.mark.parametrize("rule", RULES)
def test_as_the_plain_twin_on_a_long_run(rule, rng):
    sizes = [[40] * 30, [11] * 49 + [4], [160] * 9]
    services = []
    for _ in range(150):
        for group, (count, units) in enumerate([(8, 30), (20, 50), (3, 9)]):
            popular = np.arange(units, 0, -1) ** 1.5
            services.append((group, set(rng.choice(units, count, replace=False, p=popular / popular.sum()).tolist())))
    assert run(rule, sizes, 1500, services) == plain(rule, sizes, 1500, services)


@pytest.mark.parametrize("rule", [*RULES, "none"])
@given(data=st.data())
def test_one_group_of_equal_units_is_a_cache_of_its_own(rule, data):
    units, unit = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 20))
    size = data.draw(st.integers(0, units * unit + 5))
    masks = data.draw(st.lists(st.sets(st.integers(0, units - 1)), min_size=1, max_size=30))
    single = Cache(units, size // unit, EVICTIONS.make(rule)[1])
    single.start()
    ours, _ = run(rule, [[unit] * units], size, [(0, mask) for mask in masks])
    assert ours == [single.step(np.isin(np.arange(units), sorted(mask)))[1] for mask in masks]


# ---------------------------------------------------------------------- whole replays

ONE_LAYER = SMALL_MODEL.model_copy(update={"num_hidden_layers": 1})


def found(trace, policy="dip", rule="lru", observers=(), **chosen):
    chosen = Settings(**{"dram": "60%", "per_token": True} | chosen)
    made = policy if isinstance(policy, Policy) else POLICIES.make(policy)[1]
    return replay(trace, flat_profile(), made, EVICTIONS.make(rule)[1], chosen, observers=observers)


def counted(result):
    return result.model_dump(exclude={"provenance"})


@pytest.mark.parametrize("rule", [*RULES, "none"])
@pytest.mark.parametrize("policy", ["magnitude", "oracle"])
def test_a_layer_with_one_group_has_one_cache(trace, policy, rule):
    assert counted(found(trace, policy, rule, cache_scope="layer")) == counted(found(trace, policy, rule))


@pytest.mark.parametrize("rule", RULES)
def test_a_model_of_one_layer_has_one_cache(tmp_path, rule):
    with Trace(write_trace(tmp_path / "t.npz", ONE_LAYER)) as trace:
        layer, whole = (found(trace, "dip-ca", rule, cache_scope=scope) for scope in ("layer", "global"))
        assert counted(layer) == counted(whole)
        single = [found(trace, "magnitude", rule, cache_scope=scope) for scope in ("matrix", "global")]
        assert counted(single[0]) == counted(single[1])


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("block", [1, 7])
def test_a_replay_is_as_the_plain_twin(trace, scope, rule, block):
    """All hits of all tokens, from the masks alone."""
    masks = {}
    result = found(
        trace, "dip", rule, cache_scope=scope, block=block,
        observers=[Told(lambda layer, group, token, mask: masks.__setitem__((token, layer, group), mask.copy()))],
    )  # fmt: skip
    placement = layout(
        trace.model, flat_profile(), POLICIES.make("dip")[1], trace.header.longest,
        Settings(dram="60%", cache_scope=scope, block=block),
    )  # fmt: skip
    plans = placement.plans
    assert sum(placement.shared.sizes) <= placement.bytes.cache
    hits, row = 0, 0
    for sequence in trace.header.sequences:
        rows = range(row, row + sequence.tokens - sequence.prompt)
        rounds = [range(3)] if scope == "global" else [[layer] for layer in range(3)]
        for layers, size in zip(rounds, placement.shared.sizes, strict=True):
            places = [place.plan for place in plans.places(layers)]
            services = [
                (at, {i // block for i in np.flatnonzero(masks[token, plan.layer, plan.name])})
                for token in rows
                for at, plan in enumerate(places)
            ]
            hits += sum(plain(rule, [plan.sizes().tolist() for plan in places], size, services)[0])
        row = rows.stop
    assert result.unit_hits == hits > 0
    dense = sum(part.flash_bytes + part.dram_bytes for part in result.groups)
    asked = sum(
        int(plan.sizes()[np.unique(np.flatnonzero(masks[token, plan.layer, plan.name]) // block)].sum())
        for token in range(row) for plan in plans
    )  # fmt: skip
    assert dense == asked  # what is asked for comes from Flash or DRAM, to the byte


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_everything_fits_and_nothing_fits(trace, scope):
    whole = found(trace, "dip", dram="100%", cache_scope=scope)
    assert any("Everything fits" in note for note in whole.notes)
    assert counted(whole) == counted(found(trace, "dip", dram="100%"))
    none = found(trace, "dip", dram="10%", cache_scope=scope)
    assert none.unit_hits == 0


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_cache_aware_policy_sees_the_shared_cache(trace, scope):
    """With gamma 0, what is cached is taken first: hits of a token are at most what is cached, and many."""
    plain_dip, aware = (found(trace, name, cache_scope=scope) for name in ("dip", "dip-ca"))
    assert aware.unit_hits > plain_dip.unit_hits


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_saved_masks_go_through_the_same_caches(trace, scope, tmp_path):
    writer, made = MaskWriter(tmp_path / "m.npz"), POLICIES.make("dip")[1]
    kept = Settings(dram="60%", cache_scope=scope, block=7)
    run = run_of(trace, flat_profile(), made, EVICTIONS.make("lfu")[1], kept, policy_name="dip")
    writer.begin(trace.header, run.masking, run.placement)
    whole = replay_run(run, [writer])
    writer.finish()
    again = replay_masks(MaskFile(tmp_path / "m.npz"), flat_profile(), EVICTIONS.make("lfu")[1], kept)
    assert counted(again) | {"notes": []} == counted(whole) | {"notes": []}


class _Own(Eviction):
    """Says nothing about sharing."""

    def rank(self, state):
        return np.zeros(1)


class _Stays(Eviction):
    """Shares, but counts units."""

    shares = True

    def stay(self, state, candidates, count):
        return candidates


@pytest.mark.parametrize("rule", [EVICTIONS.make("belady")[1], _Own(), _Stays()], ids=["belady", "own", "stays"])
def test_rules_that_cannot_share_are_refused(rule, trace):
    with pytest.raises(SettingError, match=r"--cache-scope layer: \w+ cannot serve one cache for groups"):
        check_shared(rule, "layer")
    with pytest.raises(SettingError, match=r"--cache-scope global"):
        replay(trace, flat_profile(), POLICIES.make("dip")[1], rule, Settings(cache_scope="global"))


class _Turns(Eviction):
    """Changes the type of its ranks."""

    shares = True

    def start(self, units, capacity, future):
        return []

    def use(self, state, use):
        state.append(use.token)

    def rank(self, state):
        return np.zeros(4, [np.int32, np.float32][len(state) % 2])


def test_ranks_of_two_types_are_refused():
    cache = SharedCache([np.full(4, 2)], 4, _Turns())
    cache.start()
    cache.parts[0].start()
    with pytest.raises(ContractError, match=r"rank\(\) returned int32 after float32; it must be one"):
        for unit in range(3):
            cache.parts[0].step(np.arange(4) == unit)


class _Many(Policy):
    """Everything, one unit, nothing: masks of all sizes, larger than the cache too."""

    share: float = Field(0.5)

    def groups(self, model):
        return [
            Group("input", "hidden", ["gate.column", "up.column"], None, ["input"]),
            Group("down", "neuron", ["down.column"], None, ["glu"]),
        ]

    def select(self, ctx):
        return np.arange(ctx.units) % (1 + ctx.token % 4) == 0


def test_masks_larger_than_the_cache_pass_through():
    placement = layout(SMALL_MODEL, flat_profile(), _Many(), 20, Settings(dram="55%", cache_scope="layer"))
    assert placement.shared is not None

    def counted_in(shared):
        source, sequences, rule = RandomSignals(SMALL_MODEL, 20), [Sequence(tokens=20)], EVICTIONS.make("lru")[1]
        return scan(source, sequences, _Many(), placement.plans, rule, model=SMALL_MODEL, shared=shared)

    counts = counted_in(placement.shared)
    assert counts.hits.sum() > 0
    assert (counts.hits <= counts.requests).all()
    assert placement.plans[0][0].total_bytes > placement.shared.sizes[0]
    assert counted_in(replace(placement.shared, sizes=(0, 0, 0))).hits.sum() == 0


@pytest.mark.parametrize(
    ("size", "first", "second"),
    [(0, 0, 0), (5, 1, 2), (12, 4, 6), (20, 4, 10), (22, 4, 10), (100, 4, 10)],
)
def test_a_part_is_told_how_many_of_its_units_the_whole_cache_could_hold(size, first, second):
    """Four units of 3 B beside ten of 2 B: all where the cache has room for all of the part, else as many as fit."""
    shared = SharedCache([np.full(4, 3), np.full(10, 2)], size, EVICTIONS.make("lru")[1])
    assert [part.capacity for part in shared.parts] == [first, second]


def test_a_fresh_shared_cache_is_empty():
    shared = SharedCache([np.full(4, 3)], 12, EVICTIONS.make("lru")[1])
    assert shared.used == 0
    shared.start()
    assert (shared.used, shared.parts[0].view.any()) == (0, False)
    shared.parts[0].start()
    shared.parts[0].step(np.ones(4, bool))
    assert shared.used == 12

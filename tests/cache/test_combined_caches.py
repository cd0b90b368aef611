"""Shared caches, shares and blocks together with densities by layer, norms, pins, warm starts and admission."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from hwsim.analysis.locality import locality
from hwsim.cache.cache import Cache
from hwsim.cache.unit_sets import UnitSets, member_of, read_units, write_units
from hwsim.errors import HwsimError, SettingError
from hwsim.evictions import Admission
from hwsim.evictions.lfu import Lfu
from hwsim.evictions.lru import Lru
from hwsim.masking.decider import Block
from hwsim.masking.streams import Masking, PolicyStream, signal_blocks
from hwsim.memory.neuron_order import Layout
from hwsim.memory.shares import Shares
from hwsim.policy import Group, Policy
from hwsim.simulation.metrics import Result
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.simulation.settings import Settings
from hwsim.testing import SMALL_MODEL, RandomSignals
from hwsim.trace import Sequence, Trace
from hwsim.trace.sequences import Sequences
from tests.conftest import flat_profile
from tests.runs import Told, layout, replay, scan
from tests.simulation.test_densities import layered

UNITS = {"input": 7, "down": 18}  # of DIP on the small model in blocks of 7: the last have 6 and 1
MIXED = Layout({}, np.stack([np.random.default_rng(at).permutation(120) for at in range(3)]).astype(np.int32))


def run(trace: Trace, policy: Policy | str = "dip", rule: Any = None, contents: Any = None, **chosen: Any) -> Result:
    made = POLICIES.make(policy)[1] if isinstance(policy, str) else policy
    settings = Settings(**{"dram": "70%"} | chosen)
    return replay(trace, flat_profile(), made, rule or Lru(), settings, observers=[Told(contents=contents)])


def sets(share: float, of: dict[str, int] = UNITS, **about: Any) -> UnitSets:
    """Of each group the last units, the smaller one among them."""
    made = {
        member_of(layer, name): np.arange(count) >= count - int(share * count)
        for layer in range(3)
        for name, count in of.items()
    }
    return UnitSets(made, "some.npz", **about)


# ---------------------------------------------------------------------- densities by layer


@pytest.mark.parametrize("chosen", [{"block": 7}, {"block": 7, "cache_scope": "layer"}, {"cache_scope": "layer"}])
@pytest.mark.parametrize("name", ["dip", "dip-ca", "oracle"])
def test_each_layer_is_as_if_all_had_its_density(name: str, chosen: dict[str, Any], trace: Trace) -> None:
    densities = [0.9, 0.5, 0.7]
    mixed = run(trace, layered(name, densities), **chosen)
    for layer, density in enumerate(densities):
        alone = run(trace, POLICIES.make(name, {"density": density})[1], **chosen)
        ours, theirs = ([each for each in made.groups if each.layer == layer] for made in (mixed, alone))
        assert ours == theirs
        assert sum(each.hits for each in ours) > 0


def test_masks_of_all_layers_go_through_one_cache(trace: Trace) -> None:
    masks: dict[tuple[int, str], int] = {}

    def listen(layer: int, group: str, token: int, mask: np.ndarray) -> None:
        masks[layer, group] = int(mask.sum())

    policy = layered("dip", [0.9, 0.5, 0.7])
    settings = Settings(dram="70%", cache_scope="global")
    result = replay(trace, flat_profile(), policy, Lru(), settings, observers=[Told(listen)])
    placement = layout(trace.model, flat_profile(), policy, trace.header.longest, settings)
    assert masks == {(plan.layer, plan.name): plan.k for plan in placement.plans}
    assert result.unit_hits > 0
    assert len({tuple(plan.k for plan in plans) for plans in placement.plans.by_name().values()}) == 2


def test_locality_asks_each_layers_policy() -> None:
    """A rule that its own parameters decide, not its keep."""

    class First(Policy):
        """The first columns."""

        take: int = 1

        def groups(self, model: Any) -> list[Group]:
            return [Group("down", "neuron", ["down.column"], None, ["glu"])]

        def select(self, ctx: Any) -> np.ndarray:
            return np.arange(ctx.units) < self.take

    class Each(First):
        """Another number in each layer."""

        def in_layer(self, layer: int) -> Policy:
            return First(take=10 * (layer + 1))

    policy, sequences = Each(), [Sequence(tokens=4)]
    plans = layout(SMALL_MODEL, None, policy, 4, Settings(dram="80%")).plans
    source, masking = RandomSignals(SMALL_MODEL, 4), Masking(SMALL_MODEL, policy, plans, Lru())
    found = locality(source, Sequences(sequences), masking, {"lru": Lru()})
    assert found["down"].requests == 4 * (10 + 20 + 30)


# ---------------------------------------------------------------------- norms


@pytest.mark.parametrize("rule", ["lru", "lfu"])
def test_norms_reach_a_shared_scan(rule: str) -> None:
    """One group in a layer: its shared cache is one of its own."""
    policy = POLICIES.make("magnitude", {"weighted": True})[1]
    source, sequences = RandomSignals(SMALL_MODEL, 30), [Sequence(tokens=30, prompt=2)]
    masks: list[list[bytes]] = [[], []]
    counts = []
    for scope, into in zip(("matrix", "layer"), masks, strict=True):
        placed = layout(SMALL_MODEL, flat_profile(), policy, 30, Settings(dram="80%", cache_scope=scope))  # type: ignore[arg-type]
        eviction = EVICTIONS.make(rule)[1]

        def listen(layer: int, group: str, token: int, mask: np.ndarray, into: list[bytes] = into) -> None:
            into.append(mask.tobytes())

        assert (placed.shared is None) == (scope == "matrix")
        counts.append(
            scan(
                source, sequences, policy, placed.plans, eviction, model=SMALL_MODEL, shared=placed.shared,
                observers=[Told(listen)],
            )
        )  # fmt: skip
    np.testing.assert_array_equal(counts[0].hits, counts[1].hits)
    assert masks[0] == masks[1]
    assert counts[0].hits.sum() > 0
    plain = POLICIES.make("magnitude")[1]
    others: list[bytes] = []
    scan(
        source, sequences, plain, layout(SMALL_MODEL, flat_profile(), plain, 30, Settings()).plans, Lru(),
        model=SMALL_MODEL, observers=[Told(lambda layer, group, token, mask: others.append(mask.tobytes()))],
    )  # fmt: skip
    assert others != masks[0]


# ---------------------------------------------------------------------- pins and warm starts of blocks


def test_bytes_of_pinned_blocks_are_exact(trace: Trace) -> None:
    pinned = sets(0.4)
    result = run(trace, block=7, dram="85%", pin=pinned)
    placement = layout(trace.model, flat_profile(), POLICIES.make("dip")[1], 40, Settings(dram="85%", block=7))
    sizes = {plan.name: plan.sizes() for plan in placement.plans}
    assert all(plan.short for plan in placement.plans)
    assert result.provenance["settings"]["pinned"] == {
        "name": "some.npz",
        "sha256": None,
        "units": 3 * (2 + 7),
        "bytes": 3 * int(sizes["input"][-2:].sum() + sizes["down"][-7:].sum()),
    }


def test_pinned_blocks_are_always_hit(trace: Trace) -> None:
    masks: dict[tuple[int, str], int] = dict.fromkeys(((at, name) for at in range(3) for name in UNITS), 0)
    held: dict[str, np.ndarray] = {}

    def listen(layer: int, group: str, token: int, mask: np.ndarray) -> None:
        pinned = sets(0.4).of(layer, group, UNITS[group])
        masks[layer, group] += int((np.add.reduceat(mask, range(0, len(mask), 7)) > 0)[pinned].sum())

    settings = Settings(dram="85%", block=7, pin=sets(0.4))
    result = replay(
        trace, flat_profile(), POLICIES.make("dip")[1], EVICTIONS.make("static")[1], settings,
        observers=[Told(listen, lambda layer, group, cached: held.update({member_of(layer, group): cached.copy()}))],
    )  # fmt: skip
    for group in result.groups:
        assert group.hits >= masks[group.layer, group.group] > 0
        cached = held[member_of(group.layer, group.group)]
        assert cached.sum() <= group.capacity_units
        assert (cached | ~sets(0.4).of(group.layer, group.group, len(cached))).all()


def test_saved_blocks_are_taken_back_as_they_were(trace: Trace, tmp_path: Path) -> None:
    held: dict[str, np.ndarray] = {}
    chosen = {"block": 7, "layout": MIXED}
    saved = run(
        trace, contents=lambda layer, group, cached: held.update({member_of(layer, group): cached.copy()}), **chosen
    )
    write_units(tmp_path / "held.npz", {"settings": saved.provenance["settings"]}, held)
    found = read_units(tmp_path / "held.npz")
    assert found.units == (7, MIXED.digest)
    warm = run(trace, warm=found, **chosen)
    assert warm.unit_hits > saved.unit_hits
    for other in ({"block": 7}, {"block": 8, "layout": MIXED}, {"block": 1, "layout": MIXED}):
        for part in ("warm", "pin"):
            with pytest.raises(SettingError, match=r"held\.npz: its units are blocks of 7 in the order of the") as told:
                run(trace, **{part: found}, **other)
            assert "\n" not in str(told.value)


def test_single_units_have_no_order(trace: Trace) -> None:
    whole = {"input": 48, "down": 120}
    for units in ((1, None), None):
        found = sets(0.1, whole, units=units)
        assert run(trace, warm=found).unit_hits == run(trace, layout=MIXED, warm=found).unit_hits
    with pytest.raises(SettingError, match=r"are single indices, those of this run are blocks of 7; make it"):
        run(trace, block=7, warm=sets(0.1, whole, units=(1, None)))
    with pytest.raises(SettingError, match=r"is bool of shape \(48,\); the group needs bool of shape \(7,\)"):
        run(trace, block=7, warm=sets(0.1, whole))


def test_a_header_that_names_no_block_is_refused(tmp_path: Path) -> None:
    write_units(tmp_path / "held.npz", {"settings": {"block": "7"}}, {"layers/000/down": np.ones(3, bool)})
    with pytest.raises(HwsimError, match="must name block, a whole number"):
        read_units(tmp_path / "held.npz")


# ---------------------------------------------------------------------- shares


def test_pins_must_fit_the_layer_that_gets_least(trace: Trace) -> None:
    weights = {(layer, group): 1 + 9 * (layer != 1) for layer in range(3) for group in ("input", "down")}
    pinned = sets(0.4, {"input": 48, "down": 120})
    assert run(trace, pin=pinned, dram="80%").unit_hits > 0
    with pytest.raises(SettingError, match="layer 1, group input: 19 units are pinned, but the cache holds"):
        run(trace, pin=pinned, dram="80%", cache_shares=Shares(weights, "w.json"))


def test_traffic_is_measured_with_the_same_pins(trace: Trace) -> None:
    pinned = sets(0.2, {"input": 48, "down": 120})
    equal = run(trace, pin=pinned)
    uneven = run(trace, pin=pinned, cache_shares=Shares(None, "traffic"))
    weights = {(group.layer, group.group): group.flash_bytes for group in equal.groups}
    again = run(trace, pin=pinned, cache_shares=Shares(weights, "traffic"))
    assert uneven.groups == again.groups
    assert uneven.groups != equal.groups


# ---------------------------------------------------------------------- what does not go together


class _Refuses(Lru):
    """Ranks that compare, but not everybody is let in."""

    admission: ClassVar[Admission] = "bypass"


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize(
    ("caches", "rule", "message"),
    [
        ({"admission": "bypass"}, Lfu(), "--admission bypass: does not go with --cache-scope"),
        ({"pin": sets(0.1)}, Lfu(), "--pin: does not go with --cache-scope"),
        ({"warm": sets(0.1)}, Lfu(), "--warm: does not go with --cache-scope"),
        ({}, _Refuses(), "_Refuses cannot serve one cache for groups"),
        ({}, EVICTIONS.make("static")[1], "Static cannot serve one cache for groups"),
        ({}, EVICTIONS.make("belady-bypass")[1], "BeladyBypass cannot serve one cache for groups"),
        ({}, EVICTIONS.make("arc")[1], "Arc cannot serve one cache for groups"),
    ],
)
def test_shared_caches_refuse_in_one_line(
    scope: Any, caches: dict[str, Any], rule: Any, message: str, trace: Trace
) -> None:
    with pytest.raises(SettingError, match=message) as told:
        run(trace, rule=rule, cache_scope=scope, **caches)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("scope", ["matrix", "layer", "global"])
def test_dense_has_nothing_to_refuse(scope: Any, trace: Trace) -> None:
    """It shares the settings of a comparison and masks nothing."""
    result = run(trace, "dense", cache_scope=scope, block=7, admission="bypass", pin=sets(0.1), warm=sets(0.1))
    assert not result.groups


def test_what_a_shared_cache_holds_is_written(hwsim: Any, small_trace: Path, tmp_path: Path) -> None:
    command = ("replay", small_trace, "--hw", "pixel8", "--dram", "70%", "--policy", "dip", "--block", "7")
    done = hwsim(*command, "--cache-scope", "global", "--save-cache", "held.npz", "--json", "r.json")
    assert done.returncode == 0, done.stderr
    groups = json.loads((tmp_path / "r.json").read_text())["groups"]
    held = read_units(tmp_path / "held.npz")
    assert sorted(held.sets) == sorted(member_of(each["layer"], each["group"]) for each in groups)
    assert all(held.of(each["layer"], each["group"], UNITS[each["group"]]).any() for each in groups)
    failed = hwsim(*command, "--cache-scope", "layer", "--pin", "held.npz")
    assert failed.returncode == 1
    assert failed.stderr.startswith("hwsim: --pin: does not go with --cache-scope layer")
    assert len(failed.stderr.splitlines()) == 1


# ---------------------------------------------------------------------- the compiled scan


@pytest.mark.parametrize(("block", "shared", "fast"), [(1, False, True), (7, False, False), (1, True, False)])
def test_blocks_and_shared_caches_are_asked_token_by_token(block: int, shared: bool, fast: bool) -> None:
    pytest.importorskip("numba")
    policy = POLICIES.make("dip")[1]
    plans = layout(SMALL_MODEL, flat_profile(), policy, 9, Settings(dram="70%", block=block)).plans
    place = plans.places()[0]
    cache = Cache(place.plan.units, place.plan.capacity, Lru()) if shared else None
    found = PolicyStream(Masking(SMALL_MODEL, policy, plans, Lru(), name="dip"), place, cache=cache, fast=True)
    assert found._fast is fast
    found.begin(0)
    blocks: list[Block] = list(signal_blocks(RandomSignals(SMALL_MODEL, 9), place.plan, range(9)))
    if not fast:
        assert [len(served.masks) for served in found.run(blocks)] == [1] * 9

"""The curve of LRU: at every size what the cache itself counts, and where there is none the cache itself."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwsim.analysis.curve import Stack, curve, units_of
from hwsim.cache.cache import Cache
from hwsim.errors import PluginError, SettingError
from hwsim.evictions.lru import Lru
from hwsim.policy import Group, Policy
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.simulation.settings import Settings
from hwsim.testing import SMALL_MODEL
from hwsim.trace import Sequence
from hwsim.trace.sequences import Sequences
from tests.conftest import flat_profile
from tests.runs import masking_of, replay


@st.composite
def runs(draw):
    """Sequences of masks, all of one size or of any."""
    units = draw(st.integers(1, 9))
    unit = st.integers(0, units - 1)
    size = draw(st.none() | st.integers(1, units))
    mask = st.sets(unit) if size is None else st.sets(unit, min_size=size, max_size=size)
    return units, draw(st.lists(st.lists(mask, max_size=8), max_size=3))


def as_mask(units, chosen):
    mask = np.zeros(units, bool)
    mask[list(chosen)] = True
    return mask


def counted(units, capacity, sequences):
    """Hits of the cache itself."""
    cache, hits = Cache(units, capacity, Lru()), 0
    for sequence in sequences:
        cache.start()
        hits += sum(cache.step(as_mask(units, chosen))[1] for chosen in sequence)
    return hits


@given(runs())
def test_every_size_from_the_largest_mask_on_is_exact(run):
    units, sequences = run
    stack = Stack(units)
    for sequence in sequences:
        stack.start()
        for chosen in sequence:
            stack.step(as_mask(units, chosen))
    hits = stack.hits()
    assert len(hits) == units + 1
    assert stack.requests == sum(len(chosen) for sequence in sequences for chosen in sequence)
    assert stack.largest == max((len(chosen) for sequence in sequences for chosen in sequence), default=0)
    for capacity in range(stack.largest, units + 1):
        assert hits[capacity] == counted(units, capacity, sequences)


@given(runs())
def test_a_plain_stack_gives_the_same(run):
    """Mattson's list, unit by unit."""
    units, sequences = run
    ours, distances = Stack(units), np.zeros(units, np.int64)
    for sequence in sequences:
        ours.start()
        stack: list[int] = []
        for chosen in sequence:
            for unit in chosen:
                if unit in stack:
                    distances[stack.index(unit)] += 1
            stack = sorted(chosen) + [unit for unit in stack if unit not in chosen]
            ours.step(as_mask(units, chosen))
    np.testing.assert_array_equal(ours.distances, distances)


def test_below_the_largest_mask_there_is_no_curve():
    """A cache of one unit keeps the hit 1, where the top of the stack would be 0: that is why it is refused there."""
    stack, sequence = Stack(3), [{1}, {0, 1}, {1}]
    stack.start()
    for chosen in sequence:
        stack.step(as_mask(3, chosen))
    assert (stack.hits()[1], counted(3, 1, [sequence])) == (1, 2)


class Signals:
    """Other rows in every layer: float32 ``[tokens, units]``."""

    def read(self, layer, signal, start=0, stop=None):
        rng = np.random.default_rng(layer)
        return rng.normal(size=(30, SMALL_MODEL.intermediate_size)).astype(np.float32)[start:stop]


class Some(Policy):
    """As many units as the token's first value says, or a tenth."""

    keep: float | None = 0.1

    def groups(self, model):
        return [Group("down", "neuron", ["down.column"], self.keep, ["glu"])]

    def score(self, ctx):
        return np.abs(ctx.signals["glu"])

    def select(self, ctx):
        return None if self.keep else np.abs(ctx.signals["glu"]) > 0.5 + np.abs(ctx.signals["glu"][0])


@pytest.mark.parametrize("keep", [0.1, None])
def test_layers_are_added_up_and_small_sizes_go_through_the_cache(keep):
    masking = masking_of(SMALL_MODEL, Some(keep=keep), 18, Settings(dram="60%"))
    sequences = Sequences([Sequence(tokens=12, prompt=3), Sequence(tokens=18)])
    shares = (0.01, 0.05, 0.5)
    found = curve(Signals(), sequences, masking, shares, known=True)["down"]
    assert [plan.capacity for plan in masking.plans] == [found.capacity] * 3
    sizes = {units_of(share, 120) for share in shares} | {found.capacity}
    assert set(found.hits) == sizes | set(range(found.largest, 121))
    masks = [
        [
            [set(np.flatnonzero(_mask(row, keep)).tolist()) for row in Signals().read(layer, "glu", *span)]
            for span in ((3, 12), (12, 30))
        ]
        for layer in range(3)
    ]
    assert found.largest == max(len(mask) for layer in masks for sequence in layer for mask in sequence)
    for size, hits in found.hits.items():
        assert hits == sum(counted(120, size, layer) for layer in masks), size
    assert found.requests - found.first == found.hits[120]


def _mask(row, keep):
    size = np.abs(row)
    return size >= np.sort(size)[-12] if keep else size > 0.5 + size[0]


def test_it_is_what_a_replay_counts(trace):
    policy = POLICIES.make("dip")[1]
    for dram in ("60%", "90%"):
        result = replay(trace, flat_profile(), policy, EVICTIONS.make("lru")[1], Settings(dram=dram))
        masking = masking_of(trace.model, policy, trace.header.longest, Settings(dram=dram))
        found = curve(trace, Sequences(trace.header.sequences), masking, known=True)
        for name, group in found.items():
            assert group.hits[group.capacity] == sum(each.hits for each in result.groups if each.group == name)


def test_policies_without_masks_of_their_own_are_refused(trace):
    header = trace.header
    for name, error, text in (
        ("dip-ca", PluginError, "looks at the cache, so its masks change with the size of the cache and have no curve"),
        ("dense", SettingError, "masks nothing"),
    ):
        policy = POLICIES.make(name)[1]
        masking = masking_of(header.model, policy, header.longest, Settings(dram="70%"), name)
        with pytest.raises(error, match=f"policy {name}: {text}") as caught:
            curve(trace, Sequences(header.sequences), masking)
        assert "\n" not in str(caught.value)


class Choosy(Policy):
    """Refuses, in words that name ctx.cached."""

    def groups(self, model):
        return [Group("down", axis="neuron", slices=["down.column"], keep=0.5, needs=["glu"])]

    def score(self, ctx):
        raise PluginError("wants no ctx.cached, but a longer trace")


def test_a_reason_that_names_the_cache_is_kept(trace):
    masking = masking_of(trace.model, Choosy(), trace.header.longest, Settings(dram="70%"))
    with pytest.raises(PluginError, match=r"token 0: wants no ctx\.cached, but a longer trace$"):
        curve(trace, Sequences(trace.header.sequences), masking)


def test_the_command(hwsim, small_trace, tmp_path):
    command = ("trace", "curve", small_trace, "--policy", "dip")
    done = hwsim(*command, "--dram", "80%", "--json", "found.json")
    assert done.returncode == 0, done.stderr
    assert "cache now" in done.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["format"], found["version"]) == ("hwsim-curve", 1)
    down = found["groups"]["down"]
    assert down["capacities"][-1] == down["units"] == 120
    assert down["hits"] == sorted(down["hits"])
    bare = hwsim(*command, "--json", "-")
    assert json.loads(bare.stdout)["groups"]["down"]["capacity"] is None
    assert json.loads(bare.stdout)["dram_budget_bytes"] is None
    assert json.loads(hwsim(*command, "--hw", "pixel8", "--json", "-").stdout)["groups"]["down"]["capacity"] == 120
    failed = hwsim("trace", "curve", small_trace, "--policy", "dip-ca")
    assert (failed.returncode, failed.stderr.count("\n"), failed.stdout) == (1, 1, "")

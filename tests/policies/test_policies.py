"""Do the policies decide the masks that the method's equations decide?"""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwsim.errors import ContractError, HwsimError, PluginError
from hwsim.model.catalog import known_shape
from hwsim.policy import Group, Policy
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.simulation.settings import Settings
from hwsim.testing import SMALL_MODEL, RandomSignals, check_policy
from hwsim.testing.drive import MaskCollector
from hwsim.trace import Sequence
from tests.conftest import FOR_EXPERTS, REPOSITORY, flat_profile, write_calibration
from tests.runs import plans_of, replay, scan

PHI3, OPT = known_shape("phi3-medium"), known_shape("opt-350m")
UNGATED = SMALL_MODEL.model_copy(update={"gated": False})


def make(name, **parameters):
    return POLICIES.make(name, parameters)[1]


@pytest.mark.parametrize("model", [SMALL_MODEL, UNGATED], ids=["gated", "ungated"])
@pytest.mark.parametrize("name", POLICIES.names())
def test_every_policy_keeps_the_contract(name, model, tmp_path):
    found = POLICIES.find(name)[1]
    if "calibration" in found.model_fields:
        found = make(name, calibration=write_calibration(tmp_path / "c.npz", model))
    if name in FOR_EXPERTS:
        with pytest.raises(HwsimError, match="small has no experts; choose a policy that cuts MLPs"):
            check_policy(found, model)
        model = None
    if name == "predictor":
        found = found(predictor=nets_file(tmp_path / "nets.npz", model))
    if name in ("up", "gate", "cats") and model is UNGATED:
        with pytest.raises(PluginError, match=r"small has no gate: (up|gate) pruning cuts |prunes by the gate"):
            check_policy(found, model)
        return
    assert check_policy(found, model)


# the authors' split (docs/explanation/model.md)
SPLIT = {
    0.3: (0.3694, 0.1612),
    0.4: (0.4751, 0.2498),
    0.5: (0.5744, 0.3512),
    0.6: (0.6680, 0.4640),
    0.7: (0.7566, 0.5867),
    0.8: (0.8409, 0.7181),
}


@pytest.mark.parametrize("density", SPLIT)
def test_dip_splits_as_the_authors(density):
    assert make("dip", density=density).keeps(PHI3) == pytest.approx(SPLIT[density], abs=5e-5)


@given(st.floats(0.01, 1))
def test_dip_keeps_add_up_to_the_density(density):
    given_input, down = make("dip", density=density).keeps(PHI3)
    assert (2 * given_input + down) / 3 == pytest.approx(density, abs=1e-12)
    given_input, down = make("dip", density=density).keeps(OPT)
    assert (given_input + down) / 2 == pytest.approx(density, abs=1e-12)


def test_impossible_densities_are_refused_with_the_reason():
    for policy, model in ((make("magnitude", density=0.66), PHI3), (make("magnitude", density=0.5), OPT)):
        with pytest.raises(PluginError, match="must be above"):
            policy.groups(model)
    with pytest.raises(PluginError, match="would need"):
        make("dip", density=0.5, keep_input=0.9).groups(PHI3)


def decided(policy, capacity=0, model=SMALL_MODEL, tokens=12, rule="lru", seed=0):
    """All masks: {(layer, group): bool [tokens, units]}, with a cache of `capacity` units a group."""
    masks, plans, eviction = MaskCollector(), plans_of(policy, model, capacity), EVICTIONS.make(rule)[1]
    source, sequences = RandomSignals(model, tokens), [Sequence(tokens=tokens)]
    scan(source, sequences, policy, plans, eviction, model=model, seed=seed, observers=[masks])
    return masks.masks_of


def top(values, k):
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]
    return np.isin(np.arange(len(values)), order)


def test_dip_takes_the_largest_magnitudes():
    signals = RandomSignals(SMALL_MODEL, 12)
    masks = decided(make("dip", density=0.5))
    for (layer, group), found in masks.items():
        values = np.abs(signals.read(layer, "input" if group == "input" else "glu"))
        keep = SPLIT[0.5][0 if group == "input" else 1]
        k = math.floor(keep * values.shape[1] + 1e-9)
        assert all((mask == top(row, k)).all() for mask, row in zip(found, values, strict=True))


def test_magnitude_cuts_down_only():
    masks = decided(make("magnitude", density=0.8))
    assert {group for _, group in masks} == {"down"}
    assert {int(mask.sum()) for found in masks.values() for mask in found} == {math.floor(0.4 * 120 + 1e-9)}


def test_gamma_1_is_dip_bit_for_bit():
    plain, aware = decided(make("dip"), 20), decided(make("dip-ca", gamma=1.0), 20)
    assert all((plain[key] == aware[key]).all() for key in plain)


def test_gamma_0_takes_min_of_k_and_cached(small_trace):
    policy, capacity = make("dip-ca", gamma=0.0), 20
    for (_, group), masks in decided(policy, capacity).items():
        cached = set()
        k = int(masks[0].sum())
        for mask in masks:
            chosen = set(np.flatnonzero(mask))
            assert len(chosen & cached) == min(k, len(cached)), group
            # a mask larger than the capacity keeps its hits, then its lowest misses
            new = sorted(chosen - cached)[: capacity - len(chosen & cached)]
            cached = (chosen & cached) | set(new) if k > capacity else cached | chosen
            assert k > capacity or len(cached) <= capacity or k == capacity


def test_gamma_weighs_what_is_not_cached():
    """Equation 10, by hand, with the cache of LRU kept by hand."""
    gamma, capacity = np.float32(0.2), 60
    signals = RandomSignals(SMALL_MODEL, 12)
    for (layer, group), masks in decided(make("dip-ca", gamma=0.2), capacity).items():
        values = np.abs(signals.read(layer, "input" if group == "input" else "glu"))
        last = np.full(values.shape[1], -1)
        cached = np.zeros(values.shape[1], bool)
        for token, (mask, row) in enumerate(zip(masks, values, strict=True)):
            assert (mask == top(np.where(cached, row, gamma * row), int(mask.sum()))).all()
            last[mask] = token
            cached |= mask
            leaving = sorted(np.flatnonzero(cached & ~mask), key=lambda unit: (last[unit], -unit))
            cached[leaving[: max(0, int(cached.sum()) - capacity)]] = False


def test_a_positive_factor_changes_nothing():
    class Scaled(type(make("dip-ca"))):
        """Twice the score."""

        def score(self, ctx):
            return 2 * super().score(ctx)

    plain, scaled = decided(make("dip-ca"), 20), decided(Scaled(), 20)
    assert all((plain[key] == scaled[key]).all() for key in plain)


def test_fixed_top_n_is_always_in_the_mask():
    signals = RandomSignals(SMALL_MODEL, 12)
    for (layer, group), masks in decided(make("dip-ca", gamma=0.0, fixed_top_n=5), 30).items():
        values = np.abs(signals.read(layer, "input" if group == "input" else "glu"))
        strongest = [top(row, 1) for row in values]
        assert all((mask & best).any() for mask, best in zip(masks, strongest, strict=True))


def test_warm_up_follows_the_authors_formula():
    policy = make("dip-ca", gamma=0.2, warm_up=True)
    found = [policy._gamma(token) for token in (0, 1, 2, 4, 8, 16)]
    assert found == pytest.approx([1.000, 0.735, 0.558, 0.360, 0.232, 0.201], abs=5e-4)


def test_keep_1_is_dense(trace):
    """Density 1 asks for everything; with a cache for everything the first token pays Flash, all others DRAM."""
    result = replay(trace, flat_profile(), make("dip", density=1.0), EVICTIONS.make("lru")[1])
    assert result.mlp_density == 1.0
    units = (48 + 120) * 3
    assert result.unit_requests == units * result.tokens
    assert result.unit_hits == units * (result.tokens - 2)  # two sequences


# ---------------------------------------------------------------------- predictor


def nets_file(path: Path, model, rank=7, **change):
    rng = np.random.default_rng(0)
    shapes = {
        "w1": (model.hidden_size, rank),
        "b1": (rank,),
        "w2": (rank, model.intermediate_size),
        "b2": (model.intermediate_size,),
    }
    members = {"format": np.array("hwsim-predictor"), "version": np.array(1)}
    for layer in range(model.num_hidden_layers):
        members |= {f"layers/{layer:03d}/{part}": rng.normal(size=shape).astype("f4") for part, shape in shapes.items()}
    np.savez(path, **members | change)
    return path


def test_predictor_takes_the_nets_best(tmp_path):
    path = nets_file(tmp_path / "nets.npz", SMALL_MODEL)
    policy = make("predictor", density=0.5, predictor=str(path))
    parameters = 3 * (48 * 7 + 7 + 7 * 120 + 120)
    assert policy.predictor_parameters(SMALL_MODEL) == parameters
    share = parameters / (3 * SMALL_MODEL.mlp_parameters)
    k = math.floor((0.5 - share) * 120 + 1e-9)
    file = np.load(path)
    signals = RandomSignals(SMALL_MODEL, 12)
    for (layer, _), masks in decided(policy).items():
        w1, b1, w2, b2 = (file[f"layers/{layer:03d}/{part}"] for part in ("w1", "b1", "w2", "b2"))
        for mask, x in zip(masks, signals.read(layer, "input"), strict=True):
            assert (mask == top(np.maximum(x @ w1 + b1, 0) @ w2 + b2, k)).all()


def test_predictor_nets_count_in_density_and_memory(tmp_path, trace):
    path = nets_file(tmp_path / "nets.npz", SMALL_MODEL)
    policy = make("predictor", density=0.5, predictor=str(path))
    result = replay(trace, flat_profile(), policy, EVICTIONS.make("lfu")[1])
    k = result.unit_requests / result.tokens / 3
    parameters = policy.predictor_parameters(SMALL_MODEL)
    expected = k / 120 + parameters / (3 * SMALL_MODEL.mlp_parameters)
    assert result.mlp_density == pytest.approx(expected, rel=1e-12)
    without = replay(trace, flat_profile(), make("oracle", density=0.5), EVICTIONS.make("lfu")[1])
    assert result.resident_bytes - without.resident_bytes == math.ceil(parameters / 2)


@pytest.mark.parametrize(("recall", "precision"), [(1.0, 1.0), (0.9, 0.8), (0.5, 0.75)])
def test_noisy_oracle_has_the_given_recall_and_precision(recall, precision):
    policy = make("noisy-oracle", density=0.5, recall=recall, precision=precision)
    signals = RandomSignals(SMALL_MODEL, 12)
    for (layer, _), masks in decided(policy).items():
        for mask, glu in zip(masks, np.abs(signals.read(layer, "glu")), strict=True):
            truth = top(glu, round(60 * precision / recall))
            right = int((mask & truth).sum())
            assert int(mask.sum()) == 60
            assert right / 60 == pytest.approx(precision, abs=0.5 / 60 + 1e-9)
            assert right / truth.sum() == pytest.approx(recall, abs=0.02)


def test_noisy_oracle_depends_on_the_seed_only():
    policy = make("noisy-oracle")
    a, b, c = (decided(policy, seed=seed) for seed in (1, 1, 2))
    assert all((a[key] == b[key]).all() for key in a)
    assert any((a[key] != c[key]).any() for key in a)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"format": np.array("x")}, "is x version 1, needed is hwsim-predictor"),
        ({"layers/000/w1": np.zeros((3, 7), "f4")}, "shapes do not fit"),
        ({"layers/000/b2": np.full(120, np.nan, "f4")}, "layers/000/b2 holds NaN or infinity; members must be finite"),
        ({"layers/003/w1": np.zeros((3, 7), "f4")}, "layers/003"),
    ],
)
def test_bad_predictor_files(tmp_path, change, text):
    policy = make("predictor", predictor=str(nets_file(tmp_path / "nets.npz", SMALL_MODEL, **change)))
    with pytest.raises(PluginError, match=text):
        policy.groups(SMALL_MODEL)


def test_predictor_without_a_file_says_what_to_do():
    with pytest.raises(PluginError) as found:
        make("predictor").groups(SMALL_MODEL)
    assert str(found.value) == (
        "give --set predictor=FILE (made by `hwsim train predictor`), or use noisy-oracle, which needs no file"
    )


def test_a_missing_predictor_file():
    with pytest.raises(PluginError) as found:
        make("predictor", predictor="/no/such.npz").groups(SMALL_MODEL)
    assert str(found.value) == "/no/such.npz: cannot be read: No such file or directory"


@pytest.mark.parametrize("lost", ["format", "version", "layers/001/w2"])
def test_a_predictor_file_that_lacks_something_says_what(tmp_path, lost):
    members = dict(np.load(nets_file(tmp_path / "whole.npz", SMALL_MODEL)))
    del members[lost]
    path = tmp_path / "nets.npz"
    np.savez(path, **members)
    with pytest.raises(PluginError) as found:
        make("predictor", predictor=str(path)).groups(SMALL_MODEL)
    assert str(found.value) == f"{path}: is no file of hwsim-predictor: it lacks the member {lost!r}"


@pytest.mark.parametrize("content", [b"", b"x", b"PK\x03\x04 and no zip", b"\x80\x04N."])
def test_what_is_no_predictor_file(tmp_path, content):
    path = tmp_path / "nets.npz"
    path.write_bytes(content)
    with pytest.raises(PluginError) as found:
        make("predictor", predictor=str(path)).groups(SMALL_MODEL)
    assert (
        str(found.value) == f"{path}: is no file of hwsim-predictor; it must be a .npz of numpy.savez, without pickles"
    )


# ---------------------------------------------------------------------- the contract holds authors to it


class Base(Policy):
    """A policy to break."""

    def groups(self, model):
        return [Group("down", axis="neuron", slices=["down.column"], keep=0.5, needs=["glu"])]

    def score(self, ctx):
        return np.abs(ctx.signals["glu"])


def broken(**methods):
    return type("Broken", (Base,), {"__doc__": "Broken.", **methods})


_count = [0]


def _drifting(self, ctx):
    _count[0] += 1
    return np.roll(np.arange(ctx.units, dtype="f4"), _count[0])


def _leaking(self, ctx):
    """Decides by the layer that was decided before, which it remembers in the class."""
    before = getattr(type(self), "before", None)
    type(self).before = ctx.layer
    return np.roll(np.arange(ctx.units, dtype="f4"), 7 * (before == 1))


def _mutating(self, ctx):
    ctx.signals["glu"][0] = 1
    return ctx.signals["glu"]


@pytest.mark.parametrize(
    ("methods", "text"),
    [
        ({"score": lambda self, ctx: np.zeros(3, "f4")}, r"score\(\) at layer 0, group down, token 0: returned float32 of shape \(3,\)"),
        ({"score": lambda self, ctx: [1.0]}, "returned list"),
        ({"score": lambda self, ctx: np.full(120, np.nan, "f4")}, "returned NaN for unit 0"),
        ({"score": lambda self, ctx: 1 / 0}, "raised ZeroDivisionError"),
        ({"select": lambda self, ctx: np.zeros(120)}, "needs bool"),
        ({"select": lambda self, ctx: np.zeros(120, bool)}, "the mask holds 0 units, keep asks for 60"),
        ({"score": _drifting}, "the same run gives other masks"),
        ({"score": _leaking}, "masks of one layer depend on another"),
        ({"score": _mutating}, "read-only"),
        ({"groups": lambda self, model: [Group("a", "neuron", ["down.column"], 1.5, ["glu"])]}, "keep=1.5; must be"),
        ({"groups": lambda self, model: [Group("a", "hidden", ["down.column"], 0.5, ["glu"])]}, "has 120 units, axis 'hidden' has 48"),
        ({"groups": lambda self, model: [Group("a", "neuron", ["sideways"], 0.5)]}, "slice 'sideways'; must be one of"),
        ({"groups": lambda self, model: [Group("a", "width", ["up.row"], 0.5)]}, "axis 'width'; must be one of"),
        ({"groups": lambda self, model: [Group("a", "neuron", [], 0.5)]}, "slices is empty"),
        ({"groups": lambda self, model: [Group("a", "neuron", ["down.column"], 0.5, ["smell"])]}, "needs 'smell'; must be one of"),
        ({"groups": lambda self, model: [Group("a", "neuron", ["up.row"], 0.5, ["glu"])]}, "up must produce first"),
        ({"groups": lambda self, model: [Group("a", "neuron", ["up.row", "up.row"], 0.5)]}, "times a slice cuts the matrix 'up'"),
        (
            {"groups": lambda self, model: [Group("a", "neuron", ["up.row"]), Group("a", "neuron", ["down.column"])]},
            "groups are called 'a'",
        ),
        (
            {
                "groups": lambda self, model: [
                    Group("a", "neuron", ["up.row"], 0.5, ["gate"]),
                    Group("b", "neuron", ["gate.row"], 0.5, ["up"]),
                ]
            },
            "wait for each other",
        ),
        ({"groups": lambda self, model: "down"}, "must return a list"),
    ],
)  # fmt: skip
def test_check_policy_finds(methods, text):
    with pytest.raises(HwsimError, match=text):
        check_policy(broken(**methods))


def test_check_policy_passes_a_good_one():
    assert check_policy(Base)[-1] == "it has no density, so --density is refused"


def test_check_policy_wants_a_summary():
    with pytest.raises(ContractError, match="no docstring"):
        check_policy(type("Mute", (Base,), {}))


def test_a_whole_new_policy_is_twenty_lines():
    """The one in the README, as it stands in the examples folder."""
    path = REPOSITORY / "docs" / "examples" / "sliding_top.py"
    assert len(path.read_text().splitlines()) <= 20
    assert check_policy(POLICIES.find(str(path))[1])


def test_belady_with_a_policy_that_reads_the_cache_is_refused(trace):
    with pytest.raises(PluginError, match=r"reads ctx\.cached, but belady"):
        replay(trace, flat_profile(), make("dip-ca"), EVICTIONS.make("belady")[1], Settings(dram="60%"))

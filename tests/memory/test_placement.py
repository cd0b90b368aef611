"""Does everything lie where the design says, to the byte, and are impossible budgets refused with a way out?"""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwsim.errors import ContractError, SettingError
from hwsim.memory.placement import Room, dram_budget, place
from hwsim.memory.planning import Units, plan_group, plan_layers
from hwsim.model.catalog import known_shape
from hwsim.model.shape import Bits, ModelShape, footprint
from hwsim.policy import Group, Policy
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.simulation.settings import Settings
from hwsim.testing import SMALL_MODEL
from hwsim.trace import Trace
from tests.conftest import flat_profile, write_trace
from tests.runs import layout, replay

PHI3 = known_shape("phi3-medium")
# layers, vocabulary, hidden, intermediate, heads, KV heads (heads x head_dim = hidden)
DIMENSIONS = {
    "phi3-medium": (40, 32064, 5120, 17920, 40, 10),
    "phi3-mini": (32, 32064, 3072, 8192, 32, 32),
    "llama3-8b": (32, 128256, 4096, 14336, 32, 8),
    "mistral-7b": (32, 32000, 4096, 14336, 32, 8),
}
WINDOW = {"phi3-medium": 2047, "phi3-mini": 2047, "mistral-7b": 4096}  # KV entries that a layer holds at most
# GB at 4 bits and 8 bits of KV cache for 2,048 tokens: MLP, attention, LM head, KV; B of a down and an up column
TABLE = {
    "phi3-medium": ("5.505", "1.311", "0.082", "0.210", 2560, 8960),
    "phi3-mini": ("1.208", "0.604", "0.049", "0.402", 1536, 4096),
    "llama3-8b": ("2.819", "0.671", "0.263", "0.134", 2048, 7168),
    "mistral-7b": ("2.819", "0.671", "0.066", "0.134", 2048, 7168),
}


def lay(name="dip", model=PHI3, budget=4 * 10**9, kv_tokens=2048, bits=None, predictor=0, **parameters):
    bits = bits or Bits()
    policy = name if isinstance(name, Policy) else POLICIES.make(name, parameters)[1]
    plans = plan_layers([policy.groups(model)], model, Units(bits))
    return place(plans, model, bits, Room(budget, kv_tokens), predictor)


def notes(trace, name, **settings):
    rule = settings.pop("rule", "lru")
    policy = name if isinstance(name, Policy) else POLICIES.make(name)[1]
    result = replay(trace, flat_profile(), policy, EVICTIONS.make(rule)[1], Settings(**settings), policy_name="it")
    return result, " ".join(result.notes)


# ---------------------------------------------------------------------- sizes


@pytest.mark.parametrize("name", DIMENSIONS)
def test_sizes_by_hand(name):
    layers, vocabulary, hidden, neurons, heads, pairs = DIMENSIONS[name]
    mlp = layers * 3 * hidden * neurons // 2
    attention = layers * (2 * hidden * hidden + 2 * hidden * (hidden * pairs // heads)) // 2
    head = vocabulary * hidden // 2
    kv = min(2048, WINDOW.get(name, 2048)) * layers * 2 * (hidden * pairs // heads)
    found = lay("dense", known_shape(name), budget=100 * 10**9)
    assert (found.bytes.weights, found.bytes.kv_reserved) == (mlp + attention + head, kv)
    assert footprint(known_shape(name), Bits())[:3] == (attention, head, mlp)
    assert [f"{size / 1e9:.3f}" for size in (mlp, attention, head, kv)] == list(TABLE[name][:4])
    assert (hidden // 2, neurons // 2) == TABLE[name][4:]
    up, down = lay("dip", known_shape(name)).plans[0]
    assert (down.slice_bytes, up.slice_bytes) == ((hidden // 2,), (neurons // 2, neurons // 2))


def test_phi3_medium_to_the_byte():
    found = lay("dip")
    assert found.bytes.weights == 5_505_024_000 + 1_310_720_000 + 82_083_840
    assert sum(found.bytes.kv.stored) == 40 * 2 * 10 * 128
    assert found.bytes.kv_reserved == 2047 * 40 * 2 * 10 * 128 == 209_612_800  # of 2,048 tokens, 2,047 in the window
    assert found.bytes.resident == 1_310_720_000 + 82_083_840
    assert found.bytes.cache == 4_000_000_000 - 209_612_800 - 1_392_803_840 == 2_397_583_360
    assert found.bytes.sparse == 5_505_024_000
    # 120 matrices share the cache: 19,979,861 B each. Two of them hold units of 17,920 B, one holds units of 2,560 B
    assert 2_397_583_360 // 120 == 19_979_861
    assert [plan.capacity for plan in found.plans[0]] == [2 * 19_979_861 // 17_920, 19_979_861 // 2_560] == [2229, 7804]


# ---------------------------------------------------------------------- order of residency


def test_the_budget_goes_to_kv_first_then_to_resident_weights_then_to_the_cache():
    kv, resident = 209_612_800, 1_392_803_840
    exact = lay(budget=kv + resident).bytes
    assert (exact.streamed, exact.cache, exact.pinned) == (0, 0, resident)
    one_less = lay(budget=kv + resident - 1).bytes
    assert (one_less.streamed, one_less.cache, one_less.pinned) == (1, 0, resident - 1)
    only_kv = lay(budget=kv).bytes
    assert (only_kv.streamed, only_kv.cache, only_kv.pinned) == (resident, 0, 0)
    # 120 matrices want 17,920 / 2 B each before the first unit of `input` fits; a unit of `down` needs less
    first = lay(budget=kv + resident + 120 * 8960)
    assert [plan.capacity for plan in first.plans[0]] == [1, 3]
    before = lay(budget=kv + resident + 120 * 8960 - 1)
    assert [plan.capacity for plan in before.plans[0]] == [0, 3]


def test_what_a_policy_leaves_unmasked_is_resident():
    """GLU pruning reads up and gate whole: two thirds of the MLP are resident."""
    found = lay("magnitude", budget=10**10)
    assert found.bytes.resident == 1_392_803_840 + 2 * 1_835_008_000
    assert found.bytes.sparse == 1_835_008_000
    assert sum(found.parameters.mlp) == 2 * 3_670_016_000
    assert lay("dense", budget=10**10).bytes.resident == found.bytes.weights


def test_predictor_parameters_are_resident_at_their_bits():
    found = lay("noisy-oracle", predictor=1001, bits=Bits(predictor=4))
    assert found.bytes.resident == 1_392_803_840 + 501
    assert lay("noisy-oracle", predictor=1001, bits=Bits(predictor=16)).bytes.resident == 1_392_803_840 + 2002
    assert found.bytes.weights == lay("noisy-oracle").bytes.weights  # of the model alone


def test_a_policy_with_predictors_shrinks_the_cache():
    class Predicts(type(POLICIES.make("noisy-oracle")[1])):
        """Says that it has a million parameters."""

        def predictor_parameters(self, model):
            return 10**6

    plain = layout(PHI3, flat_profile("4 GB"), POLICIES.make("noisy-oracle")[1], 2048, Settings())
    found = layout(PHI3, flat_profile("4 GB"), Predicts(), 2048, Settings())
    assert plain.bytes.cache - found.bytes.cache == 500_000
    assert found.parameters.predictor == 10**6


@pytest.mark.parametrize("wrong", [-1, 1.5, None, "many", True, 10**13 + 1, 10**20, pytest.param(10**5000, id="huge")])
def test_impossible_numbers_of_parameters_are_refused(wrong):
    class Predicts(Attention):
        """Wrong."""

        def predictor_parameters(self, model):
            return wrong

    with pytest.raises(
        ContractError, match=r"predictor_parameters\(\) returned .* needs a whole number from 0 to 10\^13$"
    ):
        layout(PHI3, flat_profile("4 GB"), Predicts(), 2048, Settings())


# ---------------------------------------------------------------------- equal shares


@given(
    st.integers(0, 5 * 10**9),
    st.sampled_from(["dip", "noisy-oracle", "magnitude"]),
    st.sampled_from(sorted(DIMENSIONS)),
    st.sampled_from([2, 3, 4, 4.5, 8]),
)
def test_each_sparse_matrix_gets_the_same_bytes_rounded_down_to_units(cache, name, model, bits):
    layers, _, hidden, neurons, _, _ = DIMENSIONS[model]
    empty = lay(name, known_shape(model), budget=10**12, bits=Bits(mlp=bits)).bytes
    found = lay(name, known_shape(model), budget=empty.kv_reserved + empty.resident + cache, bits=Bits(mlp=bits))
    assert found.bytes.cache == cache
    # slices of each group: (matrices, numbers in each)
    slices = {
        "dip": [(2, neurons, hidden), (1, hidden, neurons)],
        "noisy-oracle": [(3, hidden, neurons)],
        "magnitude": [(1, hidden, neurons)],
    }[name]
    matrices = sum(count for count, _, _ in slices)
    share = Fraction(cache, layers * matrices)
    for plans in found.plans.by_layer:
        for plan, (count, numbers, units) in zip(plans, slices, strict=True):
            unit_bytes = count * math.ceil(numbers * Fraction(bits) / 8)
            assert plan.unit_bytes == unit_bytes
            assert plan.capacity == min(units, share * count // unit_bytes)


class Attention(Policy):
    """Columns of q and of o: matrices of other sizes than the MLP's."""

    def groups(self, model):
        return [
            Group("q", "hidden", ["q.column"], 0.5),
            Group("kv", "hidden", ["k.column", "v.column"], 0.5),
            Group("down", "neuron", ["down.column"], 0.5),
        ]

    def score(self, ctx):
        return np.arange(ctx.units, dtype=np.float32)


def test_matrices_of_different_sizes_get_the_same_bytes(trace):
    """q 48x48, k and v 24x48, down 48x120, 4 bits: units of 24, 2 x 12 and 24 B; four matrices in each of 3 layers."""
    empty = lay(Attention(), SMALL_MODEL, budget=10**9, kv_tokens=0)
    found = lay(Attention(), SMALL_MODEL, budget=empty.bytes.resident + 12 * 600, kv_tokens=0)
    assert [plan.capacity for plan in found.plans[0]] == [25, 48, 25]  # k and v: all 48 of them fit into 1200 B
    assert found.bytes.resident == 3 * (48 * 48 + 2 * 48 * 120) // 2 + 100 * 48 // 2


def test_it_says_everything_fits_only_if_no_cache_is_too_small(trace):
    """Equal shares can leave a large matrix without room although the sum of all would fit."""
    whole = lay(Attention(), SMALL_MODEL, budget=10**9, kv_tokens=40)
    budget = whole.bytes.kv_reserved + whole.bytes.resident + whole.bytes.sparse
    assert whole.everything_fits
    tight, text = notes(trace, Attention(), dram=budget)
    assert any(group.capacity_units < group.units for group in tight.groups)
    assert "Everything fits" not in text
    assert "equal shares" in text
    _, text = notes(trace, Attention(), dram=10**9)
    assert "Everything fits" in text


def test_groups_come_in_the_order_in_which_a_layer_can_decide_them():
    """down waits for what gate and up give, however the policy lists them."""

    class Backwards(type(POLICIES.make("dip")[1])):
        """Lists down first."""

        def groups(self, model):
            return super().groups(model)[::-1]

    assert [plan.name for plan in lay(Backwards()).plans[0]] == ["input", "down"]
    assert [plan.name for plan in lay("dip").plans[0]] == ["input", "down"]


# ---------------------------------------------------------------------- fractional bits


def test_fractional_bits_round_each_matrix_and_each_unit_up():
    """4.5 bits: a down column of 5 numbers takes ceil(22.5 / 8) = 3 B, an up column of 3 takes ceil(13.5 / 8) = 2 B."""
    model = ModelShape(
        name="odd", num_hidden_layers=2, hidden_size=5, intermediate_size=3, num_attention_heads=1,
        num_key_value_heads=1, head_dim=5, vocab_size=7,
    )  # fmt: skip
    found = lay("dip", model, budget=10**6, kv_tokens=3, bits=Bits(mlp=4.5, attention=4.5, lm_head=4.5, kv_cache=4.5))
    inputs, down = found.plans[0]
    assert (inputs.slice_bytes, down.slice_bytes) == ((2, 2), (3,))
    assert found.bytes.resident == 2 * 4 * math.ceil(25 * 4.5 / 8) + math.ceil(35 * 4.5 / 8)
    assert sum(found.bytes.kv.stored) == 2 * math.ceil(10 * 4.5 / 8)
    # the units of a cut matrix are stored apart: 5 columns of 2 x 2 B and 3 of 3 B in each of 2 layers
    assert found.bytes.sparse == 2 * (5 * 4 + 3 * 3)


# ---------------------------------------------------------------------- --dram


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GB", 4 * 10**9),
        ("4 GiB", 4 * 2**30),
        ("1.5 MB", 1_500_000),
        (" 50% ", 500 + 77),
        ("0%", 77),
        ("33.3%", 333 + 77),
        ("250%", 2500 + 77),
        ("10000%", 100_000 + 77),
        ("1e18 B", 10**18),
    ],
)
def test_budget_as_text(text, size):
    assert dram_budget(text, weights=1000, kv_reserved=77) == size


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("4", "has no unit"),
        ("4 Gb", "is not a unit of a size"),
        ("-4GB", "is negative"),
        ("lots", "write a number and its unit"),
        ("", "write a number and its unit"),
        ("x%", "not a number before the %"),
        ("%", "not a number before the %"),
        ("-1%", "must be between 0% and 10000%"),
        ("nan%", "must be between 0% and 10000%"),
        ("inf%", "must be between 0% and 10000%"),
        ("10001%", "must be between 0% and 10000%"),
        ("1000000000000000001 B", "is more than"),
        ("1e300 TB", "is more than"),
    ],
)
def test_impossible_budgets_as_text(text, rule):
    with pytest.raises(SettingError, match=rule) as found:
        dram_budget(text, 1000, 77)
    assert str(found.value).startswith(f"--dram {text.strip()}: ")
    assert "\n" not in str(found.value)


def test_a_share_counts_weights_and_provides_the_kv_cache_on_top(trace):
    weights = 3 * (2 * 48 * 48 + 2 * 24 * 48 + 3 * 48 * 120) // 2 + 100 * 48 // 2
    result, _ = notes(trace, "dip", dram="50%")
    assert result.kv_cache_bytes == 40 * 3 * 2 * 24
    assert result.budget_bytes == weights // 2 + result.kv_cache_bytes
    more, _ = notes(trace, "dip", dram="50%", kv_tokens=400)
    assert more.budget_bytes - result.budget_bytes == 360 * 3 * 2 * 24
    assert more.cache_bytes == result.cache_bytes


def test_a_budget_that_cannot_hold_the_kv_cache_is_refused(trace):
    with pytest.raises(SettingError) as found:
        notes(trace, "dip", dram=5759)
    assert str(found.value) == (
        "DRAM budget 5.76 kB cannot hold the KV cache of 40 tokens, 5.76 kB: 1 B are missing"
        "; give more with --dram, store it in fewer bits (--bits kv_cache=4), or use shorter sequences"
    )
    with pytest.raises(SettingError, match=r"or reserve it for fewer tokens \(--kv-tokens 40 is the least\)$"):
        notes(trace, "dip", dram=5760, kv_tokens=41)
    notes(trace, "dip", dram=5760)
    notes(trace, "dip", dram=2880, bits=Bits(kv_cache=4))  # the way out that it names


def test_kv_tokens_too_few_for_the_trace(trace):
    with pytest.raises(SettingError, match="--kv-tokens 39 cannot hold the trace's longest sequence, 40 tokens"):
        notes(trace, "dip", kv_tokens=39)


# ---------------------------------------------------------------------- what the output says


def test_it_says_that_everything_fits(trace):
    for name in ("dense", "dip"):
        result, text = notes(trace, name, dram="100%")
        assert (
            "Everything fits: the KV cache of 5.76 kB and all weights, 38.7 kB, lie within the DRAM budget of 44.4"
            in text
        )
        assert result.streamed_bytes == 0
        _, text = notes(trace, name, dram="99%")
        assert "Everything fits" not in text
        assert "equal shares" not in text


def test_it_says_how_much_of_a_dense_model_is_pinned(trace):
    result, text = notes(trace, "dense", dram="75%")
    assert "it: 29.0 kB of 38.7 kB weights are pinned in DRAM, 9.67 kB are streamed from Flash at every token." in text
    assert result.cache_bytes == 0
    assert result.hit_rate is None


def test_it_warns_when_resident_weights_do_not_fit(trace):
    result, text = notes(trace, "magnitude", dram="50%")
    assert "it: warning: the DRAM budget of 25.1 kB is smaller than the resident part" in text
    assert "streamed from Flash at every token and nothing is left for a cache" in text
    assert result.streamed_bytes > 0
    assert result.unit_hits == 0


def test_it_says_when_a_cache_holds_no_unit(trace):
    resident = 3 * (2 * 48 * 48 + 2 * 24 * 48) // 2 + 100 * 48 // 2 + 40 * 144
    result, text = notes(trace, "dip", dram=resident + 9 * 23)
    assert "it: warning: what is left for the caches, 207 B, holds no unit." in text
    assert result.unit_hits == 0
    _, text = notes(trace, "dip", dram=resident + 9 * 23, rule="none")
    assert "warning" not in text  # nothing was to be cached


def test_it_says_when_every_mask_is_larger_than_its_cache(trace):
    _, text = notes(trace, "dip", dram="40%")
    assert "each mask asks for more units than its cache holds (input 27 of " in text
    assert "all eviction rules that admit whatever is needed do the same" in text


def test_it_says_that_a_trace_is_synthetic(trace, tmp_path):
    assert "The trace is synthetic" in notes(trace, "dip")[1]
    path = write_trace(tmp_path / "t.npz")
    with Trace(path) as opened:
        opened.header = opened.header.model_copy(update={"origin": "recorded"})
        assert "synthetic" not in notes(opened, "dip")[1]


def test_every_slice_has_an_axis() -> None:
    """Also under grouped heads, where rows of k and v are fewer than those of q."""
    axes = {
        "hidden": ["q.column", "k.column", "v.column", "o.row", "gate.column", "up.column", "down.row"],
        "neuron": ["gate.row", "up.row", "down.column"],
        "attention": ["q.row", "o.column"],
        "kv": ["k.row", "v.row"],
    }
    units = {"hidden": 5120, "neuron": 17920, "attention": 5120, "kv": 1280}
    for axis, slices in axes.items():
        group = Group("g", axis, slices, keep=0.5, needs=[])  # type: ignore[arg-type]
        assert plan_group(group, known_shape("phi3-medium"), Units()).units == units[axis]


@given(st.integers(0, 120), st.sampled_from(["dense", "dip", "magnitude", "noisy-oracle"]), st.integers(0, 5000))
def test_layers_share_what_is_pinned_and_streamed_in_the_order_of_placement(percent, name, extra):
    """Attention of all layers first, then the LM head, what the policy keeps, and the MLP layer by layer."""
    found = lay(name, SMALL_MODEL, f"{percent}%", 10, predictor=extra).bytes
    pinned, streamed = found.by_step()
    assert (sum(pinned), sum(streamed)) == (found.pinned, found.streamed)
    (attention,), (mlp,), head = set(found.unmasked.attention), set(found.unmasked.mlp), found.unmasked.lm_head
    layers = SMALL_MODEL.num_hidden_layers
    assert pinned[layers] + streamed[layers] == head
    whole = [p + s for p, s in zip(pinned[:layers], streamed[:layers], strict=True)]
    assert max(whole) - min(whole) <= 1  # what the policy keeps is shared out to the byte
    assert min(whole) >= attention + mlp
    if 0 < found.streamed <= layers * mlp:  # only MLP matrices are streamed, those of the last layers
        assert streamed[layers] == 0
        first = next(layer for layer, size in enumerate(streamed) if size)
        assert all(size == mlp for size in streamed[first + 1 : layers])
        assert not any(streamed[:first])

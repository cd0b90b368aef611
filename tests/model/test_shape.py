"""Are a model's bytes those of the published footprints?"""

import pytest
from pydantic import ValidationError

from hwsim.errors import ModelError
from hwsim.memory.kv_cache import KVCache
from hwsim.model.catalog import MODELS, known_shape
from hwsim.model.shape import Bits, ModelShape, footprint, stored_bytes

# GB at 4-bit weights and 2,048 entries of an 8-bit KV cache; B of one down and one up column
FOOTPRINTS = {
    "phi3-medium": (5.505, 1.311, 0.082, 0.210, 2560, 8960),
    "phi3-mini": (1.208, 0.604, 0.049, 0.403, 1536, 4096),
    "llama3-8b": (2.819, 0.671, 0.263, 0.134, 2048, 7168),
    "mistral-7b": (2.819, 0.671, 0.066, 0.134, 2048, 7168),
}


@pytest.mark.parametrize("name", FOOTPRINTS)
def test_published_footprints(name):
    shape, bits = known_shape(name), Bits()
    found = footprint(shape, bits)
    sizes = [found.mlp, found.attention, found.lm_head, 2048 * sum(KVCache.of(shape, bits).stored)]
    assert [round(size / 1e9, 3) for size in sizes] == list(FOOTPRINTS[name][:4])
    matrices = shape.matrices()
    columns = [stored_bytes(matrices[matrix].rows, bits.mlp) for matrix in ("down", "up")]
    assert columns == list(FOOTPRINTS[name][4:])


def test_smollm2_is_67_mb_at_4_bits():
    assert footprint(known_shape("smollm2-135m"), Bits()).weights == 67_239_936


@pytest.mark.parametrize(
    ("elements", "bits", "size"), [(1, 4, 1), (3, 4, 2), (576, 4.5, 324), (10, 1 / 3, 1), (7, 16, 14)]
)
def test_bytes_round_up(elements, bits, size):
    assert stored_bytes(elements, bits) == size


def test_fractional_bits_are_exact():
    assert stored_bytes(32 * 10**9, 4.5) == 18 * 10**9
    assert stored_bytes(10, 0.1) == 1  # 1 bit; binary 0.1 alone would make it a little more


def test_no_gate_means_two_mlp_matrices():
    shape = known_shape("opt-350m")
    assert shape.mlp == ("up", "down")
    assert "gate" not in shape.matrices()


def test_unknown_name_offers_the_nearest():
    with pytest.raises(ModelError, match="did you mean 'phi3-medium'"):
        known_shape("phi3-medum")


@pytest.mark.parametrize("value", [0, -4, 65, "x", "nan"])
def test_impossible_bits(value):
    with pytest.raises(ValidationError):
        Bits.model_validate({"mlp": value})


@pytest.mark.parametrize("pairs", [2, 4, 6, 8])
def test_heads_share_keys_evenly(pairs):
    fields = known_shape("smollm2-135m").model_dump()  # 9 heads
    assert ModelShape.model_validate(fields | {"num_key_value_heads": 9}).num_key_value_heads == 9
    text = f"num_attention_heads 9 must be a multiple of num_key_value_heads {pairs}"
    with pytest.raises(ValidationError, match=text):
        ModelShape.model_validate(fields | {"num_key_value_heads": pairs})


@pytest.mark.parametrize("name", MODELS)
def test_every_known_shape_is_consistent(name):
    shape = known_shape(name)
    assert shape.num_attention_heads % shape.num_key_value_heads == 0

"""Has every model of the catalogue the shape that its public configuration gives, and its published size?"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from hwsim.memory.kv_cache import KVCache
from hwsim.model.catalog import MODELS, known_shape
from hwsim.model.shape import Bits, ModelShape, expert_bytes, footprint
from tests.model.configurations import CONFIGURATIONS, COUNTED_HERE, PARAMETERS

# parameters that no token reads as a matrix: the vision tower with the projection from it; learned positions
BESIDES = {"gemma3-4b": 419_816_304, "opt-350m": 2050 * 1024, "opt-1.3b": 2050 * 2048, "opt-6.7b": 2050 * 4096}


def counted(shape: ModelShape) -> int:
    """Weights of all matrices, the LM head and an embedding of its own."""
    layers = range(shape.num_hidden_layers)
    total = shape.all_mlp_parameters + sum(map(shape.attention_parameters, layers))
    total += shape.head_parameters * (1 if shape.tie_word_embeddings else 2)
    return total + shape.outside_parameters


def test_every_model_has_a_configuration() -> None:
    assert CONFIGURATIONS.keys() == MODELS.keys() == PARAMETERS.keys()


@pytest.mark.parametrize("name", MODELS)
def test_the_size_is_the_published_one(name: str) -> None:
    """Norms and biases, which are not counted, are less than 0.5 % of every model."""
    text = PARAMETERS[name] - BESIDES.get(name, 0)
    assert 0.995 * text < counted(known_shape(name)) <= text


@pytest.mark.parametrize("name", MODELS)
def test_the_shape_is_that_of_the_configuration(name: str) -> None:
    pytest.importorskip("torch", reason="needs the extra `record`")
    pytest.importorskip("transformers", reason="needs the extra `record`")
    from hwsim.record.extras import libraries
    from hwsim.record.loading import structure_of

    modules, fields = libraries(), dict(CONFIGURATIONS[name])
    config = modules.transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    structure = structure_of(config, name, modules)
    found, known = vars(structure.shape), vars(known_shape(name))
    assert {field: found[field] for field in found if found[field] != known[field]} == {}
    assert structure.parameters == PARAMETERS[name] or name in COUNTED_HERE


WINDOWS: dict[str, tuple[int | None, ...]] = {
    "phi3-mini": (2047,) * 32,
    "phi3-medium": (2047,) * 40,
    "phi4-mini": (262144,) * 32,
    "mistral-7b": (4096,) * 32,
    "turbosparse-mistral": (4096,) * 32,
    "gemma2-2b": (4096, None) * 13,
    "gemma3-270m": ((512,) * 5 + (None,)) * 3,
    "gemma3-1b": ((512,) * 5 + (None,)) * 4 + (512, 512),
    "gemma3-4b": ((1024,) * 5 + (None,)) * 5 + (1024,) * 4,
    "gpt-oss-20b": (128, None) * 12,
    "gpt-oss-120b": (128, None) * 18,
}


@pytest.mark.parametrize("name", MODELS)
def test_windows(name: str) -> None:
    shape = known_shape(name)
    assert tuple(layer.window for layer in shape.by_layer) == WINDOWS.get(name, (None,) * shape.num_hidden_layers)
    assert bool(shape.layers) == (name in WINDOWS or shape.experts is not None)


@pytest.mark.parametrize(
    ("name", "head_dim", "heads_by_head_dim"),
    [
        ("mistral-nemo", 128, 4096), ("qwen3-0.6b", 128, 2048), ("qwen3-4b", 128, 4096), ("gemma2-2b", 256, 2048),
        ("gemma3-270m", 256, 1024), ("gemma3-1b", 256, 1024), ("gemma3-4b", 256, 2048),
    ],
)  # fmt: skip
def test_heads_that_are_not_as_wide_as_the_hidden_state(name: str, head_dim: int, heads_by_head_dim: int) -> None:
    shape = known_shape(name)
    assert shape.head_dim == head_dim
    assert shape.matrices()["o"] == (shape.hidden_size, heads_by_head_dim)
    others = [shape for shape in map(known_shape, MODELS) if shape.num_attention_heads * shape.head_dim
              != shape.hidden_size and not shape.experts]  # fmt: skip
    assert len(others) == 7


def test_gemma3_keeps_few_entries_of_a_long_text() -> None:
    """22 layers hold 512 entries, 4 hold all 8,192; each entry has a key and a value of 256 numbers, 8 bits each."""
    assert KVCache.of(known_shape("gemma3-1b"), Bits()).reserved(8192) == (22 * 512 + 4 * 8192) * 2 * 256


def test_opt_350m_has_a_narrow_embedding() -> None:
    shape = known_shape("opt-350m")
    assert (shape.head_parameters, shape.outside_parameters) == (50272 * 512, 2 * 512 * 1024)


@pytest.mark.parametrize(
    ("name", "expert", "published", "embedding"),
    [
        ("qwen3-30b-a3b", 3 * 2048 * 768, 3.35e9, 151936 * 2048),  # 3.3 billion active parameters
        ("gpt-oss-20b", 3 * 2880 * 2880, 3.61e9, 0),  # its card leaves the embedding out
        ("mixtral-8x7b", 3 * 4096 * 14336, 12.88e9, 32000 * 4096),
    ],
)
def test_the_parameters_of_a_token_are_those_that_are_published(
    name: str, expert: int, published: float, embedding: int
) -> None:
    shape, bits = known_shape(name), Bits(mlp=8, attention=8, lm_head=8)
    own, layers = shape.experts, shape.layers_with("experts")
    assert own is not None
    assert sum(expert_bytes(shape, bits, layers[0])) == expert
    left_out = len(layers) * (own.count - own.used) * expert
    assert footprint(shape, bits).weights - left_out + embedding == pytest.approx(published, rel=2e-3)


def test_it_needs_neither_torch_nor_transformers() -> None:
    program = (
        "import sys, hwsim.model.catalog; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done: Any = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

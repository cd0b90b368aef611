"""Models with a short name: the hub id of their weights, and their shape (for `synth`, and for sizes).

Shapes are taken from the published configurations (config.json of each hub id).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from hwsim.errors import ModelError, did_you_mean
from hwsim.model.shape import ModelShape


class KnownModel(NamedTuple):
    """A model with a short name."""

    hub: str  # id on the Hugging Face hub
    shape: ModelShape


def _known(name: str, hub: str, sizes: tuple[int, int, int, int, int, int], **fields: Any) -> tuple[str, KnownModel]:
    """A row of the table.

    Args:
        name: short name.
        hub: id on the Hugging Face hub.
        sizes: layers, vocabulary, hidden size, neurons, heads and key-value heads.
        fields: other fields of the shape.
    """
    layers, vocabulary, hidden, neurons, heads, kv_heads = sizes
    shape = ModelShape(
        name=name,
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=neurons,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        vocab_size=vocabulary,
        **fields,
    )
    return name, KnownModel(hub, shape)


# fmt: off
#          name                  hub id                                    layers  vocab   d     d_ff  heads KV
MODELS: dict[str, KnownModel] = dict([
    _known("smollm2-135m",        "HuggingFaceTB/SmolLM2-135M-Instruct",    (30,  49152,   576,  1536,  9,  3), tie_word_embeddings=True),
    _known("smollm2-360m",        "HuggingFaceTB/SmolLM2-360M-Instruct",    (32,  49152,   960,  2560, 15,  5), tie_word_embeddings=True),
    _known("smollm2-1.7b",        "HuggingFaceTB/SmolLM2-1.7B-Instruct",    (24,  49152,  2048,  8192, 32, 32), tie_word_embeddings=True),
    _known("phi3-mini",           "microsoft/Phi-3-mini-4k-instruct",       (32,  32064,  3072,  8192, 32, 32)),
    _known("phi3-medium",         "microsoft/Phi-3-medium-4k-instruct",     (40,  32064,  5120, 17920, 40, 10)),
    _known("llama3-8b",           "meta-llama/Meta-Llama-3-8B",             (32, 128256,  4096, 14336, 32,  8)),
    _known("llama3.2-1b",         "meta-llama/Llama-3.2-1B",                (16, 128256,  2048,  8192, 32,  8), tie_word_embeddings=True),
    _known("llama2-7b",           "meta-llama/Llama-2-7b-hf",               (32,  32000,  4096, 11008, 32, 32)),
    _known("mistral-7b",          "mistralai/Mistral-7B-v0.1",              (32,  32000,  4096, 14336, 32,  8)),
    _known("turbosparse-mistral", "PowerInfer/TurboSparse-Mistral-Instruct", (32, 32064,  4096, 14336, 32,  8), hidden_act="relu"),
    _known("qwen2.5-0.5b",        "Qwen/Qwen2.5-0.5B",                      (24, 151936,   896,  4864, 14,  2), tie_word_embeddings=True),
    _known("qwen2.5-1.5b",        "Qwen/Qwen2.5-1.5B",                      (28, 151936,  1536,  8960, 12,  2), tie_word_embeddings=True),
    _known("qwen2.5-7b",          "Qwen/Qwen2.5-7B",                        (28, 152064,  3584, 18944, 28,  4)),
    _known("opt-350m",            "facebook/opt-350m",                      (24,  50272,  1024,  4096, 16, 16), tie_word_embeddings=True, hidden_act="relu", gated=False),
    _known("opt-6.7b",            "facebook/opt-6.7b",                      (32,  50272,  4096, 16384, 32, 32), tie_word_embeddings=True, hidden_act="relu", gated=False),
])


def known_shape(name: str) -> ModelShape:
    """The shape of a model with a short name.

    Raises:
        ModelError: no such name.
    """
    if name not in MODELS:
        raise ModelError(f"model {name!r} has no known shape{did_you_mean(name, MODELS)}")
    return MODELS[name].shape

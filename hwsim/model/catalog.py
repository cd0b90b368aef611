"""Models with a short name: the hub id of their weights, and their shape (for `synth`, and for sizes).

Shapes are taken from the published configurations (config.json of each hub id). They are data: neither torch nor
transformers is needed. `tests/model` builds every model from its configuration, counts it, and compares.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from hwsim.errors import ModelError, did_you_mean
from hwsim.model.layers import Experts, LayerShape
from hwsim.model.shape import ModelShape


class KnownModel(NamedTuple):
    """A model with a short name."""

    hub: str  # id on the Hugging Face hub
    shape: ModelShape


def _known(
    name: str,
    hub: str,
    sizes: tuple[int, int, int, int, int, int],
    *,
    head_dim: int | None = None,
    windows: tuple[int | None, ...] = (None,),
    **fields: Any,
) -> tuple[str, KnownModel]:
    """A row of the table.

    Args:
        name: short name.
        hub: id on the Hugging Face hub.
        sizes: layers, vocabulary, hidden size, neurons, heads and key-value heads.
        head_dim: numbers of one head; None: hidden size / heads.
        windows: most entries that a token reads, its own included, by layer; None: all. Repeated over all layers.
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
        head_dim=head_dim or hidden // heads,
        vocab_size=vocabulary,
        **fields,
    )
    return name, KnownModel(hub, _with_windows(shape, windows))


def _with_windows(shape: ModelShape, windows: tuple[int | None, ...]) -> ModelShape:
    """The shape whose layer i has the window windows[i mod len(windows)]; the same shape if no layer has one."""
    layers = tuple(_with_window(layer, windows[number % len(windows)]) for number, layer in enumerate(shape.by_layer))
    return shape if layers == shape.by_layer else shape.model_copy(update={"layers": layers})


def _with_window(layer: LayerShape, window: int | None) -> LayerShape:
    return layer if window is None else layer.model_copy(update={"attention": "window", "window": window})


def _sparse(
    name: str,
    hub: str,
    sizes: tuple[int, int, int, int, int],
    experts: tuple[int, int, int],
    *,
    head_dim: int | None = None,
    windows: tuple[int | None, ...] = (None,),
    **fields: Any,
) -> tuple[str, KnownModel]:
    """A row of a mixture of experts, all of whose layers are sparse.

    Args:
        name, hub, head_dim, windows, fields: as in `_known`.
        sizes: layers, vocabulary, hidden size, heads and key-value heads.
        experts: of a layer: their number, how many are chosen for a token, and neurons of one.
    """
    layers, vocabulary, hidden, heads, kv_heads = sizes
    count, used, width = experts
    size = head_dim or hidden // heads
    layer = LayerShape(
        attention="full",
        kv_elements=2 * kv_heads * size,
        macs_per_entry=2 * heads * size,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=size,
        other_parameters=count * hidden,  # the router
        experts=Experts(count=count, used=used, intermediate_size=width),
    )
    by_layer = tuple(_with_window(layer, windows[number % len(windows)]) for number in range(layers))
    return _mixture(name, hub, (vocabulary, hidden, 0, heads, kv_heads, size), by_layer, **fields)


def _mixture(
    name: str, hub: str, sizes: tuple[int, int, int, int, int, int], layers: tuple[LayerShape, ...], **fields: Any
) -> tuple[str, KnownModel]:
    """A row of a mixture with the given layers; sizes: vocabulary, hidden size, neurons, heads, KV heads, head size."""
    vocabulary, hidden, neurons, heads, kv_heads, size = sizes
    shape = ModelShape(
        name=name, num_hidden_layers=len(layers), hidden_size=hidden, intermediate_size=neurons,
        num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=size, vocab_size=vocabulary, layers=layers,
        **fields,
    )  # fmt: skip
    return name, KnownModel(hub, shape)


def _deepseek_v2_lite() -> tuple[LayerShape, ...]:
    """27 layers with compressed entries of 512 + 64 numbers; the first has a dense MLP, the others 64 experts and 2."""
    hidden, heads, latent, rotated, plain, value = 2048, 16, 512, 64, 128, 128
    matrices = (
        hidden * heads * (plain + rotated) + hidden * (latent + rotated) + latent * heads * (plain + value)
        + heads * value * hidden
    )  # fmt: skip
    attention: dict[str, Any] = {
        "attention": "latent", "kv_elements": latent + rotated, "macs_per_entry": heads * (2 * latent + rotated),
    }  # fmt: skip
    experts = Experts(count=64, used=6, intermediate_size=1408, shared_parameters=3 * hidden * 2 * 1408)
    dense = LayerShape(**attention, other_parameters=matrices, intermediate_size=10944)
    return dense, *(LayerShape(**attention, other_parameters=matrices + 64 * hidden, experts=experts),) * 26


_TIED: dict[str, Any] = {"tie_word_embeddings": True}
_OPT: dict[str, Any] = {**_TIED, "hidden_act": "relu", "gated": False}
_GEMMA: dict[str, Any] = {**_TIED, "hidden_act": "gelu_pytorch_tanh", "head_dim": 256}
_GEMMA2 = (4096, None)
_GEMMA3 = (512,) * 5 + (None,)  # of the 270M and 1B
_GEMMA3_LARGE = (1024,) * 5 + (None,)  # from 4B on

# fmt: off
#          name                    hub id                                   layers vocab    d      d_ff  heads KV
MODELS: dict[str, KnownModel] = dict([
    _known("smollm2-135m",         "HuggingFaceTB/SmolLM2-135M-Instruct",      (30,  49152,   576,  1536,  9,  3), **_TIED),
    _known("smollm2-360m",         "HuggingFaceTB/SmolLM2-360M-Instruct",      (32,  49152,   960,  2560, 15,  5), **_TIED),
    _known("smollm2-1.7b",         "HuggingFaceTB/SmolLM2-1.7B-Instruct",      (24,  49152,  2048,  8192, 32, 32), **_TIED),
    _known("smollm3-3b",           "HuggingFaceTB/SmolLM3-3B",                 (36, 128256,  2048, 11008, 16,  4), **_TIED),
    _known("phi2",                 "microsoft/phi-2",                          (32,  51200,  2560, 10240, 32, 32), hidden_act="gelu_new", gated=False),
    _known("phi3-mini",            "microsoft/Phi-3-mini-4k-instruct",         (32,  32064,  3072,  8192, 32, 32), windows=(2047,)),
    _known("phi3-medium",          "microsoft/Phi-3-medium-4k-instruct",       (40,  32064,  5120, 17920, 40, 10), windows=(2047,)),
    _known("phi4-mini",            "microsoft/Phi-4-mini-instruct",            (32, 200064,  3072,  8192, 24,  8), windows=(262144,), **_TIED),
    _known("llama2-7b",            "meta-llama/Llama-2-7b-hf",                 (32,  32000,  4096, 11008, 32, 32)),
    _known("llama3-8b",            "meta-llama/Meta-Llama-3-8B",               (32, 128256,  4096, 14336, 32,  8)),
    _known("llama3.2-1b",          "meta-llama/Llama-3.2-1B",                  (16, 128256,  2048,  8192, 32,  8), **_TIED),
    _known("llama3.2-3b",          "meta-llama/Llama-3.2-3B",                  (28, 128256,  3072,  8192, 24,  8), **_TIED),
    _known("tinyllama-1.1b",       "TinyLlama/TinyLlama-1.1B-Chat-v1.0",       (22,  32000,  2048,  5632, 32,  4)),
    _known("mobillama-1b",         "MBZUAI/MobiLlama-1B",                      (22,  32000,  2048,  5632, 32, 32)),
    _known("mistral-7b",           "mistralai/Mistral-7B-v0.1",                (32,  32000,  4096, 14336, 32,  8), windows=(4096,)),
    _known("mistral-7b-v0.3",      "mistralai/Mistral-7B-v0.3",                (32,  32768,  4096, 14336, 32,  8)),
    _known("mistral-nemo",         "mistralai/Mistral-Nemo-Base-2407",         (40, 131072,  5120, 14336, 32,  8), head_dim=128),
    # window: that of Mistral-7B-v0.1, which it was trained from, not confirmed; its predictors of neurons are not counted
    _known("turbosparse-mistral",  "PowerInfer/TurboSparse-Mistral-Instruct",  (32,  32064,  4096, 14336, 32,  8), windows=(4096,), hidden_act="relu"),
    _known("qwen2.5-0.5b",         "Qwen/Qwen2.5-0.5B",                        (24, 151936,   896,  4864, 14,  2), **_TIED),
    _known("qwen2.5-1.5b",         "Qwen/Qwen2.5-1.5B",                        (28, 151936,  1536,  8960, 12,  2), **_TIED),
    _known("qwen2.5-3b",           "Qwen/Qwen2.5-3B",                          (36, 151936,  2048, 11008, 16,  2), **_TIED),
    _known("qwen2.5-7b",           "Qwen/Qwen2.5-7B",                          (28, 152064,  3584, 18944, 28,  4)),
    _known("qwen2.5-14b",          "Qwen/Qwen2.5-14B",                         (48, 152064,  5120, 13824, 40,  8)),
    _known("qwen3-0.6b",           "Qwen/Qwen3-0.6B",                          (28, 151936,  1024,  3072, 16,  8), head_dim=128, **_TIED),
    _known("qwen3-1.7b",           "Qwen/Qwen3-1.7B",                          (28, 151936,  2048,  6144, 16,  8), **_TIED),
    _known("qwen3-4b",             "Qwen/Qwen3-4B",                            (36, 151936,  2560,  9728, 32,  8), head_dim=128, **_TIED),
    _known("qwen3-8b",             "Qwen/Qwen3-8B",                            (36, 151936,  4096, 12288, 32,  8)),
    _known("gemma2-2b",            "google/gemma-2-2b",                        (26, 256000,  2304,  9216,  8,  4), windows=_GEMMA2, **_GEMMA),
    _known("gemma3-270m",          "google/gemma-3-270m",                      (18, 262144,   640,  2048,  4,  1), windows=_GEMMA3, **_GEMMA),
    _known("gemma3-1b",            "google/gemma-3-1b-pt",                     (26, 262144,  1152,  6912,  4,  1), windows=_GEMMA3, **_GEMMA),
    # the text model; the weights also see images
    _known("gemma3-4b",            "google/gemma-3-4b-pt",                     (34, 262208,  2560, 10240,  8,  4), windows=_GEMMA3_LARGE, **_GEMMA),
    _known("falcon3-7b",           "tiiuae/Falcon3-7B-Base",                   (28, 131072,  3072, 23040, 12,  4)),
    _known("olmo2-7b",             "allenai/OLMo-2-1124-7B",                   (32, 100352,  4096, 11008, 32, 32)),
    _known("granite3.3-2b",        "ibm-granite/granite-3.3-2b-base",          (40,  49152,  2048,  8192, 32,  8), **_TIED),
    # embeddings of 512 numbers, with a projection to the hidden size and one back
    _known("opt-350m",             "facebook/opt-350m",                        (24,  50272,  1024,  4096, 16, 16), lm_head_parameters=50272 * 512, outside_parameters=2 * 512 * 1024, **_OPT),
    _known("opt-1.3b",             "facebook/opt-1.3b",                        (24,  50272,  2048,  8192, 32, 32), **_OPT),
    _known("opt-6.7b",             "facebook/opt-6.7b",                        (32,  50272,  4096, 16384, 32, 32), **_OPT),
    # mixtures of experts                                                      layers vocab    d    heads KV   experts, chosen, d_ff of one
    _sparse("qwen3-30b-a3b",       "Qwen/Qwen3-30B-A3B",                       (48, 151936,  2048, 32,  4), (128, 8, 768), head_dim=128),
    _sparse("gpt-oss-20b",         "openai/gpt-oss-20b",                       (24, 201088,  2880, 64,  8), (32, 4, 2880), head_dim=64, windows=(128, None)),
    _sparse("gpt-oss-120b",        "openai/gpt-oss-120b",                      (36, 201088,  2880, 64,  8), (128, 4, 2880), head_dim=64, windows=(128, None)),
    _sparse("olmoe-1b-7b",         "allenai/OLMoE-1B-7B-0924",                 (16,  50304,  2048, 16, 16), (64, 8, 1024)),
    _sparse("mixtral-8x7b",        "mistralai/Mixtral-8x7B-v0.1",              (32,  32000,  4096, 32,  8), (8, 2, 14336)),
    _mixture("deepseek-v2-lite",   "deepseek-ai/DeepSeek-V2-Lite",             (102400, 2048, 10944, 16, 16, 64), _deepseek_v2_lite()),
])


def known_shape(name: str) -> ModelShape:
    """The shape of a model with a short name.

    Raises:
        ModelError: no such name.
    """
    if name not in MODELS:
        raise ModelError(f"model {name!r} has no known shape{did_you_mean(name, MODELS)}")
    return MODELS[name].shape

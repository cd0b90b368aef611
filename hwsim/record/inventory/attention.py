"""The attention of a decoder layer: its KV entries and states, as transformers' cache holds them, and its matrices."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from hwsim.errors import ModelError
from hwsim.record.inventory.matrices import MatrixModule, matrix_modules
from hwsim.record.inventory.reading import TOKENS

_KEPT = {"keys", "values"}
_STATES = {"conv_states": "convolution", "recurrent_states": "linear"}
_QUERY, _KEY, _VALUE = ("q_proj", "query", "Wq"), ("k_proj", "key", "Wk"), ("v_proj", "value", "Wv")
_FUSED = ("qkv_proj", "query_key_value", "c_attn", "Wqkv")
_OUT = ("o_proj", "out_proj", "dense", "c_proj", "Wo")


class KVOfLayer(NamedTuple):
    """KV entries and states of one layer.

    Attributes:
        keys, values: numbers of the keys and values of one token; 0 without.
        heads: heads of the keys.
        window: most entries that a token reads; None: all.
        states: numbers of the fixed states by kind, ``linear`` and ``convolution``.
        source: layer whose entries it reads; None: its own.
    """

    keys: int = 0
    values: int = 0
    heads: int = 0
    window: int | None = None
    states: Mapping[str, int] = MappingProxyType({})
    source: int | None = None


class Projections(NamedTuple):
    """The matrices of plain attention; `query`, `key` and `value` are the same module if they are fused.

    Attributes:
        query, key, value, out: names within the decoder layer.
        heads, key_value_heads, head_dim: sizes.
    """

    query: str
    key: str
    value: str
    out: str
    heads: int
    key_value_heads: int
    head_dim: int


def kv_of_layers(layers: Any, cache: Any, where: str) -> list[KVOfLayer]:
    """KV entries and states of every layer.

    Args:
        layers: the decoder layers.
        cache: the cache that a pass over `TOKENS` tokens has filled.
        where: the model's class, for messages.

    Raises:
        ModelError: the model keeps no cache, or one that hwsim does not know.
    """
    cache = getattr(cache, "self_attention_cache", cache)  # of a decoder that could also look at an encoder
    parts = getattr(cache, "layers", None)
    if not parts:
        raise ModelError(
            f"{where}: keeps no KV cache that transformers can show ({type(cache).__name__}); hwsim cannot say what a "
            "token reads beside the weights; choose a decoder that is generated from with a cache"
        )
    if len(parts) > len(layers):
        raise ModelError(
            f"{where}: its cache has {len(parts)} parts for {len(layers)} layers, so layers run more than once for "
            "each token; hwsim counts each layer once; choose a model that does not repeat its layers"
        )
    kept = [_kept(part, number, where) for number, part in enumerate(parts)]
    kept += [KVOfLayer()] * (len(layers) - len(kept))
    return [
        own._replace(
            source=_source(layers, kept, number, where), window=own.window or _shared_window(layers, kept, number)
        )
        if _shares(layer)
        else own
        for number, (layer, own) in enumerate(zip(layers, kept, strict=True))
    ]


def _kept(part: Any, number: int, where: str) -> KVOfLayer:
    """What one layer of the cache holds after `TOKENS` tokens."""
    kind = type(part).__name__
    tensors = {name: value for name, value in vars(part).items() if hasattr(value, "shape") and value.ndim > 1}
    unknown = sorted(tensors.keys() - _KEPT)
    if unknown:
        raise ModelError(
            f"{where}: layer {number}: its cache ({kind}) keeps {unknown[0]}, which hwsim does not know; "
            "choose another model"
        )
    keys = values = heads = 0
    window = getattr(part, "sliding_window", None) if tensors else None
    entries = TOKENS if window is None else min(TOKENS, window - 1)  # the next token's own is the last of a window
    if tensors:
        shapes = [tuple(tensors[name].shape) for name in ("keys", "values")]
        if any(len(shape) != 4 or shape[-2] != entries for shape in shapes):
            raise ModelError(
                f"{where}: layer {number}: {TOKENS} tokens fill its cache with keys {list(shapes[0])} and values "
                f"{list(shapes[1])}; hwsim knows one entry for each token; choose another model"
            )
        keys, values = (shape[1] * shape[3] for shape in shapes)
        heads = shapes[0][1]
    states = {}
    for name, label in _STATES.items():
        found = getattr(part, name, None) or {}
        numbers = sum(int(state.numel()) for state in found.values() if state is not None)
        if numbers:
            states[label] = numbers
    return KVOfLayer(keys, values, heads, window, states)


def _shares(layer: Any) -> bool:
    """Whether a layer reads the KV entries of another one."""
    return any(getattr(module, "is_kv_shared_layer", False) is True for module in layer.modules())


def _kind(layer: Any) -> Any:
    """The type of a layer's attention, such as ``sliding_attention``, as transformers names it."""
    return next((module.layer_type for module in layer.modules() if hasattr(module, "layer_type")), None)


def _source(layers: Any, kept: list[KVOfLayer], number: int, where: str) -> int:
    """The layer whose entries a layer reads: the last one before it of the same type that has its own."""
    kind = _kind(layers[number])
    for other in range(number - 1, -1, -1):
        if kept[other].keys and not _shares(layers[other]) and _kind(layers[other]) == kind:
            return other
    raise ModelError(f"{where}: layer {number} shares the KV entries of another layer, and hwsim does not find which")


def _shared_window(layers: Any, kept: list[KVOfLayer], number: int) -> int | None:
    return kept[_source(layers, kept, number, "")].window


def find_projections(layer: Any, hidden: int, kv: KVOfLayer, taken: list[str]) -> Projections | None:
    """The matrices q, k, v and o of a layer with plain attention; None for any other attention.

    Args:
        layer: the decoder layer.
        hidden: the model's hidden size.
        kv: its KV entries.
        taken: names of the matrices of its MLP.
    """
    if not kv.keys or kv.keys != kv.values or kv.source is not None:
        return None
    head_dim = kv.keys // kv.heads
    matrices = [matrix for matrix in matrix_modules(layer) if matrix.name not in taken]
    for parent in _parents(matrices):
        own = {
            matrix.name.rpartition(".")[2]: matrix for matrix in matrices if matrix.name.rpartition(".")[0] == parent
        }
        own |= {name: matrix for matrix in matrices for name in [matrix.name.removeprefix(f"{parent}.")]
                if parent and matrix.name.startswith(f"{parent}.")}  # fmt: skip
        out = _first(own, _OUT)
        if out is None or out.outputs != hidden or out.inputs % head_dim:
            continue
        heads = out.inputs // head_dim
        fused = _first(own, _FUSED)
        if fused is not None and (fused.inputs, fused.outputs) == (hidden, (heads + 2 * kv.heads) * head_dim):
            return _checked(Projections(fused.name, fused.name, fused.name, out.name, heads, kv.heads, head_dim))
        parts = [_first(own, names) for names in (_QUERY, _KEY, _VALUE)]
        sizes = [heads * head_dim, kv.heads * head_dim, kv.heads * head_dim]
        if all(part and (part.inputs, part.outputs) == (hidden, size) for part, size in zip(parts, sizes, strict=True)):
            query, key, value = (part.name for part in parts if part)
            return _checked(Projections(query, key, value, out.name, heads, kv.heads, head_dim))
    return None


def _parents(matrices: list[MatrixModule]) -> list[str]:
    """The modules that hold a matrix, and those that hold them, the deepest first."""
    parents: dict[str, None] = {}
    for matrix in matrices:
        name = matrix.name.rpartition(".")[0]
        while name:
            parents[name], name = None, name.rpartition(".")[0]
    return sorted([*parents, ""], key=lambda name: -name.count("."))


def _checked(found: Projections) -> Projections | None:
    """The projections if every KV head serves the same number of heads."""
    return None if found.heads % found.key_value_heads else found


def _first(matrices: dict[str, MatrixModule], names: tuple[str, ...]) -> MatrixModule | None:
    """The first matrix that exists, by its name or the last part of it."""
    for name in names:
        for key, matrix in matrices.items():
            if key == name or key.endswith(f".{name}"):
                return matrix
    return None

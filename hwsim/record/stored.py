"""How many bytes a model's files take for each matrix that hwsim counts."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from hwsim.errors import one_line
from hwsim.model.stored import StoredBytes, layer_elements, outer_elements
from hwsim.record.checkpoint import place, read_tensors
from hwsim.record.extras import Libraries
from hwsim.record.gguf_file import tensor_places, tensor_sizes
from hwsim.record.inventory import Counted
from hwsim.record.loading import Structure
from hwsim.record.sources import Source

_ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1,
}  # fmt: skip
_LONGEST = 200  # characters of a reason


class Found(NamedTuple):
    """The bytes of a model's matrices in its files, or the reason why they are unknown.

    Attributes:
        stored: the bytes; None: unknown.
        why: the reason; empty if they are known.
    """

    stored: StoredBytes | None
    why: str = ""


class _Tensor(NamedTuple):
    """A tensor of the files: its numbers and bytes; and the reason if its bytes are unknown."""

    numbers: int
    nbytes: int
    unknown: str = ""


class _UnknownError(Exception):
    """Something that makes the bytes unknown."""


def find_stored(source: Source, structure: Structure, libraries: Libraries) -> Found:
    """Find the bytes of each matrix from names, types and shapes of the tensors, without reading their values.

    Bytes are never estimated: a single tensor that cannot be assigned makes all of them unknown. What is wrong with
    the files otherwise, is told when they are loaded.

    Args:
        source: the files.
        structure: the model that they belong to.
        libraries: torch and transformers.
    """
    try:
        tensors, sources = _gguf(source, structure) if source.gguf else _checkpoint(source, structure, libraries)
        parameters = _parameters(structure.empty, tensors, sources, list(structure.inventory.counted))
        return Found(_sorted(structure, parameters))
    except Exception as error:  # damaged files, and formats that a library does not know
        return Found(None, one_line(error)[:_LONGEST])


def _gguf(source: Source, structure: Structure) -> tuple[dict[str, _Tensor], dict[str, list[str]]]:
    """The tensors of a GGUF file, and the names of the tensors of each parameter."""
    path = source.weights[0]
    tensors = {key: _Tensor(count, size) for key, (count, size) in tensor_sizes(path).items()}
    return tensors, tensor_places(path, structure.empty)


def _checkpoint(
    source: Source, structure: Structure, libraries: Libraries
) -> tuple[dict[str, _Tensor], dict[str, list[str]]]:
    """The tensors of a folder, and the names of the tensors of each parameter.

    Scales of fp8 weights count to the bytes of their weights.
    """
    files = read_tensors(source, libraries.torch)
    sources = place(source.name, structure.empty, files).sources
    tensors = {}
    for key, entry in files.items():
        count, item = math.prod(entry.shape), _ITEM_BYTES.get(entry.dtype)
        unknown = "" if item else f"{entry.file.name}: {key} has the type {entry.dtype}"
        tensors[key] = _Tensor(count, count * (item or 0), unknown)
    for key in [key for keys in sources.values() for key in keys]:
        if (scale := tensors.get(f"{key}_scale_inv")) is not None:
            own = tensors[key]
            tensors[key] = _Tensor(own.numbers, own.nbytes + scale.nbytes, own.unknown or scale.unknown)
    return tensors, sources


def _parameters(
    model: Any, tensors: dict[str, _Tensor], sources: dict[str, list[str]], wanted: list[str]
) -> dict[str, tuple[int, int]]:
    """Weights and bytes of each of the wanted parameters; of tied ones, the tensor of either is that of both."""
    names: dict[int, list[str]] = {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in parameters.items():
        names.setdefault(id(parameter), []).append(name)
    sizes = {}
    for name in wanted:
        aliases = [name, *names[id(parameters[name])]]
        keys = next((sources[alias] for alias in aliases if alias in sources), None)
        if keys is None:
            raise _UnknownError(f"hwsim does not find which tensor holds {name}")
        own = [tensors[key] for key in keys]
        if unknown := next((tensor.unknown for tensor in own if tensor.unknown), ""):
            raise _UnknownError(unknown)
        count = sum(tensor.numbers for tensor in own)
        if count != parameters[name].numel():
            raise _UnknownError(
                f"{name} has {parameters[name].numel()} weights, its tensor {keys[0]} has {count}, and hwsim cannot "
                "tell its parts apart"
            )
        sizes[name] = count, sum(tensor.nbytes for tensor in own)
    return sizes


def _sorted(structure: Structure, parameters: dict[str, tuple[int, int]]) -> StoredBytes:
    """The bytes of the parameters, sorted as the weights are counted."""
    shape, counted = structure.shape, structure.inventory.counted
    layers: list[dict[str, int]] = [dict.fromkeys(layer_elements(shape, n), 0) for n in range(shape.num_hidden_layers)]
    outer = dict.fromkeys(outer_elements(shape), 0)
    for name, own in counted.items():
        into = outer if own.layer is None else layers[own.layer]
        for matrix, size in _split(own, *parameters[name]).items():
            into[matrix] += size
    stored = StoredBytes(layers=tuple(layers), **outer)
    stored.check(shape)
    return stored


def _split(counted: Counted, count: int, size: int) -> dict[str, int]:
    """The bytes of each matrix in a parameter of `count` weights and `size` bytes; fused ones share them by weights."""
    if counted.matrices[0][0] == "embedding_row":
        return {"embedding_row": -(-size * counted.matrices[0][1] // count)}
    sizes, before = {}, 0
    for name, weights in counted.matrices:
        sizes[name] = size * (before + weights) // count - size * before // count
        before += weights
    return sizes

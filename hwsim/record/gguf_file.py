"""A GGUF file without its weights, and whether a model takes all of its tensors."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from hwsim.errors import ModelError

READ = {  # further keys of architectures for which transformers reads all that a model needs
    "qwen35": {
        "full_attention_interval", "nextn_predict_layers", "rope.dimension_sections",
        "ssm.conv_kernel", "ssm.group_count", "ssm.inner_size", "ssm.state_size", "ssm.time_step_rank",
    },
    "lfm2": {"shortconv.l_cache"},
}  # fmt: skip
FREQUENCIES, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
WAY_OUT = "give a folder of safetensors of the model instead"


class Gguf(NamedTuple):
    """A GGUF file without its weights.

    Attributes:
        architecture: llama.cpp's name of it.
        keys: the metadata of the architecture, without that name in front.
        general: the other metadata, except long lists.
        tensors: names of the tensors.
        factors: the small tensors that scale rotary frequencies.
    """

    architecture: str
    keys: dict[str, Any]
    general: dict[str, Any]
    tensors: tuple[str, ...]
    factors: dict[str, list[float]]


def read_gguf(path: Path) -> Gguf:
    """The metadata of a GGUF file."""
    status = path.stat()
    return _read(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=2)
def _read(path: Path, _mtime: int, _size: int) -> Gguf:
    metadata, tensors = _metadata(path)
    architecture = str(metadata["general.architecture"])
    start = f"{architecture}."
    factors: dict[str, list[float]] = {}
    if names := {FREQUENCIES, LONG, SHORT} & set(tensors):
        import gguf

        factors = {t.name: t.data.ravel().tolist() for t in gguf.GGUFReader(path).tensors if t.name in names}
    return Gguf(
        architecture,
        {key.removeprefix(start): value for key, value in metadata.items() if key.startswith(start)},
        {key: value for key, value in metadata.items() if not key.startswith(start)},
        tensors,
        factors,
    )


def _metadata(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Metadata, in which long lists may be counts, and names of tensors."""
    from transformers.integrations.gguf.reader import read_gguf_metadata

    metadata, tensors = read_gguf_metadata(str(path))
    return dict(metadata), tuple(tensors)


def tensor_sizes(path: Path) -> dict[str, tuple[int, int]]:
    """The tensors of a GGUF file by name, each with its numbers and its bytes."""
    from transformers.integrations.gguf.reader import GgufHeader

    try:
        tensors = GgufHeader.from_file(str(path)).tensors
        return {tensor.name: (math.prod(tensor.shape), int(tensor.nbytes)) for tensor in tensors}
    except ValueError:  # types that only transformers' older loader knows
        import gguf  # its reader takes seconds where the vocabulary is large

        return {tensor.name: (int(tensor.n_elements), int(tensor.n_bytes)) for tensor in gguf.GGUFReader(path).tensors}


def check_whole(name: str, path: Path) -> None:
    """Refuse a GGUF file that ends before its last tensor.

    Args:
        name: name of the model, for messages.
        path: the file. One whose header transformers cannot read here is left to its loader.

    Raises:
        ModelError: it is truncated.
    """
    from transformers.integrations.gguf.reader import GgufHeader

    try:
        header = GgufHeader.from_file(str(path))
    except Exception:  # types that only its older loader knows, or a damaged header, which that loader reports
        return
    end = header.data_start + max((tensor.offset + tensor.nbytes for tensor in header.tensors), default=0)
    if end > path.stat().st_size:
        raise ModelError(
            f"--model {name}: {path.name} has {path.stat().st_size} bytes, its tensors end at byte {end}; it is "
            "truncated; copy or download it again"
        )


def tensor_places(path: Path, model: Any) -> dict[str, list[str]]:
    """The parameters of a model, each with the tensors of a GGUF file that it is made of.

    Args:
        path: the file.
        model: the model of transformers; its weights may be on the meta device.
    """
    places: dict[str, list[str]] = {}
    for tensor, name in _names(path, model).items():
        places.setdefault(name, []).append(tensor)
    return places


def _names(path: Path, model: Any) -> dict[str, str]:
    """The tensors of a file, each with its name in the model, as transformers' loader for the architecture has it."""
    file = read_gguf(path)
    if file.architecture not in READ:
        taken = _taken(path, model)
        return {tensor: name for tensor in file.tensors if (name := _place(tensor, taken))}
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
    from transformers.integrations.gguf.gguf_conversion_mapping import GGUF_ARCHS

    rules = GGUF_ARCHS[file.architecture](model.config)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    prefix, expected = model.base_model_prefix, model.state_dict()
    return {tensor: rename_source_key(tensor, renamings, converters, prefix, expected)[0] for tensor in file.tensors}


def _place(tensor: str, taken: dict[str, str]) -> str | None:
    """The name in the model of a tensor; stacks of experts have no suffix there, and so none in `taken`."""
    return taken.get(tensor) or taken.get(tensor.removesuffix(".weight"))


def _taken(path: Path, model: Any) -> dict[str, str]:
    """The tensors that transformers' older loader takes for a model, each with its name in the model.

    It takes transformers seconds to say, so the answer for the last file is kept.
    """
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    status = path.stat()
    key = path, status.st_mtime_ns, status.st_size, type(model)
    if key not in _last_taken:
        processor = TENSOR_PROCESSORS.get(read_gguf(path).architecture, TensorProcessor)(config={})
        taken = get_gguf_hf_weights_map(model, processor)
        _last_taken.clear()
        _last_taken[key] = taken
    return _last_taken[key]


_last_taken: dict[tuple[Any, ...], dict[str, str]] = {}


def check_tensors(name: str, path: Path, model: Any) -> None:
    """Check that the model takes every tensor of a GGUF file.

    Args:
        name: name of the model, for messages.
        path: the file.
        model: the model of transformers; its weights may be on the meta device.

    Raises:
        ModelError: it does not.
    """
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    file = read_gguf(path)
    known = {name.replace("_", "") for name in GGUF_SUPPORTED_ARCHITECTURES} | set(GGUF_SUPPORTED_ARCHITECTURES)
    if file.architecture not in known or file.architecture in READ:
        return  # transformers' newer loader, which tells what it does not take
    taken = _taken(path, model)
    odd = [tensor for tensor in file.tensors if not _place(tensor, taken) and tensor not in file.factors]
    if odd:
        more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
        raise ModelError(
            f"--model {name}: {path.name} holds {odd[0]}{more}, which transformers has no place for, so results would "
            f"be wrong; {WAY_OUT}"
        )

"""The tensors of a checkpoint on disk, and the place that transformers gives each of them in a model.

Whatever changes the results is applied or refused: tensors that no module takes, numbers without their scale, and
quantisations that transformers would leave out or keep packed.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from hwsim.errors import ModelError
from hwsim.record.sources import Source, weight_map

_FLOATS = {"F64", "F32", "F16", "BF16", "float64", "float32", "float16", "bfloat16"}
_COMPUTED = re.compile(r"(^|\.)(rotary_emb\.inv_freq|position_ids|masked_bias)$")  # buffers of older transformers
_OTHER_SENSES = re.compile(  # parts of a multimodal checkpoint that a text never passes through
    r"(^|\.)(vision_\w+|visual|audio_\w+|embed_vision|embed_audio|image_newline|\w*multi_modal_projector|mm_projector)\."
)
_DEQUANTISED = {"fp8"}  # quantisations that transformers can turn into plain weights on any device
_PLAIN = "give a checkpoint of plain float weights (dequantised, saved with save_pretrained)"


class Stored(NamedTuple):
    """A tensor in a file."""

    file: Path
    dtype: str  # as the format of the file names it
    shape: tuple[int, ...]


class Placed(NamedTuple):
    """The places of a checkpoint's tensors in a model.

    Attributes:
        names: the model's parameters and buffers, each with the name of its tensor in the files.
        converted: tensors that transformers computes others from, such as those of single experts; not among `names`.
        unexpected: tensors that nothing in the model takes, except those known to change nothing.
        sources: the tensors that each of the model's parameters and buffers is made of, converted ones included.
        conversions: transformers' rule for each parameter that is computed from `converted` ones, and the pattern in
            it that each of its `sources` matches.
    """

    names: dict[str, str]
    converted: list[str]
    unexpected: list[str]
    sources: dict[str, list[str]]
    conversions: dict[str, tuple[Any, list[str]]]


def quantisation(config: Any) -> str | None:
    """The method of a checkpoint's quantisation; None for plain weights."""
    for part in (config, config.get_text_config()):
        if entry := getattr(part, "quantization_config", None):
            fields = entry if isinstance(entry, dict) else entry.to_dict()
            if fields.get("load_in_8bit") or fields.get("load_in_4bit"):
                return "bitsandbytes"
            return str(getattr(fields.get("quant_method"), "value", fields.get("quant_method")))
    return None


def check_quantisation(name: str, config: Any, *, from_disk: bool) -> str | None:
    """The quantisation, if transformers can turn it into plain weights.

    Raises:
        ModelError: it cannot.
    """
    method = quantisation(config)
    if method is None:
        return None
    where = f"--model {name}: config.json: quantization_config.quant_method {method}"
    if method not in _DEQUANTISED:
        raise ModelError(f"{where}: hwsim computes with plain weights, and dequantises fp8 only; {_PLAIN}")
    if from_disk:
        raise ModelError(f"{where}: it cannot be dequantised layer by layer; give more memory, or {_PLAIN}")
    return method


def read_tensors(source: Source, torch: Any) -> dict[str, Stored]:
    """The tensors of the weight files by name, without reading their values.

    Raises:
        ModelError: the index of the shards and the shards disagree.
    """
    tensors: dict[str, Stored] = {}
    for path in source.weights:
        if path.suffix == ".bin":
            content = torch.load(path, map_location="meta", weights_only=True)
            entries = {key: (str(value.dtype).removeprefix("torch."), value.shape) for key, value in content.items()}
        else:
            with open_weights(path) as file:
                slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
                entries = {key: (part.get_dtype(), part.get_shape()) for key, part in slices.items()}
        # transformers lets the last file win
        tensors |= {key: Stored(path, dtype, tuple(shape)) for key, (dtype, shape) in entries.items()}
    if len(source.weights) > 1:
        _check_index(source, tensors)
    return tensors


def _check_index(source: Source, tensors: dict[str, Stored]) -> None:
    """Refuse shards that hold a tensor elsewhere than their index says: transformers would take the other one."""
    stem = "model.safetensors" if source.weights[0].suffix == ".safetensors" else "pytorch_model.bin"
    index = source.folder / f"{stem}.index.json"
    for key, file in weight_map(index).items():
        if key not in tensors:
            raise ModelError(f"--model {source.name}: {index.name} says that {file} holds {key}; it does not")
        if tensors[key].file.name != file:
            raise ModelError(
                f"--model {source.name}: {index.name} says that {file} holds {key}, but {tensors[key].file.name} holds "
                "it, too, and transformers would read that; save the model anew with save_pretrained"
            )


def open_weights(path: Path) -> Any:
    """A safetensors file, opened without mmap.

    A private mapping of a whole file counts against the limit of a process and, on a machine with less memory than the
    file, is refused.
    """
    from safetensors import safe_open

    return safe_open(path, framework="pt", device="cpu", backend="pread")


def check_scales(name: str, tensors: dict[str, Stored]) -> None:
    """Refuse fp8 weights without the scale that their quantisation needs; transformers would take them as they are."""
    for key, stored in tensors.items():
        if stored.dtype not in _FLOATS and f"{key}_scale_inv" not in tensors:
            raise ModelError(
                f"--model {name}: {stored.file.name}: {key} has the type {stored.dtype}, and no {key}_scale_inv is "
                f"there to scale it; {_PLAIN}"
            )


def place(name: str, model: Any, tensors: dict[str, Stored]) -> Placed:
    """Find the places of a checkpoint's tensors, as transformers' loader does and with its own rules of renaming.

    Args:
        name: name of the model, for messages.
        model: the model; its weights may be on the meta device.
        tensors: from `read_tensors`.

    Raises:
        ModelError: two tensors have the same place.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    expected, prefix = model.state_dict(), model.base_model_prefix
    names: dict[str, str] = {}
    converted, unexpected = [], {}
    sources: dict[str, list[str]] = {}
    conversions: dict[str, tuple[Any, list[str]]] = {}
    rule_of = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    for key in sorted(tensors, key=dot_natural_key):  # some rules depend on the order
        target, pattern = rename_source_key(key, renamings, converters, prefix, expected)
        if target not in expected and key in expected:
            target, pattern = rename_source_key(key, [], [], prefix, expected)
        if target not in expected:
            unexpected[target] = key
            continue
        sources.setdefault(target, []).append(key)
        if pattern is not None:
            converted.append(key)
            conversions.setdefault(target, (rule_of[pattern], []))[1].append(pattern)
        elif target in names:
            raise ModelError(
                f"--model {name}: its tensors {names[target]} and {key} have the same place in the model, {target}; "
                "save the model anew with save_pretrained"
            )
        else:
            names[target] = key
    odd = [unexpected[target] for target in that_matter(model, set(unexpected))]
    return Placed(names, converted, odd, sources, conversions)


def that_matter(model: Any, names: set[str]) -> list[str]:
    """Those of the tensors without a place that may change what the model computes."""
    state = SimpleNamespace(missing_keys=set(), unexpected_keys=names)
    model._adjust_missing_and_unexpected_keys(state)  # drops what the model's class says that it does not need
    start = f"{model.base_model_prefix}."
    recomputed = {name.removeprefix(start) for name, _ in model.named_buffers()}
    text_only = model.config is model.config.get_text_config()
    return sorted(
        name
        for name in state.unexpected_keys
        if name.removeprefix(start) not in recomputed
        and not _COMPUTED.search(name)
        and not (text_only and _OTHER_SENSES.search(name))
    )


def check_places(name: str, model: Any, tensors: dict[str, Stored], placed: Placed) -> None:
    """Check that the model takes every tensor, with its shape and as the number that it is.

    Args:
        name: name of the model, for messages.
        model: the model; its weights may be on the meta device.
        tensors: from `read_tensors`.
        placed: from `place`.

    Raises:
        ModelError: it does not.
    """
    expected = model.state_dict()
    pairs = [(expected.get(target), key) for target, key in placed.names.items()]
    for parameter, key in [*pairs, *((None, key) for key in [*placed.converted, *placed.unexpected])]:
        stored = tensors[key]
        if stored.dtype not in _FLOATS and (parameter is None or parameter.is_floating_point()):
            raise ModelError(
                f"--model {name}: {stored.file.name}: {key} has the type {stored.dtype}, and config.json names no "
                f"quantization_config, so its scale is unknown; {_PLAIN}"
            )
        if parameter is not None and tuple(parameter.shape) != stored.shape:
            raise ModelError(
                f"--model {name}: {stored.file.name}: {key} is {list(stored.shape)}, config.json makes it "
                f"{list(parameter.shape)}; they belong to two models"
            )
    check_taken(name, placed.unexpected)


def check_taken(name: str, unexpected: list[str]) -> None:
    """Refuse tensors that nothing in the model takes."""
    if unexpected:
        more = f" and {len(unexpected) - 1} more" if len(unexpected) > 1 else ""
        raise ModelError(
            f"--model {name}: its weights hold {unexpected[0]}{more}, which the model of config.json does not use, so "
            "results would be wrong; mend config.json (attention_bias, mlp_bias, quantization_config), or save the "
            "model anew with save_pretrained"
        )


def check_complete(name: str, missing: set[str]) -> None:
    """Refuse weights that lack tensors."""
    if missing:
        raise ModelError(
            f"--model {name}: its weights lack {len(missing)} tensors, such as {min(missing)}; "
            "they belong to another model, or are incomplete"
        )


def check_loaded(name: str, model: Any, ties: dict[str, str]) -> None:
    """Check a loaded model: its weights are plain numbers, and those that its configuration ties are one.

    Args:
        name: name of the model, for messages.
        model: with its weights.
        ties: the tied parameters, each with the one that it is tied to.

    Raises:
        ModelError: a weight is packed, or a tied one has values of its own.
    """
    for key, parameter in model.named_parameters():
        if str(parameter.dtype).removeprefix("torch.") not in _FLOATS:
            raise ModelError(f"--model {name}: transformers keeps {key} as {parameter.dtype}; {_PLAIN}")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for copy, original in ties.items():
        if parameters.get(copy) is not parameters.get(original):
            refuse_untied(name, copy, original)


def refuse_untied(name: str, copy: str, original: str) -> None:
    """Refuse a model whose files contradict its configuration about tied weights."""
    raise ModelError(
        f"--model {name}: its weights hold {copy}, which differs from {original}, but config.json ties the two; "
        "set tie_word_embeddings to false there, or take the tensor out"
    )

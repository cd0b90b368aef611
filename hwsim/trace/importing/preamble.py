"""The preamble of a router trace: name and sizes of the model, and the bytes of each layer."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hwsim.errors import did_you_mean
from hwsim.model.layers import Experts, LayerShape
from hwsim.model.shape import ModelShape
from hwsim.trace.importing.columns import repeated
from hwsim.trace.importing.lines import LineFile
from hwsim.util.units import printable, shorten

_KEY = re.compile(r"(?<!\S)(\w+)\s*=")
_WHOLE = re.compile(r"[0-9]{1,18}")
_BYTES = ("expert_bytes", "dense_bytes")
_LIMITS = {"n_layer": (1, 1000), "n_expert": (1, 32_767), "n_expert_used": (1, 32_767)} | dict.fromkeys(
    _BYTES, (0, 10**15)
)
_LEAST_ROW = 10  # bytes of the shortest row, "0,0,0,0,0" and its end


class Entry(NamedTuple):
    """A value of the preamble, and the number of its line."""

    value: Any
    line: int


@dataclass
class Entries:
    """What a preamble says, not yet checked.

    Attributes:
        model: values that hold for the whole model, by name.
        layers: values of single layers, by layer and name.
        lines: number of lines of the preamble.
    """

    model: dict[str, Entry] = field(default_factory=dict)
    layers: dict[int, dict[str, Entry]] = field(default_factory=dict)
    lines: int = 0


class Preamble(NamedTuple):
    """A checked preamble.

    Attributes:
        model: name of the model, without folder and ``.gguf``.
        experts: of each layer.
        used: experts of a token in a layer.
        expert_bytes: bytes of an expert, by layer; 0: the layer has none.
        dense_bytes: bytes of the layer that every token reads, by layer.
        other: all other values, as the file has them.
        notes: what had to be assumed.
    """

    model: str
    experts: int
    used: int
    expert_bytes: list[int]
    dense_bytes: list[int]
    other: dict[str, Any]
    notes: list[str]

    @property
    def layers(self) -> int:
        """The number of layers."""
        return len(self.expert_bytes)

    def shape(self) -> ModelShape:
        """The shape of the model: bytes of each layer, and no dimensions."""
        layers = tuple(
            LayerShape(
                dense_bytes=dense,
                experts=Experts(count=self.experts, used=self.used, bytes=expert) if expert else None,
            )
            for expert, dense in zip(self.expert_bytes, self.dense_bytes, strict=True)
        )
        return ModelShape(
            name=self.model, num_hidden_layers=self.layers, hidden_size=0, intermediate_size=0, num_attention_heads=0,
            num_key_value_heads=0, head_dim=0, vocab_size=0, layers=layers,
        )  # fmt: skip


def read_comments(source: LineFile, lines: Iterable[str]) -> Entries:
    """The ``key=value`` pairs of the comment lines at the top of a file; comments without pairs are left out.

    Raises:
        TraceError: a key or a layer is there twice, or a layer has an unknown key.
    """
    entries = Entries()
    for number, line in enumerate(lines, 1):
        if not line.startswith("#"):
            break
        entries.lines = number
        pairs = _pairs(line[1:])
        values = {name: Entry(value, number) for name, value in pairs}
        if twice := repeated(name for name, _ in pairs):
            raise source.error(f"gives {shorten(twice)} twice; delete one", number)
        if "layer" not in values:
            for name in values:
                if name in entries.model:
                    raise source.error(f"gives {name} again after line {entries.model[name].line}; delete one", number)
            entries.model |= values
            continue
        layer = whole(source, "layer", values.pop("layer"), 0, 999)
        if layer in entries.layers:
            raise source.error(f"gives layer {layer} again; delete one", number)
        for name in values:
            if name not in _BYTES:
                raise source.error(f"unknown key {shorten(repr(name))} of a layer{did_you_mean(name, _BYTES)}", number)
        entries.layers[layer] = values
    return entries


def _pairs(text: str) -> list[tuple[str, str]]:
    """Keys and values of ``key=value key=value``; a value ends before the next key, so it may hold spaces."""
    keys = list(_KEY.finditer(text))
    ends = [*(key.start() for key in keys[1:]), len(text)]
    return [(key[1], text[key.end() : end].strip()) for key, end in zip(keys, ends, strict=False)]


def read_object(source: LineFile, values: dict[str, Any]) -> Entries:
    """The same from the first object of JSON lines, in which bytes are a number, or a list with one for each layer."""
    entries = Entries(lines=1)
    for name, value in values.items():
        if name in _BYTES and isinstance(value, list):
            for layer, size in enumerate(value[: _LIMITS["n_layer"][1] + 1]):
                entries.layers.setdefault(layer, {})[name] = Entry(size, 1)
        else:
            entries.model[name] = Entry(value, 1)
    return entries


def check(source: LineFile, entries: Entries) -> Preamble:
    """Check a preamble.

    Raises:
        TraceError: a value is missing, impossible, or contradicts another one.
    """
    model = dict(entries.model)
    name = model.pop("model", None)
    title = re.split(r"[\\/]", str(name.value if name else ""))[-1].removesuffix(".gguf").strip()
    if name is None or not title or not isinstance(name.value, str):
        raise source.error("the preamble names no model; add model=NAME to it", name.line if name else None)
    counts = {key: _required(source, model, key) for key in ("n_layer", "n_expert", "n_expert_used")}
    layers, used = counts["n_layer"], counts["n_expert_used"]
    if used > counts["n_expert"]:
        raise source.error(f"n_expert_used is {used}, more than n_expert, which is {counts['n_expert']}")
    for layer, values in entries.layers.items():
        if layer >= layers:
            line = next(iter(values.values())).line if values else None
            raise source.error(f"gives bytes of layer {layer}, n_layer is {layers}; layers are numbered from 0", line)
    expert_bytes = _by_layer(source, "expert_bytes", entries, model, layers)
    dense_bytes = _by_layer(source, "dense_bytes", entries, model, layers)
    notes = []
    if expert_bytes is None:
        raise source.error("the preamble has no expert_bytes; add it for each layer, or once if all layers are alike")
    if not any(expert_bytes):
        raise source.error("expert_bytes is 0 in every layer; a layer with experts needs their bytes")
    if dense_bytes is None:
        notes.append("dense_bytes is not given: 0 in every layer, so reads of all other weights are left out")
    rows = used * sum(size > 0 for size in expert_bytes)
    if rows * _LEAST_ROW > source.size:
        raise source.error(f"one token has {rows} rows by n_layer and n_expert_used, the file only {source.size} bytes")
    other = {printable(key): _plain(source, key, entry) for key, entry in model.items()}
    return Preamble(printable(title), counts["n_expert"], used, expert_bytes, dense_bytes or [0] * layers, other, notes)


def whole(source: LineFile, name: str, entry: Entry, least: int, most: int) -> int:
    """A whole number of the preamble within bounds."""
    value = entry.value
    if isinstance(value, str) and _WHOLE.fullmatch(value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        shown = shorten(repr(entry.value))
        raise source.error(f"{name} is {shown}; must be a whole number from {least} to {most}", entry.line)
    return value


def _plain(source: LineFile, name: str, entry: Entry) -> Any:
    """A value that a header can hold."""
    value = entry.value
    if isinstance(value, str):
        return printable(value)
    if value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise source.error(f"{shorten(repr(name))} is {shorten(repr(value))}; must be a text or a number", entry.line)


def _required(source: LineFile, model: dict[str, Entry], name: str) -> int:
    if name not in model:
        raise source.error(f"the preamble has no {name}; add {name}=NUMBER to it, it cannot be seen in the rows")
    return whole(source, name, model.pop(name), *_LIMITS[name])


def _by_layer(source: LineFile, name: str, entries: Entries, model: dict[str, Entry], layers: int) -> list[int] | None:
    """The bytes of each layer; None if the preamble does not say."""
    limits = _LIMITS[name]
    own = {layer: values[name] for layer, values in entries.layers.items() if name in values}
    common = model.pop(name, None)
    if common is not None:
        if own:
            line = next(iter(own.values())).line
            raise source.error(
                f"gives {name} of a layer, line {common.line} that of all layers; give one of both", line
            )
        return [whole(source, name, common, *limits)] * layers
    if not own:
        return None
    if absent := [layer for layer in range(layers) if layer not in own]:
        raise source.error(f"{name} of layer {absent[0]} is missing, n_layer is {layers}; give it for every layer")
    return [whole(source, name, own[layer], *limits) for layer in range(layers)]

"""The header of a trace: JSON in the member ``header``, checked before anything else in the file is used."""

from __future__ import annotations

import json
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hwsim.errors import TraceError
from hwsim.model.shape import EXPERT_SIGNALS, SIGNALS, ModelShape
from hwsim.model.stored import StoredBytes
from hwsim.trace.encoding import FLOAT16, Encoding
from hwsim.trace.sequences import Sequences
from hwsim.util.explain import problem
from hwsim.util.units import shorten

FORMAT = "hwsim-trace"
VERSION = 1
STORED_UNKNOWN = "stored_unknown"  # field of the provenance: why a recording has no stored bytes

_Signal = Literal[
    "input", "up", "gate", "glu", "attn_input", "attn_output",
    "router", "router_ahead", "experts", "expert_weights", "expert_input", "expert_glu",
]  # fmt: skip

EXACT: dict[str, np.dtype[Any]] = {
    "router": np.dtype("<f4"),
    "router_ahead": np.dtype("<f4"),
    "experts": np.dtype("<i2"),
    "expert_weights": np.dtype("<f4"),
}
"""Signals that are stored as they are, whatever the encoding. Rows of ``experts`` with fewer than `Experts.used` chosen
experts end in -1; a row of a prompt holds only -1 where the layer did not compute that token."""

RESIDENCY, ACCEPTED = "residency", "accepted"
"""Optional members: ``layers/000/residency``, uint8 ``[tokens, used]``, whether the chosen expert was in the cache of
the device that ran the model; and ``accepted``, uint8 ``[tokens]``, whether a draft of the token would be right."""


class Sequence(BaseModel):
    """One window of text: `tokens` in all, of which the first `prompt` are prefilled densely, not decoded."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    tokens: int = Field(gt=0)
    prompt: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Sequence:
        if self.prompt >= self.tokens:
            raise ValueError(f"prompt {self.prompt} leaves nothing to decode of {self.tokens} tokens")
        return self


class TraceHeader(BaseModel):
    """What a trace holds. Fields that later versions add are kept and ignored.

    Attributes:
        origin: whether a model was recorded, or the signals were drawn.
        model: shape of the model.
        signals: names of the signals.
        sequences: windows of the text.
        encoding: how signals are stored.
        stored: bytes of the model's matrices in the files that were recorded; None: unknown.
        uncounted: numbers of the model's parameters that `model` does not count, by the reason: norms, biases and
            scales, tables of which a token reads a row, and what a text never uses.
        provenance: everything else that decides the signals.
    """

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    format: Literal["hwsim-trace"] = "hwsim-trace"
    version: Literal[1] = 1
    origin: Literal["recorded", "synthetic"]
    model: ModelShape
    signals: list[_Signal] = Field(min_length=1)
    sequences: list[Sequence] = Field(min_length=1)
    encoding: Encoding = FLOAT16
    uncounted: dict[str, int] = Field(default_factory=dict)
    stored: StoredBytes | None = None
    provenance: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> TraceHeader:
        if len(set(self.signals)) != len(self.signals):
            raise ValueError(f"signals {self.signals} name one twice")
        if not self.model.gated and {"up", "gate"} & set(self.signals):
            raise ValueError(f"signals {self.signals}: a model without a gate has input and glu only")
        if absent := [signal for signal in self.signals if not self.model.layers_with(signal)]:
            raise ValueError(f"signals {self.signals}: no layer of the model has {absent[0]}")
        if "expert_glu" in self.signals and self.encoding != FLOAT16:
            raise ValueError(
                f"signals {self.signals}: expert_glu is stored as float16, not with encoding {self.encoding}"
            )
        if self.stored is not None:
            self.stored.check(self.model)
        return self

    @property
    def stored_unknown(self) -> str:
        """Reason why `stored` is None, as the recording found it; empty if there is none."""
        return str(self.provenance.get(STORED_UNKNOWN, ""))

    @property
    def tokens(self) -> int:
        """Tokens of all sequences: the length of every signal's first axis."""
        return Sequences(self.sequences).tokens

    @property
    def decoded(self) -> int:
        """Tokens that are decoded: all but the prompts."""
        return Sequences(self.sequences).decoded_tokens

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence: what the KV cache must hold."""
        return Sequences(self.sequences).longest

    def without_additions(self) -> TraceHeader:
        """The header without what earlier versions did not write and the hash of the weights decides."""
        provenance = {name: value for name, value in self.provenance.items() if name != STORED_UNKNOWN}
        return self.model_copy(update={"stored": None, "uncounted": {}, "provenance": provenance})

    def members(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Names, shapes ``[tokens, ...]`` and types of the signals' members."""
        tokens = self.tokens
        return {
            member_name(layer, signal) + part: ((tokens, *shape), dtype)
            for layer in range(self.model.num_hidden_layers)
            for signal in self.signals
            if (width := self.model.signal_width(signal, layer))  # a layer without an MLP has none
            for part, (shape, dtype) in self._parts(layer, signal, width).items()
        }

    def _parts(self, layer: int, signal: str, width: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """The shape and type of one stored row of each part of a signal, by suffix."""
        if signal in EXACT:
            return {"": ((width,), EXACT[signal])}
        parts = self.encoding.parts(width)
        experts = self.model.by_layer[layer].experts
        if signal == "expert_glu" and experts:
            return {"": ((experts.used, experts.intermediate_size), parts[""][1])}
        return parts

    def to_array(self) -> np.ndarray:
        """The member ``header``: a 0-d unicode array of JSON; equal headers give equal bytes."""
        data = self.model_dump()
        del data["encoding"]
        if not self.uncounted:  # left out, as before it existed
            del data["uncounted"]
        if self.encoding != FLOAT16:  # left out, as before other encodings existed
            data["encoding"] = self.encoding.model_dump(exclude_none=True)
        if self.stored is None:
            del data["stored"]
        return np.array(json.dumps(data, sort_keys=True, ensure_ascii=True, allow_nan=False))


def member_name(layer: int, signal: str) -> str:
    """Member of one layer's signal, without ``.npy``: ``layers/003/glu``."""
    return f"layers/{layer:03d}/{signal}"


def parse_header(text: str, path: object) -> TraceHeader:
    """Read and check a header.

    Raises:
        TraceError: not a header of this format and version, with the field and the rule.
    """
    try:
        data = json.loads(text)
        # refuses what Python accepts but JSON and UTF-8 do not allow: NaN, infinity, half of a surrogate pair
        json.dumps(data, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{path}: header is not JSON; this is no hwsim trace") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise TraceError(f'{path}: header has no format: "{FORMAT}"; this is no hwsim trace')
    if data.get("version") != VERSION:
        raise TraceError(
            f"{path}: header.version is {data.get('version')!r}, this hwsim reads version {VERSION}; "
            "record the trace again or update hwsim"
        )
    try:
        return TraceHeader.model_validate(data)
    except ValidationError as error:
        issue = problem(error)
        value_note = f" (got {shorten(repr(issue.value))})" if issue.kind == "value_error" else ""
        raise TraceError(f"{path}: {issue._replace(loc=('header', *issue.loc)).text}{value_note}") from error


__all__ = [
    "ACCEPTED", "EXACT", "EXPERT_SIGNALS", "FORMAT", "RESIDENCY", "SIGNALS", "VERSION", "Sequence", "TraceHeader",
    "member_name", "parse_header",
]  # fmt: skip

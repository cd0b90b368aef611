"""The layers of a model whose layers differ: attention, KV entries, states and MLP of each."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

KINDS = ("full", "window", "latent", "linear", "convolution", "shared", "none")
"""Kinds of attention: all earlier tokens; the last n tokens; compressed keys and values (MLA); a recurrent state
(linear attention, Mamba); a short convolution; the KV entries of another layer; no mixing of tokens at all. A layer
that has two, such as attention beside Mamba, joins their names with ``+``."""

_MOST = 10**13
_Count = Annotated[int, Field(ge=0, le=_MOST)]


def without_defaults(dumped: dict[str, Any], model: type[BaseModel], names: Collection[str]) -> dict[str, Any]:
    """The dump of a model, without those of the fields `names` that have their default."""
    defaults = {name: model.model_fields[name].get_default(call_default_factory=True) for name in names}
    return {name: value for name, value in dumped.items() if name not in defaults or value != defaults[name]}


class Experts(BaseModel):
    """The experts of one layer, of which a router chooses a few for each token.

    Attributes:
        count: number of experts.
        used: experts that the model's router chooses for a token.
        intermediate_size: neurons of an expert; 0 if only its bytes are known.
        input_size: numbers of a vector that enters an expert and leaves it, if it is not the hidden size; else 0.
        gated: whether an expert has a gate.
        shared_parameters: weights of experts that every token reads, gates of their output included.
        shared_gate: whether the output of the shared experts is scaled by a sigmoid gate.
        bytes: bytes of an expert, if they are known in place of its matrices.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    count: int = Field(gt=0, le=32_767)
    used: int = Field(gt=0)
    intermediate_size: _Count = 0
    input_size: _Count = 0
    gated: bool = True
    shared_parameters: _Count = 0
    shared_gate: bool = False
    bytes: int | None = Field(None, gt=0, le=10**15)

    @model_validator(mode="after")
    def _check(self) -> Experts:
        if self.used > self.count:
            raise ValueError(f"used {self.used} is more than the {self.count} experts")
        if (self.intermediate_size > 0) == (self.bytes is not None):
            raise ValueError("intermediate_size or bytes of an expert must be given, and not both")
        return self

    @model_serializer(mode="wrap")
    def _short(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_defaults(dump(self), Experts, Experts.model_fields.keys() - {"count", "used"})


class LayerShape(BaseModel):
    """One decoder layer, in numbers of weights and of stored numbers.

    Attributes:
        attention: kinds of attention, see `KINDS`.
        window: most KV entries that a token reads, its own included; None: all.
        kv_elements: numbers that each token adds to this layer's KV cache.
        kv_from: layer whose KV entries this layer reads; None: its own.
        state_elements: numbers of the fixed state, which every token reads and writes.
        macs_per_entry: multiplications of one token's attention for each KV entry.
        num_attention_heads, num_key_value_heads, head_dim: of the matrices q, k, v and o; 0 if the layer's attention
            has other matrices.
        other_parameters: weights of all other matrices that a token reads, routers included, except those of MLP and
            experts.
        intermediate_size: neurons of the MLP that every token reads; 0 if the layer has none.
        gated: whether the MLP has a gate.
        experts: the experts; None in a layer without a router.
        dense_bytes: bytes that every token reads, if they are known in place of the matrices.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    attention: str = Field("full", min_length=1)
    window: int | None = Field(None, gt=0)
    kv_elements: _Count = 0
    kv_from: int | None = Field(None, ge=0)
    state_elements: _Count = 0
    macs_per_entry: _Count = 0
    num_attention_heads: _Count = 0
    num_key_value_heads: _Count = 0
    head_dim: _Count = 0
    other_parameters: _Count = 0
    intermediate_size: _Count = 0
    gated: bool = True
    experts: Experts | None = None
    dense_bytes: int | None = Field(None, ge=0, le=10**15)

    @model_validator(mode="after")
    def _check(self) -> LayerShape:
        if unknown := [kind for kind in self.attention.split("+") if kind not in KINDS]:
            raise ValueError(f"attention {unknown[0]!r} is not one of {', '.join(KINDS)}")
        heads = (self.num_attention_heads, self.num_key_value_heads, self.head_dim)
        if any(heads) and not all(heads):
            raise ValueError("num_attention_heads, num_key_value_heads and head_dim must all be given, or none")
        if self.kv_from is not None and self.kv_elements:
            raise ValueError("kv_from and kv_elements: a layer that reads another layer's entries adds none")
        if self.dense_bytes is not None and (any(heads) or self.other_parameters or self.intermediate_size):
            raise ValueError("dense_bytes: stands for all matrices that every token reads; name none beside it")
        return self

    @model_serializer(mode="wrap")
    def _short(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_defaults(dump(self), LayerShape, LayerShape.model_fields.keys() - {"attention"})


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


Layers = Annotated[tuple[LayerShape, ...], BeforeValidator(_tuple)]
"""Layers in order; JSON gives a list."""

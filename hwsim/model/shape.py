"""The shape of a model: layers, matrices, units, bytes. No weights and no torch.

A layer has the matrices ``q k v o`` (attention) and ``gate up down`` (MLP; without a gate ``up down``), each stored
as ``[rows, columns]`` = ``[outputs, inputs]``, as ``torch.nn.Linear`` does. Signals are what a trace records.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Annotated, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

ATTENTION = ("q", "k", "v", "o")
MLP = ("gate", "up", "down")

# matrices of its own layer that a signal has passed through; a mask on one of them cannot be decided from the signal
MADE_BY: dict[str, frozenset[str]] = {
    "attn_input": frozenset(),
    "attn_output": frozenset("qkv"),
    "input": frozenset("qkvo"),
    "up": frozenset("qkvo") | {"up"},
    "gate": frozenset("qkvo") | {"gate"},
    "glu": frozenset("qkvo") | {"up", "gate"},
}
SIGNALS = tuple(MADE_BY)

# norms of the weights that a trace may hold: the Euclidean norm of each unit over some slices of its layer. A mask can
# be decided from them as from a signal; they are known before any signal
NORMS: dict[str, tuple[str, ...]] = {
    "norm_input": ("gate.column", "up.column"),
    "norm_down": ("down.column",),
}


class Matrix(NamedTuple):
    """Shape of one weight matrix: `rows` outputs, `columns` inputs."""

    rows: int
    columns: int

    @property
    def elements(self) -> int:
        """Number of weights."""
        return self.rows * self.columns


_Dimension = Annotated[int, Field(gt=0, le=10**8)]


class ModelShape(BaseModel):
    """The fields of a Hugging Face config that decide which weights exist, under the same names."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field(min_length=1)
    num_hidden_layers: int = Field(gt=0, le=1000)
    hidden_size: _Dimension
    intermediate_size: _Dimension
    num_attention_heads: _Dimension
    num_key_value_heads: _Dimension
    head_dim: _Dimension
    vocab_size: _Dimension
    tie_word_embeddings: bool = False
    hidden_act: str = "silu"
    gated: bool = True

    @model_validator(mode="after")
    def _check(self) -> ModelShape:
        if self.num_key_value_heads > self.num_attention_heads:
            raise ValueError(
                f"num_key_value_heads {self.num_key_value_heads} is more than the {self.num_attention_heads} heads"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} must be a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        return self

    def matrices(self) -> dict[str, Matrix]:
        """The matrices of one layer by name; all layers have the same."""
        heads = self.num_attention_heads * self.head_dim
        pairs = self.num_key_value_heads * self.head_dim
        hidden, neurons = self.hidden_size, self.intermediate_size
        matrices = {
            "q": Matrix(heads, hidden),
            "k": Matrix(pairs, hidden),
            "v": Matrix(pairs, hidden),
            "o": Matrix(hidden, heads),
        }
        if self.gated:
            matrices["gate"] = Matrix(neurons, hidden)
        return matrices | {"up": Matrix(neurons, hidden), "down": Matrix(hidden, neurons)}

    @property
    def mlp(self) -> tuple[str, ...]:
        """Names of the MLP's matrices: three with a gate, else two."""
        return MLP if self.gated else MLP[1:]

    @property
    def mlp_parameters(self) -> int:
        """Weights of one layer's MLP."""
        return len(self.mlp) * self.hidden_size * self.intermediate_size

    @property
    def attention_parameters(self) -> int:
        """Weights of one layer's attention."""
        matrices = self.matrices()
        return sum(matrices[name].elements for name in ATTENTION)

    def signal_width(self, signal: str) -> int:
        """Width of a recorded signal, ``[tokens, width]``, or of a norm, ``[width]``."""
        if signal in ("up", "gate", "glu", "norm_down"):
            return self.intermediate_size
        if signal == "attn_output":
            return self.num_attention_heads * self.head_dim
        return self.hidden_size


FORMATS: dict[str, float] = {
    "q4_0": 4.5, "q4_1": 5.0, "q5_0": 5.5, "q5_1": 6.0, "q8_0": 8.5, "q2_k": 2.625, "q3_k": 3.4375, "q4_k": 4.5,
    "q5_k": 5.5, "q6_k": 6.5625, "int4-g32": 4.5, "int4-g64": 4.25, "int4-g128": 4.125, "int8": 8.0, "f16": 16.0,
    "bf16": 16.0, "f32": 32.0,
}  # fmt: skip
"""Bits of one weight including its share of scales: ggml's blocks as `gguf` counts them; int4-gN has one f16 per N."""


def _bits(value: object) -> object:
    if isinstance(value, str) and value.strip().lower() in FORMATS:
        return FORMATS[value.strip().lower()]
    if isinstance(value, str):
        try:
            return float(Fraction(value) if "/" in value else value)
        except (ValueError, ZeroDivisionError, OverflowError) as error:
            raise ValueError(f"{value!r} is not a number of bits, nor one of {', '.join(FORMATS)}") from error
    return value


_Bits = Annotated[float, BeforeValidator(_bits), Field(ge=0.01, le=64)]


class Bits(BaseModel):
    """Bits of one stored number, by part of the model; may be fractional where groups carry scales (Q4_0: 4.5)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mlp: _Bits = 4.0
    attention: _Bits = 4.0
    lm_head: _Bits = 4.0
    kv_cache: _Bits = 8.0
    predictor: _Bits = 4.0
    adapter: _Bits = 16.0

    def of(self, matrix: str) -> float:
        """Bits of a layer's matrix."""
        return self.mlp if matrix in MLP else self.attention


def stored_bytes(elements: int, bits: float) -> int:
    """Bytes of `elements` numbers of `bits` bits: ceil(elements x bits / 8), computed exactly."""
    return math.ceil(elements * Fraction(bits).limit_denominator(10**6) / 8)


class Footprint(NamedTuple):
    """Bytes of a model's parts, summed over all layers. Embedding and norms are not counted."""

    attention: int
    lm_head: int
    mlp: int
    kv_entries: tuple[int, ...]  # one token's keys and values, of each layer

    @property
    def weights(self) -> int:
        """Bytes of all weights, without the KV cache."""
        return self.attention + self.lm_head + self.mlp


def footprint(model: ModelShape, bits: Bits) -> Footprint:
    """Bytes of the parts of `model`, each matrix rounded up to whole bytes."""
    layers, matrices = model.num_hidden_layers, model.matrices()
    return Footprint(
        attention=layers * sum(stored_bytes(matrices[name].elements, bits.attention) for name in ATTENTION),
        lm_head=stored_bytes(model.vocab_size * model.hidden_size, bits.lm_head),
        mlp=layers * sum(stored_bytes(matrices[name].elements, bits.mlp) for name in model.mlp),
        kv_entries=(stored_bytes(2 * model.num_key_value_heads * model.head_dim, bits.kv_cache),) * layers,
    )

"""The shape of a model: layers, matrices, units, bytes. No weights and no torch.

A plain layer has the matrices ``q k v o`` (attention) and ``gate up down`` (MLP; without a gate ``up down``), each
stored as ``[rows, columns]`` = ``[outputs, inputs]``, as ``torch.nn.Linear`` does. A sparse layer has experts, each
with the matrices ``expert_gate expert_up expert_down``. `hwsim.model.layers` describes layers with other matrices,
which no policy cuts. Signals are what a trace records.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from hwsim.errors import ModelError
from hwsim.model.layers import Experts, Layers, LayerShape, without_defaults

ATTENTION = ("q", "k", "v", "o")
MLP = ("gate", "up", "down")
EXPERT = ("expert_gate", "expert_up", "expert_down")

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

# signals of sparse layers: the router's logits [experts]; the chosen experts by falling rank and their weights in the
# sum, [used] each; what enters the experts, [hidden_size]; act(gate) x up of each chosen expert, [used, width]
EXPERT_SIGNALS = ("router", "experts", "expert_weights", "expert_input", "expert_glu")
MADE_BY |= dict.fromkeys(EXPERT_SIGNALS[:-1], frozenset("qkvo"))
MADE_BY["expert_glu"] = frozenset("qkvo") | {"expert_up", "expert_gate"}

# logits of a layer's router on what enters the experts of the layer before, [experts]: the product with its matrix, as
# if nothing lay between the two layers. Prefetch rules may read it, policies may not
ROUTER_AHEAD = "router_ahead"

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


_Dimension = Annotated[int, Field(ge=0, le=10**8)]
_Weights = Annotated[int, Field(ge=0, le=10**13)]

_DIMENSIONS = (
    "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
)  # fmt: skip

# fields that tell where a model differs from a plain decoder, all of whose layers are alike; left out of a header that
# does not need them, which other versions of hwsim then read, too
_BEYOND_PLAIN = ("layers", "lm_head_parameters", "outside_parameters", "embedding_row", "inner_norm")


class ModelShape(BaseModel):
    """The fields of a Hugging Face config that decide which weights exist, under the same names.

    The fields from `layers` on describe what differs from a plain decoder; for layers that are not alike the others
    name the largest: `intermediate_size` is that of the widest MLP that every token reads, 0 if there is none.
    If only bytes of the layers are known, dimensions are 0.

    Attributes:
        layers: each layer, in order; empty: all layers are alike, with full attention.
        lm_head_parameters: weights of the LM head; None: vocab_size x hidden_size.
        outside_parameters: weights of other matrices outside the layers that every token reads, such as projections
            between the embedding and the hidden size.
        embedding_row: numbers that every token looks up in tables besides the embedding of its own width, such as
            embeddings for each layer; they are read from Flash.
        inner_norm: whether a norm lies between the product of gate and up and the down projection, so that `glu` is
            not that product.
    """

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
    layers: Layers = ()
    lm_head_parameters: _Weights | None = None
    outside_parameters: _Weights = 0
    embedding_row: _Weights = 0
    inner_norm: bool = False
    _whole: ModelShape | None = PrivateAttr(None)
    _experts: Experts | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _check(self) -> ModelShape:
        self._check_dimensions()
        if self.num_key_value_heads > self.num_attention_heads:
            raise ValueError(
                f"num_key_value_heads {self.num_key_value_heads} is more than the {self.num_attention_heads} heads"
            )
        if self.num_key_value_heads and self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} must be a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.layers and len(self.layers) != self.num_hidden_layers:
            raise ValueError(f"layers has {len(self.layers)} entries, num_hidden_layers is {self.num_hidden_layers}")
        for number, layer in enumerate(self.layers):
            self._check_layer(number, layer)
        if self.layers and not any(layer.intermediate_size or layer.experts for layer in self.layers):
            raise ValueError("layers: none has an MLP or experts")
        return self

    def _check_dimensions(self) -> None:
        """Refuse dimensions of 0 where matrices have them."""
        unknown = (
            {"intermediate_size"} if self.layers and not any(own.intermediate_size for own in self.layers) else set()
        )
        if self.by_bytes:
            unknown = set(_DIMENSIONS)
        for name in _DIMENSIONS:
            if getattr(self, name) == 0 and name not in unknown:
                raise ValueError(f"{name} must be more than 0")

    def _check_layer(self, number: int, layer: LayerShape) -> None:
        where = f"layers.{number}"
        if layer.intermediate_size > self.intermediate_size:
            raise ValueError(
                f"{where}: intermediate_size {layer.intermediate_size} is more than the model's "
                f"{self.intermediate_size}"
            )
        if layer.intermediate_size and layer.gated != self.gated:
            raise ValueError(f"{where}: gated differs from the model's")
        if layer.kv_from is not None:
            other = self.layers[layer.kv_from] if layer.kv_from < len(self.layers) else None
            if other is None or not other.kv_elements:
                raise ValueError(f"{where}: kv_from {layer.kv_from} names no layer with KV entries")

    @model_serializer(mode="wrap")
    def _short(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        dumped = without_defaults(dump(self), ModelShape, _BEYOND_PLAIN)
        if "layers" in dumped:
            dumped["layers"] = list(dumped["layers"])  # as JSON has it, so that a dump can be compared with a file
        return dumped

    # ------------------------------------------------------------------ layers

    @property
    def by_layer(self) -> tuple[LayerShape, ...]:
        """Every layer, also if all are alike."""
        if self.layers:
            return self.layers
        heads = self.num_attention_heads, self.num_key_value_heads, self.head_dim
        return (_plain_layer(*heads, self.intermediate_size, self.gated),) * self.num_hidden_layers

    @property
    def by_bytes(self) -> bool:
        """Whether only bytes of the layers are known, as of a router trace that another program wrote."""
        return bool(self.layers) and all(layer.dense_bytes is not None for layer in self.layers)

    @property
    def experts(self) -> Experts | None:
        """The experts of this layer, in the view of a layer; of the first layer that has any, in a whole model."""
        if self._whole is not None:
            return self._experts
        return next((layer.experts for layer in self.layers if layer.experts), None)

    @property
    def mlps_alike(self) -> bool:
        """Whether all layers have an MLP of the same width."""
        return all(layer.intermediate_size == self.intermediate_size for layer in self.layers)

    def check_dense(self, purpose: str) -> None:
        """Refuse a mixture of experts, for a `purpose` that needs an MLP that every token reads.

        Raises:
            ModelError: it has experts.
        """
        if self.experts is not None:
            raise ModelError(
                f"{self.name}: is a mixture of experts, and {purpose} needs one MLP in each layer, which every token "
                "reads; choose a dense model"
            )

    def check_alike(self, purpose: str) -> None:
        """Refuse a model whose MLPs differ between layers, for a `purpose` that needs one width.

        Raises:
            ModelError: the layers differ, or it has experts.
        """
        self.check_dense(purpose)
        if not self.mlps_alike:
            widths = sorted({layer.intermediate_size for layer in self.by_layer})
            raise ModelError(
                f"{self.name}: its layers have {' or '.join(map(str, widths))} neurons, and {purpose} needs the same "
                "number in all layers; choose a model whose MLPs are alike"
            )

    def at(self, layer: int) -> ModelShape | None:
        """The shape that a policy sees of one layer: a model whose layers are all like it.

        None for a layer that has neither an MLP nor experts.

        It has the number of layers of the whole model, which is its `whole`. Attention without matrices q, k, v and o
        keeps the sizes of the model, but `matrices` of the layer lacks them.
        """
        if not self.layers:
            return self
        own = self.layers[layer]
        if not own.intermediate_size and not own.experts:
            return None
        fields: dict[str, Any] = {"intermediate_size": own.intermediate_size, "layers": ()}
        if own.head_dim:
            fields |= {name: getattr(own, name) for name in ("num_attention_heads", "num_key_value_heads", "head_dim")}
        view = self.model_copy(update=fields)
        view._whole, view._experts = self, own.experts
        return view

    @property
    def whole(self) -> ModelShape:
        """The model that this is the view of one layer of; the model itself otherwise."""
        return self._whole or self

    def matrices(self, layer: int = 0) -> dict[str, Matrix]:
        """The matrices of a layer that a policy can cut, by name."""
        own = self.by_layer[layer]
        hidden, neurons = self.hidden_size, own.intermediate_size
        heads, pairs = own.num_attention_heads * own.head_dim, own.num_key_value_heads * own.head_dim
        matrices = {}
        if heads:
            matrices = {
                "q": Matrix(heads, hidden),
                "k": Matrix(pairs, hidden),
                "v": Matrix(pairs, hidden),
                "o": Matrix(hidden, heads),
            }
        if neurons and own.gated:
            matrices["gate"] = Matrix(neurons, hidden)
        if neurons:
            matrices |= {"up": Matrix(neurons, hidden), "down": Matrix(hidden, neurons)}
        return matrices

    def expert_matrices(self, layer: int) -> dict[str, Matrix]:
        """The matrices of one expert of a layer, by name; none if the layer has no experts or only bytes are known."""
        own = self.by_layer[layer].experts
        if own is None or own.bytes is not None:
            return {}
        width, hidden = own.intermediate_size, own.input_size or self.hidden_size
        matrices = {"expert_gate": Matrix(width, hidden)} if own.gated else {}
        return matrices | {"expert_up": Matrix(width, hidden), "expert_down": Matrix(hidden, width)}

    def expert_parameters(self, layer: int) -> int:
        """Weights of one expert of a layer; 0 if it has none or only bytes are known."""
        return sum(matrix.elements for matrix in self.expert_matrices(layer).values())

    @property
    def mlp(self) -> tuple[str, ...]:
        """Names of the MLP's matrices: three with a gate, else two."""
        return MLP if self.gated else MLP[1:]

    @property
    def mlp_parameters(self) -> int:
        """Weights of one layer's MLP, of the widest one."""
        return len(self.mlp) * self.hidden_size * self.intermediate_size

    @property
    def all_mlp_parameters(self) -> int:
        """Weights of the MLPs of all layers, all experts included."""
        return sum(len(self.mlp) * self.hidden_size * layer.intermediate_size for layer in self.by_layer) + sum(
            own.experts.count * self.expert_parameters(layer) + own.experts.shared_parameters
            for layer, own in enumerate(self.layers)
            if own.experts
        )

    @property
    def used_mlp_parameters(self) -> int:
        """Weights of the MLPs that a token of the unmasked model reads, with the experts that the router chooses."""
        idle = sum(
            (own.experts.count - own.experts.used) * self.expert_parameters(layer)
            for layer, own in enumerate(self.layers)
            if own.experts
        )
        return self.all_mlp_parameters - idle

    @property
    def head_parameters(self) -> int:
        """Weights of the LM head."""
        return self.vocab_size * self.hidden_size if self.lm_head_parameters is None else self.lm_head_parameters

    def attention_parameters(self, layer: int) -> int:
        """Weights of one layer that a token reads outside its MLP."""
        matrices = self.matrices(layer)
        own = sum(matrices[name].elements for name in ATTENTION if name in matrices)
        return own + self.by_layer[layer].other_parameters

    def signal_width(self, signal: str, layer: int | None = None) -> int:
        """Width of a recorded signal, ``[tokens, width]``, or of a norm, ``[width]``; 0 if the layer lacks it.

        Args:
            signal: its name.
            layer: number of the layer; None: the largest width of any layer.
        """
        if signal in (*EXPERT_SIGNALS, ROUTER_AHEAD):
            layers = range(len(self.layers))[slice(None) if layer is None else slice(layer, layer + 1)]
            return max((self._expert_width(signal, at) for at in layers), default=0)
        if layer is None or not self.layers:
            if signal in ("up", "gate", "glu", "norm_down"):
                return self.intermediate_size
            return self.num_attention_heads * self.head_dim if signal == "attn_output" else self.hidden_size
        own = self.layers[layer]
        if signal in ("up", "gate", "glu", "norm_down"):
            return own.intermediate_size
        if signal == "attn_output":
            return own.num_attention_heads * own.head_dim
        exists = own.head_dim if signal == "attn_input" else own.intermediate_size
        return self.hidden_size if exists else 0

    def _expert_width(self, signal: str, layer: int) -> int:
        """Numbers of a token in a signal of a sparse layer; 0 if the layer is dense."""
        experts = self.layers[layer].experts
        if experts is None:
            return 0
        if signal == ROUTER_AHEAD:
            before = self.layers[layer - 1].experts if layer else None
            return 0 if before is None or before.input_size else experts.count
        glu = experts.used * experts.intermediate_size
        inputs = experts.input_size or self.hidden_size
        return dict(zip(EXPERT_SIGNALS, (experts.count, experts.used, experts.used, inputs, glu), strict=True))[signal]

    def layers_with(self, signal: str) -> list[int]:
        """The layers that have a signal or norm."""
        return [layer for layer in range(self.num_hidden_layers) if self.signal_width(signal, layer)]


@lru_cache(maxsize=256)
def _plain_layer(heads: int, key_value_heads: int, head_dim: int, neurons: int, gated: bool) -> LayerShape:
    """A layer with full attention by the matrices q, k, v and o."""
    return LayerShape(
        attention="full",
        kv_elements=2 * key_value_heads * head_dim,
        macs_per_entry=2 * heads * head_dim,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=head_dim,
        intermediate_size=neurons,
        gated=gated,
    )


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
    """Bits of one stored number, by part of the model; may be fractional where groups carry scales (Q4_0: 4.5).

    Attributes:
        mlp: the matrices of the MLPs.
        attention: all other matrices, except the LM head.
        lm_head: the LM head, and rows of embeddings that a token looks up.
        kv_cache: the KV cache.
        predictor: parameters of the policy itself.
        adapter: a LoRA adapter.
        state: fixed states of layers.
        stored: whether the matrices lie as the model's files store them; a part that is given, too, has its own bits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mlp: _Bits = 4.0
    attention: _Bits = 4.0
    lm_head: _Bits = 4.0
    kv_cache: _Bits = 8.0
    predictor: _Bits = 4.0
    adapter: _Bits = 16.0
    state: _Bits = 16.0
    stored: bool = False

    @model_serializer(mode="wrap")
    def _short(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        short = without_defaults(dump(self), Bits, ("state", "stored"))  # few models have a state
        unsaid = WEIGHTS - self.model_fields_set if self.stored else frozenset()  # their bits are those of a model
        return {name: value for name, value in short.items() if name not in unsaid}

    def of(self, name: str, layer: int = 0) -> float | Fraction:
        """Bits of one weight of a matrix.

        Args:
            name: a matrix of a layer, or one of the other names of `PART_OF`.
            layer: number of the layer; it counts only for bits that differ between layers.

        Raises:
            ModelError: the weights lie as they were stored, and nothing says how; see `hwsim.model.stored.bits_of`.
        """
        if self.stored:
            raise ModelError("bits: stored: needs the stored bytes of a model; make them with hwsim.model.stored")
        return self.mean(name)

    def mean(self, name: str) -> float:
        """Mean bits of a weight of the part that a matrix belongs to; names as for `of`."""
        mean: float = getattr(self, PART_OF[name])
        return mean


WEIGHTS = frozenset({"mlp", "attention", "lm_head"})
"""The parts of `Bits` that are weights of the model."""

PART_OF = (
    dict.fromkeys((*MLP, *EXPERT, "shared"), "mlp")
    | dict.fromkeys((*ATTENTION, "other", "outside"), "attention")
    | dict.fromkeys(("lm_head", "embedding_row"), "lm_head")
)
"""Names of matrices, each with its part of the model in `Bits`. Besides the matrices that a policy can cut: ``shared``,
experts that every token reads; ``other``, all other matrices of a layer; ``lm_head``; ``outside``, other matrices
outside the layers; ``embedding_row``, the rows that a token looks up."""


def stored_bytes(elements: int, bits: float | Fraction) -> int:
    """Bytes of `elements` numbers of `bits` bits: ceil(elements x bits / 8), computed exactly."""
    exact = bits if isinstance(bits, Fraction) else Fraction(bits).limit_denominator(10**6)
    return math.ceil(elements * exact / 8)


class Footprint(NamedTuple):
    """Bytes of a model's parts. Embedding, biases and norms are not counted."""

    attention: int  # everything that a token reads in the layers outside their MLPs
    lm_head: int  # and the other matrices outside the layers
    mlp: int

    @property
    def weights(self) -> int:
        """Bytes of all weights, without the KV cache."""
        return self.attention + self.lm_head + self.mlp


def footprint(model: ModelShape, bits: Bits) -> Footprint:
    """Bytes of the parts of `model`, each matrix rounded up to whole bytes."""
    sizes = [
        {name: stored_bytes(matrix.elements, bits.of(name, layer)) for name, matrix in model.matrices(layer).items()}
        for layer in range(model.num_hidden_layers)
    ]
    others = [
        stored_bytes(own.other_parameters, bits.of("other", layer)) + (own.dense_bytes or 0)
        for layer, own in enumerate(model.by_layer)
    ]
    experts = sum(
        own.experts.count * sum(expert_bytes(model, bits, layer)) + shared_bytes(model, bits, layer)
        for layer, own in enumerate(model.layers)
        if own.experts
    )
    return Footprint(
        attention=sum(size for own in sizes for name, size in own.items() if name in ATTENTION) + sum(others),
        lm_head=stored_bytes(model.head_parameters, bits.of("lm_head"))
        + stored_bytes(model.outside_parameters, bits.of("outside")),
        mlp=sum(size for own in sizes for name, size in own.items() if name in MLP) + experts,
    )


def expert_bytes(model: ModelShape, bits: Bits, layer: int) -> tuple[int, ...]:
    """Bytes of each matrix of one expert of a layer; one number if only the bytes of the whole expert are known."""
    own = model.by_layer[layer].experts
    if own is not None and own.bytes is not None:
        return (own.bytes,)
    matrices = model.expert_matrices(layer)
    return tuple(stored_bytes(matrix.elements, bits.of(name, layer)) for name, matrix in matrices.items())


def shared_bytes(model: ModelShape, bits: Bits, layer: int) -> int:
    """Bytes of the shared experts of a layer, which every token reads."""
    own = model.by_layer[layer].experts
    return stored_bytes(own.shared_parameters, bits.of("shared", layer)) if own and own.shared_parameters else 0

"""The bytes that a model's files take for each matrix, and the bits of weights that follow from them."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from hwsim.errors import ModelError
from hwsim.model.layers import without_defaults
from hwsim.model.shape import PART_OF, WEIGHTS, Bits, ModelShape

OUTER = ("lm_head", "outside", "embedding_row")
"""Names of what is stored outside the layers."""

_Bytes = Annotated[int, Field(ge=0, le=10**15)]


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


class StoredBytes(BaseModel):
    """Bytes of a model's matrices in its files, scales included. Biases, norms and embeddings are not counted.

    Attributes:
        layers: for each layer the bytes of its matrices by name: ``q k v o gate up down``; ``expert_gate expert_up
            expert_down``, each of all experts together; ``shared`` for experts that every token reads; and ``other``
            for all other matrices that a token reads. A layer names those that it has.
        lm_head: bytes of the LM head; of the embedding, if both are one tensor.
        outside: bytes of the other matrices outside the layers.
        embedding_row: bytes of the rows that a token looks up in tables besides the embedding of its own width.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    layers: Annotated[tuple[dict[str, _Bytes], ...], BeforeValidator(_tuple)]
    lm_head: _Bytes
    outside: _Bytes = 0
    embedding_row: _Bytes = 0

    @model_serializer(mode="wrap")
    def _short(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_defaults(dump(self), StoredBytes, ("outside", "embedding_row"))

    def check(self, model: ModelShape) -> None:
        """Check that exactly the matrices of `model` are named, each with a possible size.

        Raises:
            ValueError: they are not.
        """
        if len(self.layers) != model.num_hidden_layers:
            raise ValueError(
                f"stored.layers has {len(self.layers)} entries, the model has {model.num_hidden_layers} layers"
            )
        for number, own in enumerate(self.layers):
            elements = layer_elements(model, number)
            if odd := sorted(own.keys() ^ elements.keys()):
                raise ValueError(
                    f"stored.layers.{number} names {', '.join(own) or 'no matrix'}, the model's layer has "
                    f"{', '.join(elements) or 'none'}; they differ in {odd[0]}"
                )
            for name, count in elements.items():
                _check_size(f"stored.layers.{number}.{name}", own[name], count)
        for name, count in outer_elements(model).items():
            _check_size(f"stored.{name}", getattr(self, name), count)

    def of(self, name: str, layer: int = 0) -> int:
        """Bytes of a matrix; names as in `hwsim.model.shape.PART_OF`."""
        return int(getattr(self, name)) if name in OUTER else self.layers[layer].get(name, 0)

    @property
    def weights(self) -> int:
        """Bytes of all matrices."""
        return sum(sum(own.values()) for own in self.layers) + self.lm_head + self.outside

    def bits(self, model: ModelShape) -> dict[str, list[Fraction]]:
        """Bits of one weight of each matrix, by part of the model: ``mlp``, ``attention``, ``lm_head``."""
        by_part: dict[str, list[Fraction]] = {}
        for name, layer, elements in _matrices(model):
            by_part.setdefault(PART_OF[name], []).append(Fraction(8 * self.of(name, layer), elements))
        return by_part

    def mean_bits(self, model: ModelShape) -> dict[str, Fraction]:
        """Mean bits of one weight by part of the model; a part without weights is left out."""
        sums: dict[str, tuple[int, int]] = {}
        for name, layer, elements in _matrices(model):
            size, count = sums.get(PART_OF[name], (0, 0))
            sums[PART_OF[name]] = size + self.of(name, layer), count + elements
        return {part: Fraction(8 * size, count) for part, (size, count) in sums.items()}


def _check_size(where: str, size: int, elements: int) -> None:
    """Refuse sizes of less than a hundredth of a bit or more than 64 bits for a weight."""
    if not elements / 800 <= size <= 8 * elements:
        raise ValueError(f"{where} is {size} bytes for {elements} weights; must be 0.01 to 64 bits for each")


def layer_elements(model: ModelShape, layer: int) -> dict[str, int]:
    """Weights of a layer's matrices by name, those of all experts together; names as in `StoredBytes`."""
    own = model.by_layer[layer]
    elements = {name: matrix.elements for name, matrix in model.matrices(layer).items()}
    if own.experts:
        count = own.experts.count
        elements |= {name: count * matrix.elements for name, matrix in model.expert_matrices(layer).items()}
    rest = {"shared": own.experts.shared_parameters if own.experts else 0, "other": own.other_parameters}
    return elements | {name: weights for name, weights in rest.items() if weights}


def outer_elements(model: ModelShape) -> dict[str, int]:
    """Weights outside the layers by the names of `OUTER`."""
    return dict(zip(OUTER, (model.head_parameters, model.outside_parameters, model.embedding_row), strict=True))


def count_weights(model: ModelShape) -> int:
    """Weights of all matrices."""
    return sum(count for _, _, count in _matrices(model))


def _matrices(model: ModelShape) -> list[tuple[str, int, int]]:
    """All matrices that have weights, each (name, layer, weights); looked-up rows are none."""
    layers = range(model.num_hidden_layers)
    inside = [(name, layer, count) for layer in layers for name, count in layer_elements(model, layer).items()]
    outside = [(name, 0, count) for name, count in outer_elements(model).items() if name != "embedding_row"]
    return [entry for entry in [*inside, *outside] if entry[2]]


class StoredBits(Bits):
    """Bits of a model whose matrices lie as its files store them; `bits_of` makes them.

    The numbers of the parts are means; `of` gives the exact bits of a matrix.

    Attributes:
        given: parts of the weights that have bits of their own in place of the stored ones.
        model: shape of the model.
        sizes: bytes of its matrices.
    """

    given: list[str] = Field(default_factory=list)
    model: ModelShape = Field(exclude=True)
    sizes: StoredBytes = Field(exclude=True)

    @model_serializer(mode="wrap")
    def _short(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_defaults(dump(self), StoredBits, ("state", "given"))

    def of(self, name: str, layer: int = 0) -> float | Fraction:
        """Bits of one weight of a matrix: exactly 8 x bytes / weights, or the bits that its part was given."""
        if PART_OF[name] in self.given:
            return self.mean(name)
        elements = outer_elements(self.model)[name] if name in OUTER else layer_elements(self.model, layer).get(name, 0)
        return Fraction(8 * self.sizes.of(name, layer), elements) if elements else Fraction(0)


def bits_of(bits: Bits, model: ModelShape, stored: StoredBytes | None) -> Bits:
    """The bits of one model: `bits` as they are, or with the stored bytes if they say so.

    Args:
        bits: of a run.
        model: shape of the model.
        stored: bytes of its matrices; None: unknown.

    Raises:
        ModelError: `bits` say that weights lie as they were stored, and `stored` is None.
    """
    if not bits.stored:
        return bits
    if stored is None:
        raise ModelError(f"bits: stored: nothing says how the weights of {model.name} are stored; give numbers of bits")
    given = sorted(WEIGHTS & bits.model_fields_set)
    means = {part: float(mean) for part, mean in stored.mean_bits(model).items() if part not in given}
    values = {name: getattr(bits, name) for name in Bits.model_fields}
    return StoredBits(**values | means, given=given, model=model, sizes=stored)

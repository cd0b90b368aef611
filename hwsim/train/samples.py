"""One layer of a trace as training data: MLP inputs, and as targets the top-k masks of |glu|.

Whole sequences are held out for validation, not single tokens, as neighbouring tokens are too similar.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from hwsim.errors import TraceError
from hwsim.trace import Sequences, Trace, TraceHeader
from hwsim.util.kernels import top_k

VALIDATION = 0.1  # share of the decoded tokens that is held out, at least
BLOCK = 256  # tokens that are read at once
PIECE_BYTES = 2**30  # memory for a layer; a larger one is read again, piece by piece, in every epoch

Range = tuple[int, int]


class Split(NamedTuple):
    """Blocks of decoded tokens, each (start, stop)."""

    training: list[Range]
    validation: list[Range]


def split(header: TraceHeader, path: object) -> Split:
    """Split the decoded tokens: the last sequences, a tenth of the tokens and at least one, are for validation.

    Prompts are in neither part.

    Raises:
        TraceError: the trace has only one sequence.
    """
    spans = [part.rows for part in Sequences(header.sequences).decoded()]
    if len(spans) < 2:
        raise TraceError(
            f"{path}: has one sequence of {header.tokens} tokens; training holds whole sequences out for validation: "
            "record several, with a smaller --context or more --tokens"
        )
    first, held_out = len(spans), 0
    while first > 1 and held_out < VALIDATION * header.decoded:
        first -= 1
        held_out += len(spans[first])
    return Split(_blocks(spans[:first]), _blocks(spans[first:]))


def _blocks(spans: list[range]) -> list[Range]:
    return [(at, min(at + BLOCK, rows.stop)) for rows in spans for at in rows[::BLOCK]]


class Samples:
    """Blocks of tokens of one layer, read on request; kept in memory if all of them fit.

    Args:
        trace: open, with the signals ``input`` and ``glu``.
        layer: number of the layer.
        k: number of units in a target mask.
        blocks: tokens to read.
        limit: bytes that are held at once; a single block may be larger.
    """

    def __init__(self, trace: Trace, layer: int, k: int, blocks: Sequence[Range], limit: int = PIECE_BYTES) -> None:
        self._trace, self._layer, self._k, self._blocks = trace, layer, k, list(blocks)
        self.tokens = sum(stop - start for start, stop in self._blocks)
        model = trace.model
        token = 2 * model.hidden_size + -(-model.intermediate_size // 8)
        self._together = max(1, limit // (token * BLOCK))
        self._kept: tuple[np.ndarray, np.ndarray] | None = None

    def pieces(self, order: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All tokens once, as (inputs float16 ``[n, hidden]``, masks uint8 ``[n, ceil(units / 8)]`` of `packbits`).

        Args:
            order: int ``[blocks]``, the order in which blocks are read if they do not all fit.
        """
        if self._together >= len(self._blocks):
            self._kept = self._kept or self._read(self._blocks)
            yield self._kept
            return
        blocks = [self._blocks[index] for index in (range(len(self._blocks)) if order is None else order)]
        for at in range(0, len(blocks), self._together):
            yield self._read(blocks[at : at + self._together])

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        return len(self._blocks)

    def _read(self, blocks: list[Range]) -> tuple[np.ndarray, np.ndarray]:
        tokens = sum(stop - start for start, stop in blocks)
        model, at = self._trace.model, 0
        inputs = np.empty((tokens, model.hidden_size), np.float16)  # what a trace holds
        masks = np.empty((tokens, -(-model.intermediate_size // 8)), np.uint8)
        for start, stop in blocks:
            end = at + stop - start
            inputs[at:end] = self._trace.read(self._layer, "input", start, stop)
            worth = np.abs(self._trace.read(self._layer, "glu", start, stop))
            masks[at:end] = np.packbits([top_k(row, self._k) for row in worth], axis=1)
            at = end
        return inputs, masks


class Statistics(NamedTuple):
    """Statistics of the training tokens.

    Attributes:
        mean: of the inputs, float64 ``[hidden]``.
        scale: root of the mean variance of the inputs' channels, above 0.
        share: of the tokens whose mask holds the unit, float64 ``[units]``, kept away from 0 and 1.
        static: bool ``[units]``: the `k` units that occur in most masks, which is the best fixed set.
    """

    mean: np.ndarray
    scale: float
    share: np.ndarray
    static: np.ndarray


def statistics(samples: Samples, units: int, k: int) -> Statistics:
    """Statistics of the training tokens, from one pass over them."""
    total: np.ndarray | float = 0.0
    squares: np.ndarray | float = 0.0
    counts = np.zeros(units, np.int64)
    for inputs, masks in samples.pieces():
        for at in range(0, len(inputs), BLOCK):
            values = inputs[at : at + BLOCK].astype(np.float64)
            total = total + values.sum(axis=0)
            squares = squares + (values**2).sum(axis=0)
            counts += unpack(masks[at : at + BLOCK], units).sum(axis=0)
    mean = np.asarray(total) / samples.tokens
    variance = float(np.maximum(np.asarray(squares) / samples.tokens - mean**2, 0).mean())
    share = (counts + 1) / (samples.tokens + 2)
    return Statistics(mean, variance**0.5 or 1.0, share, top_k(counts.astype(np.float32), k))


def unpack(masks: np.ndarray, units: int) -> np.ndarray:
    """Masks of `Samples.pieces` as bool ``[n, units]``."""
    return np.unpackbits(masks, axis=1, count=units).view(bool)


class Quality(NamedTuple):
    """How well masks of k units are predicted. Recall and precision are equal: truth and prediction both hold k.

    Attributes:
        recall: share of the true units that the net predicts.
        precision: share of the predicted units that are true.
        static: recall of the best fixed set, chosen on the training tokens.
    """

    recall: float
    precision: float
    static: float


def measure(net: dict[str, np.ndarray], samples: Samples, static: np.ndarray, k: int) -> Quality:
    """Quality of the masks that a policy decides with `net`, over all tokens of `samples`."""
    hits = static_hits = 0
    for inputs, masks in samples.pieces():
        for at in range(0, len(inputs), BLOCK):
            x = inputs[at : at + BLOCK].astype(np.float32)
            truth = unpack(masks[at : at + BLOCK], len(static))
            logits = np.maximum(x @ net["w1"] + net["b1"], 0) @ net["w2"] + net["b2"]
            hits += sum(int(np.count_nonzero(top_k(row, k) & mask)) for row, mask in zip(logits, truth, strict=True))
            static_hits += int(np.count_nonzero(truth & static))
    true_units = k * samples.tokens
    return Quality(hits / true_units, hits / true_units, static_hits / true_units)

"""An order of the neurons in which those that are active together lie side by side.

A neuron is active at a token if its ``|glu|`` is among the larger half of its layer's. The order is a greedy chain: it
begins with the neuron that is active most often. The next neuron is always the one that was most often active together
with the last few of the chain. Linking neurons by how often they are active together follows Ripple (arXiv 2410.19274),
which links pairs into chains. Here the last few neurons count, not only the last one, because Flash reads blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from hwsim.errors import TraceError
from hwsim.memory.neuron_order import Layout
from hwsim.trace import Sequences, Trace
from hwsim.util.kernels import top_k

Progress = Callable[[str, int, int], None]

_ACTIVE = 0.5  # share of the neurons that counts as active
_RECENT = 8  # neurons at the end of the chain that the next one is compared with
_MOST_TOKENS = 2**14  # more tokens are thinned out evenly; the bits of 17,920 neurons take 37 MB at this number
_BLOCK = 2**20  # values read at once
_WORD = 64  # tokens
_ONES = np.array([byte.bit_count() for byte in range(256)], np.uint8)


@dataclass(frozen=True)
class Neighbours:
    """How often neurons that lie side by side are active together: share of tokens, mean over pairs and layers.

    Attributes:
        tokens: number of tokens that were counted.
        before: share in the model's own order.
        after: share in the new layout.
    """

    tokens: int
    before: float
    after: float


def order_trace(trace: Trace, progress: Progress | None = None) -> tuple[Layout, Neighbours]:
    """Order the neurons of all layers by a trace; the same trace gives the same layout.

    Args:
        trace: an open trace that has ``glu``.
        progress: called as f(what, layers done, layers).

    Raises:
        TraceError: the trace lacks ``glu``, keeps only a share of the values, or is damaged.
    """
    trace.check_whole("an order of neurons")
    model = trace.model
    model.check_alike("an order of neurons")
    if not trace.has("glu"):
        raise TraceError(
            f"{trace.path}: lacks glu, which says which neurons are active; "
            f"record it: hwsim record --model {model.name} --signals glu"
        )
    chosen = _chosen(trace)
    orders, before, after = [], 0.0, 0.0
    for layer in range(model.num_hidden_layers):
        active = _active(trace, layer, chosen)
        order = chain(active)
        before += _together(active, np.arange(len(order)), len(chosen))
        after += _together(active, order, len(chosen))
        orders.append(order)
        if progress:
            progress("ordering neurons", layer + 1, model.num_hidden_layers)
    header = {
        "model": model.model_dump(),
        "trace": trace.hash,
        "origin": trace.header.origin,
        "tokens": len(chosen),
        "active": _ACTIVE,
        "recent": _RECENT,
    }
    layers = model.num_hidden_layers
    return Layout(header, np.stack(orders)), Neighbours(len(chosen), before / layers, after / layers)


def chain(active: np.ndarray) -> np.ndarray:
    """The greedy chain of some neurons.

    Args:
        active: uint64 ``[words, neurons]``: bits of tokens at which each neuron is active, as `pack` gives them.

    Returns:
        int32 ``[neurons]``: the neuron at each place. Ties are broken by the lower neuron.
    """
    neurons = active.shape[1]
    order = np.empty(neurons, np.int32)
    recent = np.zeros((_RECENT, neurons), np.int32)
    together = np.zeros(neurons, np.int32)
    unplaced = np.ones(neurons, bool)
    following = int(_ones(active).argmax())
    for place in range(neurons):
        order[place] = following
        unplaced[following] = False
        counts = _ones(active & active[:, following, None])
        slot = place % _RECENT
        together += counts - recent[slot]
        recent[slot] = counts
        following = int(np.where(unplaced, together, -1).argmax())
    return order


def pack(active: np.ndarray) -> np.ndarray:
    """Bits of tokens, neuron by neuron: bool ``[tokens, neurons]`` -> uint64 ``[ceil(tokens / 64), neurons]``."""
    padded = np.zeros((-(-len(active) // _WORD) * _WORD, active.shape[1]), bool)
    padded[: len(active)] = active
    words = np.ascontiguousarray(np.packbits(padded.T, axis=1)).view(np.uint64)
    return np.ascontiguousarray(words.T)


def _ones(words: np.ndarray) -> np.ndarray:
    """The number of set bits of each neuron: uint64 ``[words, neurons]`` -> int32 ``[neurons]``."""
    if hasattr(np, "bitwise_count"):  # numpy 2
        return np.bitwise_count(words).sum(axis=0, dtype=np.int32)
    return _looked_up(words)


def _looked_up(words: np.ndarray) -> np.ndarray:
    """As `_ones`, with a table of bytes, for numpy 1."""
    return _ONES[words.view(np.uint8)].reshape(*words.shape, 8).sum(axis=(0, 2), dtype=np.int32)


def _together(active: np.ndarray, order: np.ndarray, tokens: int) -> float:
    """Share of tokens at which neighbours of an order are both active: mean over pairs."""
    ordered = active[:, order]
    pairs = _ones(ordered[:, 1:] & ordered[:, :-1])
    return float(pairs.mean()) / tokens if len(pairs) else 0.0


def _chosen(trace: Trace) -> np.ndarray:
    """Rows of the decoded tokens in the trace, int64, thinned out evenly if they are many."""
    decoded = Sequences(trace.header.sequences).rows()
    return decoded[:: -(-len(decoded) // _MOST_TOKENS)]


def _active(trace: Trace, layer: int, chosen: np.ndarray) -> np.ndarray:
    """Bits of the chosen tokens at which each neuron is active, as `pack` gives them."""
    neurons = trace.model.intermediate_size
    k = max(1, int(_ACTIVE * neurons))
    packed = []
    for rows in _blocks(trace, layer, chosen, neurons):
        mask = np.empty(rows.shape, bool)
        for row, into in zip(np.abs(rows), mask, strict=True):
            top_k(row, k, into)
        packed.append(pack(mask))
    return np.concatenate(packed)


def _blocks(trace: Trace, layer: int, chosen: np.ndarray, neurons: int) -> Iterator[np.ndarray]:
    """``glu`` of the chosen tokens in blocks of whole words of tokens: float32 ``[tokens, neurons]``."""
    step = max(1, _BLOCK // (neurons * _WORD)) * _WORD
    for at in range(0, len(chosen), step):
        block = chosen[at : at + step]
        runs = np.split(block, np.flatnonzero(np.diff(block) != 1) + 1)
        yield np.concatenate([trace.read(layer, "glu", int(run[0]), int(run[-1]) + 1) for run in runs])

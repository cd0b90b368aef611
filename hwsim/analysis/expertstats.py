"""Statistics of the experts that a router chose: how steady its choice is, and how unequal."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hwsim.trace import Sequences, Trace

_BLOCK = 2**22  # flags that are held at once
_POPULAR = 0.1


@dataclass(frozen=True)
class ExpertStats:
    """The experts of one layer, or of all.

    Attributes:
        overlap: share of a token's experts that the token before had, too, within a sequence; None where no token
            follows another. Chance alone gives used / count.
        popularity: share of all choices that fall on the tenth of the layer's experts (rounded up) chosen most.
        touched: share of the layer's experts that at least one token used.
        weights: mean weight by rank, without ranks in which no token has an expert; None if they were not recorded.
        layers: the same of each layer that has experts, by its number; empty in the statistics of one layer.
    """

    overlap: float | None
    popularity: float
    touched: float
    weights: tuple[float, ...] | None
    layers: dict[int, ExpertStats]


def expert_stats(trace: Trace, tokens: int) -> ExpertStats:
    """Statistics of the first `tokens` tokens, prompts included; over all layers: means.

    Raises:
        TraceError: the trace is damaged.
    """
    starts = np.zeros(trace.header.tokens, bool)
    starts[Sequences(trace.header.sequences).first_rows] = True
    layers = {layer: _layer(trace, layer, starts[:tokens]) for layer in trace.model.layers_with("experts")}
    parts = list(layers.values())
    overlaps = [part.overlap for part in parts if part.overlap is not None]
    ranks = min(len(part.weights or ()) for part in parts)
    return ExpertStats(
        overlap=sum(overlaps) / len(overlaps) if overlaps else None,
        popularity=sum(part.popularity for part in parts) / len(parts),
        touched=sum(part.touched for part in parts) / len(parts),
        weights=tuple(np.mean([(part.weights or ())[:ranks] for part in parts], axis=0).tolist()) if ranks else None,
        layers=layers,
    )


def _layer(trace: Trace, layer: int, starts: np.ndarray) -> ExpertStats:
    """The statistics of one layer; `starts` says which tokens begin a sequence: bool ``[tokens]``."""
    experts = trace.model.by_layer[layer].experts
    assert experts is not None
    weighed = trace.has("expert_weights")
    picks, sums = np.zeros(experts.count, np.int64), np.zeros(experts.used)
    holders = np.zeros(experts.used, np.int64)  # tokens that have an expert of this rank
    shared = pairs = 0
    last = np.zeros((1, experts.count), bool)
    step = max(1, _BLOCK // experts.count)
    for start in range(0, len(starts), step):
        stop = min(start + step, len(starts))
        ids = trace.read(layer, "experts", start, stop)
        chosen = np.zeros((len(ids), experts.count + 1), bool)
        np.put_along_axis(chosen, ids, values=True, axis=1)  # -1 is the additional column
        chosen = chosen[:, :-1]
        before = np.concatenate([last, chosen[:-1]])
        follows = ~starts[start:stop] & before.any(axis=1)
        shared += int((chosen & before)[follows].sum())
        pairs += int(chosen[follows].sum())
        picks += chosen.sum(axis=0)
        holders += (ids >= 0).sum(axis=0)
        if weighed:
            sums += np.where(ids >= 0, trace.read(layer, "expert_weights", start, stop), 0).sum(axis=0)
        last = chosen[-1:]
    top = math.ceil(_POPULAR * experts.count - 1e-9)
    ranks = int((holders > 0).sum())
    return ExpertStats(
        overlap=shared / pairs if pairs else None,
        popularity=float(np.sort(picks)[-top:].sum() / max(1, picks.sum())),
        touched=float((picks > 0).mean()),
        weights=tuple((sums[:ranks] / holders[:ranks]).tolist()) if weighed else None,
        layers={},
    )

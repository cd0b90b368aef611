"""Statistics of a trace: weight of the tails, number of units that matter, agreement of consecutive tokens.

Signals are read block by block, so that memory use does not grow with the number of tokens. Quantiles are exact: a
stored value is a float16, and the histogram has a bin for each of the 32,768 possible magnitudes. ``glu`` that is
computed from ``up`` and ``gate`` is rounded to float16 for the magnitudes, as a recording of it would be. All other
statistics use the float32 product, as policies see it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hwsim.analysis.expertstats import ExpertStats, expert_stats
from hwsim.errors import SettingError
from hwsim.trace import Sequences, Trace
from hwsim.trace.header import EXACT
from hwsim.util.kernels import magnitude_counts, magnitude_quantiles, magnitudes, top_k

KEEPS = (0.5, 0.2)
_BLOCK = 2**20  # values read at once
_ENERGY = 0.9
_POPULAR = 0.1

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class SignalStats:
    """One signal, in one layer or over all layers.

    Attributes:
        mean: mean magnitude.
        rms: root of the mean square.
        p50: median magnitude, the smallest value that half of the values do not exceed.
        p99: 99th percentile of the magnitude, defined likewise.
        max: largest magnitude.
        tail: p99 / p50, how heavy the tail is (2 where values are uniform, 3.8 where normal); None where p50 is 0.
            Over all layers: the geometric mean of the layers that have one.
        energy_share_90: share of units, the strongest first, that carry 90 % of a token's sum of squares: the mean over
            tokens and layers.
        overlap: by keep: share of the top-k units (k = floor(keep x units), at least 1) of a token that were in the
            previous token's top-k too, within a sequence: the mean over tokens and layers. Chance alone gives keep.
            None where no token follows another.
        popularity: by keep: share of all top-k picks that fall on the tenth of a layer's units (rounded up) that is
            picked most. Equal use gives 0.1, and nothing can exceed 0.1 / keep. A few tokens look unequal by chance:
            compare traces at equal numbers of tokens.
    """

    mean: float
    rms: float
    p50: float
    p99: float
    max: float
    tail: float | None
    energy_share_90: float
    overlap: dict[float, float | None]
    popularity: dict[float, float]


@dataclass(frozen=True)
class TraceStats:
    """Statistics of a trace.

    Attributes:
        tokens: number of tokens that were read.
        signals: statistics over all layers, by signal.
        layers: statistics of each layer, by signal.
        experts: what the router chose; None in a trace without experts.
    """

    tokens: int
    signals: dict[str, SignalStats]
    layers: dict[str, tuple[SignalStats, ...]]
    experts: ExpertStats | None = None


def trace_stats(
    trace: Trace, *, tokens: int | None = None, keeps: Sequence[float] = KEEPS, progress: Progress | None = None
) -> TraceStats:
    """Statistics of every signal of `trace` that is a vector of units, and of ``glu`` if ``up`` and ``gate`` give it.

    Of the router's logits and of the weights of experts there are none, of the chosen experts there are others.

    Args:
        trace: an open trace.
        tokens: number of first tokens to read; None: all.
        keeps: shares of units for overlap and popularity, each above 0 and up to 1.
        progress: called as f(what, layers done, layers).

    Raises:
        SettingError: a keep or the number of tokens is out of bounds.
        TraceError: the trace is damaged.
    """
    if tokens is not None and tokens < 1:
        raise SettingError(f"tokens {tokens}: statistics need at least one")
    if not keeps or not all(0 < keep <= 1 for keep in keeps):
        raise SettingError(f"keeps {tuple(keeps)}: each must be above 0 and at most 1")
    limit = min(trace.header.tokens, tokens or trace.header.tokens)
    signals = [signal for signal in trace.header.signals if signal not in EXACT]
    if "glu" not in signals and trace.has("glu"):
        signals.append("glu")
    starts = _starts(trace, limit)
    totals: dict[str, SignalStats] = {}
    layers: dict[str, tuple[SignalStats, ...]] = {}
    for signal in signals:
        parts, numbers = [], trace.model.layers_with(signal)
        for layer in numbers:
            part = _Layer(trace.model.signal_width(signal, layer), keeps)
            for start, block in _blocks(trace, layer, signal, limit):
                part.add(block, starts[start : start + len(block)])
            parts.append(part)
            if progress:
                progress(f"statistics of {signal}", len(parts), len(numbers))
        layers[signal] = tuple(part.result() for part in parts)
        totals[signal] = _together(parts, layers[signal], keeps)
    experts = expert_stats(trace, limit) if trace.has("experts") else None
    return TraceStats(limit, totals, layers, experts)


def _starts(trace: Trace, limit: int) -> np.ndarray:
    """Mask of the tokens that begin a sequence: bool ``[limit]``."""
    first = np.zeros(trace.header.tokens, bool)
    first[Sequences(trace.header.sequences).first_rows] = True
    return first[:limit]


def _blocks(trace: Trace, layer: int, signal: str, limit: int) -> Iterator[tuple[int, np.ndarray]]:
    step = max(1, _BLOCK // trace.model.signal_width(signal, layer))
    for start in range(0, limit, step):
        yield start, trace.read(layer, signal, start, min(start + step, limit))


class _Layer:
    """Counters for one signal of one layer."""

    def __init__(self, units: int, keeps: Sequence[float]) -> None:
        self._units = units
        self.histogram = magnitude_counts(np.empty(0, np.float32))
        self._tokens = self._pairs = self._carriers = 0
        # floor, with a tolerance for rounding errors of the product; at least one unit
        self._ks = {keep: max(1, math.floor(keep * units + 1e-9)) for keep in keeps}
        self._shared = dict.fromkeys(keeps, 0)
        self._picks = {keep: np.zeros(units, np.int64) for keep in keeps}
        self._last = {keep: np.zeros(units, bool) for keep in keeps}
        self._mask = np.zeros(units, bool)

    def add(self, block: np.ndarray, starts: np.ndarray) -> None:
        """Count `block`, float32 ``[tokens, units]``; `starts` says which tokens begin a sequence."""
        size = np.abs(block)
        self.histogram += magnitude_counts(size)
        self._carriers += int(_carriers(size).sum())
        for row, first in zip(size, starts, strict=True):
            self._pairs += not first
            for keep, k in self._ks.items():
                mask, last = top_k(row, k, self._mask), self._last[keep]
                if not first:
                    self._shared[keep] += int(np.count_nonzero(mask & last))
                self._picks[keep] += mask
                last[:] = mask
        self._tokens += len(block)

    def result(self) -> SignalStats:
        """The statistics of the layer."""
        top = math.ceil(_POPULAR * self._units - 1e-9)
        share = {keep: np.sort(picks)[-top:].sum() / picks.sum() for keep, picks in self._picks.items()}
        sizes = _sizes(self.histogram)
        return SignalStats(
            *sizes,
            tail=sizes[3] / sizes[2] if sizes[2] else None,
            energy_share_90=self._carriers / (self._tokens * self._units),
            overlap={k: n / (self._pairs * self._ks[k]) if self._pairs else None for k, n in self._shared.items()},
            popularity={keep: float(value) for keep, value in share.items()},
        )


def _carriers(size: np.ndarray) -> np.ndarray:
    """Number of units that carry 90 % of each token's energy: magnitudes ``[tokens, units]`` -> int ``[tokens]``."""
    energy = np.sort(size, axis=1)[:, ::-1].astype(np.float64) ** 2
    cumulative = np.cumsum(energy, axis=1)
    total = cumulative[:, -1:]
    return np.where(total[:, 0] > 0, np.count_nonzero(cumulative < _ENERGY * total, axis=1) + 1, 0)


def _sizes(histogram: np.ndarray) -> tuple[float, float, float, float, float]:
    """Mean, rms, p50, p99 and max of the magnitudes in a histogram of `magnitude_counts`."""
    values, total = magnitudes(), int(histogram.sum())
    p50, p99, largest = magnitude_quantiles(histogram, np.array([0.5, 0.99, 1.0])).tolist()
    mean = float(values @ histogram) / total
    return mean, math.sqrt(float(values**2 @ histogram) / total), p50, p99, largest


def _together(parts: list[_Layer], layers: tuple[SignalStats, ...], keeps: Sequence[float]) -> SignalStats:
    """Statistics of a signal over all layers: magnitudes are pooled, other statistics averaged."""
    tails = [math.log(layer.tail) for layer in layers if layer.tail]
    overlaps = {keep: [value for layer in layers if (value := layer.overlap[keep]) is not None] for keep in keeps}
    return SignalStats(
        *_sizes(np.sum([part.histogram for part in parts], axis=0)),
        tail=math.exp(sum(tails) / len(tails)) if tails else None,
        energy_share_90=sum(layer.energy_share_90 for layer in layers) / len(layers),
        overlap={keep: sum(values) / len(values) if values else None for keep, values in overlaps.items()},
        popularity={keep: sum(layer.popularity[keep] for layer in layers) / len(layers) for keep in keeps},
    )

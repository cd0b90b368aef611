"""From a recorded signal to the parameters of the law: sizes, tails, spread of the units, likeness of neighbours."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hwsim.errors import TraceError
from hwsim.trace import Trace
from hwsim.trace.synth import law
from hwsim.util.files import data_folder
from hwsim.util.kernels import top_k

BUNDLED = "smollm2-135m-sample.npz"  # what is fitted to where nothing else is named
KEEPS = (0.5, 0.2)  # where overlaps are compared
RANKS = np.linspace(-16.0, 16.0, 257)  # log-odds of the probabilities whose quantiles are kept
SHARES = np.linspace(0.0, 1.0, 65)  # probabilities at which the tokens' sizes are kept
LEAST_TOKENS = 16
_MOST_TOKENS, _MOST_VALUES = 512, 2**19  # of one layer that a fit looks at
_NEAR = 8  # tokens nearer than this feel each other; farther ones share only what the units' scales make them share
_NOTHING = 1e-9  # of a token's size: stands for zero

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class SignalFit:
    """The law of one signal in one layer.

    Attributes:
        spread: how unequal the units are, 0 to 2.
        rho: how much a token is like the one before it, 0 to 1.
        sizes: log of a token's size, its mean magnitude, at the probabilities `SHARES`.
        size_rho: correlation of the sizes' normal scores from token to token.
        log_magnitude: log of the magnitude over the token's size at the log-odds `RANKS`.
        positive: probability that a value there is positive.
    """

    spread: float
    rho: float
    sizes: np.ndarray
    size_rho: float
    log_magnitude: np.ndarray
    positive: np.ndarray


def bundled() -> Path:
    """The recorded trace that comes with hwsim."""
    return data_folder("traces") / BUNDLED


class Fitter:
    """Laws of the signals of a recorded trace, each found when it is asked for.

    Args:
        trace: the recorded trace, open.

    Raises:
        TraceError: it has too few tokens, or leaves values out.
    """

    def __init__(self, trace: Trace) -> None:
        trace.check_whole("a fit")
        trace.model.check_alike("a fit")
        self._trace = trace
        self._found: dict[tuple[int, str], SignalFit] = {}
        self._runs = _runs(trace)
        count = sum(stop - start for start, stop in self._runs)
        if count < LEAST_TOKENS:
            raise TraceError(
                f"{trace.path}: has {count} tokens beside the first of each sequence; a fit needs {LEAST_TOKENS}"
            )

    def at(self, depth: float, signal: str) -> SignalFit:
        """The law at a relative depth, 0 (first layer) to 1 (last), between the two nearest recorded layers."""
        place = depth * (self._trace.model.num_hidden_layers - 1)
        below = math.floor(place)
        part = place - below
        if part < 1e-9:
            return self._layer(below, signal)
        return _blend(self._layer(below, signal), self._layer(below + 1, signal), part)

    def _layer(self, layer: int, signal: str) -> SignalFit:
        if (layer, signal) not in self._found:
            blocks = [self._trace.read(layer, signal, start, stop) for start, stop in self._runs]
            self._found[layer, signal] = fit_signal(blocks)
        return self._found[layer, signal]


def _runs(trace: Trace) -> list[tuple[int, int]]:
    """Tokens to look at: of each sequence all but the first, whose activations are unlike all others."""
    runs, at, left = [], 0, _MOST_TOKENS
    for sequence in trace.header.sequences:
        count = min(sequence.tokens - 1, left)
        if count > 0:
            runs.append((at + 1, at + 1 + count))
            left -= count
        at += sequence.tokens
    return runs


def _blend(one: SignalFit, other: SignalFit, part: float) -> SignalFit:
    fields = {name: (1 - part) * getattr(one, name) + part * getattr(other, name) for name in vars(one)}
    return SignalFit(**fields)


def fit_signal(runs: list[np.ndarray]) -> SignalFit:
    """Find the law of a signal.

    Args:
        runs: values of consecutive tokens, float32 ``[tokens, units]`` each; a run does not follow the one before it.
    """
    # the mean magnitude: a token of zeros has one too, and a few huge values do not spoil it as they do the rms
    sizes = [np.log(np.maximum(np.abs(run).mean(axis=1, dtype=np.float64), _NOTHING)) for run in runs]
    every = np.concatenate(sizes)
    step = max(1, sum(run.size for run in runs) // _MOST_VALUES)
    scaled = [(run / np.exp(size)[:, None]).ravel() for run, size in zip(runs, sizes, strict=True)]
    log_magnitude, positive = _quantiles(np.concatenate(scaled)[::step])
    spread, rho = _likeness(runs)
    return SignalFit(
        spread=spread,
        rho=rho,
        sizes=np.quantile(every, SHARES),
        size_rho=_autocorrelation(sizes, np.median(every), np.diff(np.quantile(every, [0.16, 0.84]))[0]),
        log_magnitude=log_magnitude,
        positive=positive,
    )


def _autocorrelation(series: list[np.ndarray], middle: float, bound: float) -> float:
    """Likeness of neighbours, 0 to 0.98, with what lies far out pulled in: one strange token must not decide it."""
    clipped = [np.clip(part - middle, -bound, bound) for part in series]
    square = sum(float(part @ part) for part in clipped)
    return max(0.0, min(0.98, sum(float(part[1:] @ part[:-1]) for part in clipped) / square)) if square > 0 else 0.0


def _quantiles(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log magnitudes at `RANKS`, and the probability that a value there is positive."""
    order = np.argsort(np.abs(values), kind="stable")
    sizes = np.log(np.maximum(np.abs(values[order]), _NOTHING))
    share = (np.arange(values.size) + 0.5) / values.size
    odds = np.log(share / (1 - share))
    signs = (np.sign(values[order]) + 1) / 2
    # bins of equal width in log-odds, as far out as a hundred values make one; the ends take what lies beyond
    reach = math.log(max(2.0, values.size / 100))
    edges = np.linspace(-reach, reach, 33)
    place = np.clip(np.searchsorted(edges, odds, side="right") - 1, 0, 31)
    share_positive = (np.bincount(place, signs, minlength=32) + 1) / (np.bincount(place, minlength=32) + 2)
    return np.interp(RANKS, odds, sizes), np.interp(RANKS, (edges[1:] + edges[:-1]) / 2, share_positive)


def _likeness(runs: list[np.ndarray]) -> tuple[float, float]:
    """Spread and rho, from the overlaps of distant and of neighbouring tokens."""
    magnitudes = [np.abs(run) for run in runs]
    units = runs[0].shape[1]
    live = sum(int(np.count_nonzero(size)) for size in magnitudes) / sum(size.size for size in magnitudes)
    if live * units < 2:
        return 0.0, 0.0
    # zeros are equal to each other, and tell nothing: compare within the share that is not zero
    ks = sorted({max(1, math.floor(keep * min(1.0, live) * units)) for keep in KEEPS})
    near, far = zip(*(_overlaps(magnitudes, k) for k in ks), strict=True)
    keeps = [round(k / units, 3) or k / units for k in ks]
    spread = _closest([law.far_overlaps(keep) for keep in keeps], far)
    return spread, _closest([law.next_overlaps(keep, spread) for keep in keeps], near)


def _overlaps(runs: list[np.ndarray], k: int) -> tuple[float, float]:
    """Share of a token's top-k that is in the next token's, and in a distant token's."""
    masks = [np.array([top_k(row, k) for row in run]) for run in runs]
    tokens = sum(len(mask) for mask in masks)
    lags = [
        sum(int(np.count_nonzero(mask[lag:] & mask[:-lag])) for mask in masks if len(mask) > lag)
        for lag in range(1, _NEAR + 1)
    ]
    pairs = [sum(max(0, len(mask) - lag) for mask in masks) for lag in range(1, _NEAR + 1)]
    # all pairs of tokens at once: a unit that is picked c times is common to c (c - 1) / 2 of them
    counts = np.sum([mask.sum(axis=0, dtype=np.int64) for mask in masks], axis=0)
    common = int((counts * (counts - 1)).sum()) // 2 - sum(lags)
    distant = tokens * (tokens - 1) // 2 - sum(pairs)
    return lags[0] / (max(1, pairs[0]) * k), common / (max(1, distant) * k)


def _closest(curves: list[tuple[np.ndarray, np.ndarray]], targets: tuple[float, ...]) -> float:
    """The parameter whose curves come closest to the targets, in relative terms."""
    fine = np.linspace(curves[0][0][0], curves[0][0][-1], 2001)
    misses = [
        (np.interp(fine, *curve) / max(target, 1e-6) - 1) ** 2 for curve, target in zip(curves, targets, strict=True)
    ]
    return float(fine[np.argmin(np.sum(misses, axis=0))])

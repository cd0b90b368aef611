"""Calibration: statistics of a recorded trace's signals for threshold and hot-set policies.

One file serves every density: it holds, for each layer and signal, quantiles of the magnitude at `LEVELS` equally
spaced shares, and policies interpolate. The quantiles themselves are exact, as a trace holds float16 values and the
histogram has a bin for each of them. ``glu`` that is computed from ``up`` and ``gate`` is rounded to float16, by 1 part
in 2,048 at most. With a threshold between two levels, the share of values above it differs from the requested share by
at most the distance of the levels, 1/1000; values equal to the threshold can add to that.

Signals are read block by block, so that memory use does not grow with the number of tokens. Prompt tokens do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import hwsim
from hwsim.model.shape import SIGNALS
from hwsim.trace import Sequences, Trace
from hwsim.util.arrayfile import ArrayFile
from hwsim.util.kernels import magnitude_counts, magnitude_quantiles

KIND = "hwsim-calibration"
LEVELS = 1001
_BLOCK = 2**20  # values read at once

Progress = Callable[[str, int, int], None]
"""Callback: receives (phase, steps done, steps in all)."""


def calibrate(trace: Trace, *, progress: Progress | None = None) -> ArrayFile:
    """Quantiles and means of the magnitudes of every signal of a trace, and of ``glu`` if up and gate give it.

    Args:
        trace: an open trace.
        progress: callback, see `Progress`.

    Returns:
        The header and, for each layer and signal, float32 ``layers/000/SIGNAL/quantiles`` ``[1001]``, of the magnitudes
        of all units and decoded tokens, and ``layers/000/SIGNAL/mean`` ``[width]``, the mean magnitude of each unit.

    Raises:
        TraceError: the trace is damaged, or keeps only a share of the values.
        ModelError: the model is a mixture of experts.
    """
    trace.check_whole("a calibration")
    trace.model.check_dense("a calibration")
    header, signals = trace.header, [signal for signal in SIGNALS if trace.has(signal)]
    arrays: dict[str, np.ndarray] = {}
    for signal in signals:
        for layer in header.model.layers_with(signal):
            quantiles, mean = _measure(trace, layer, signal)
            arrays[member(layer, signal, "quantiles")], arrays[member(layer, signal, "mean")] = quantiles, mean
            if progress:
                progress(f"calibrating {signal}", layer + 1, header.model.num_hidden_layers)
    facts: dict[str, Any] = {
        "hwsim": hwsim.__version__,
        "model": header.model.model_dump(),
        "origin": header.origin,
        "trace": trace.hash,
        "text": header.provenance.get("text"),
        "tokens": header.decoded,
        "signals": signals,
    }
    return ArrayFile(facts, arrays)


def member(layer: int, signal: str, part: str) -> str:
    """Name of an array: ``layers/000/gate/quantiles``."""
    return f"layers/{layer:03d}/{signal}/{part}"


def _measure(trace: Trace, layer: int, signal: str) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles, float32 ``[1001]``, and means, float32 ``[width]``, of one signal of one layer."""
    counts, total = magnitude_counts(np.empty(0, np.float32)), np.zeros(trace.model.signal_width(signal, layer))
    for block in _decoded(trace, layer, signal):
        counts += magnitude_counts(block)
        total += np.abs(block).sum(axis=0, dtype=np.float64)
    quantiles = magnitude_quantiles(counts, np.linspace(0, 1, LEVELS))
    return quantiles.astype(np.float32), (total / trace.header.decoded).astype(np.float32)


def _decoded(trace: Trace, layer: int, signal: str) -> Iterator[np.ndarray]:
    """The decoded tokens of a signal, float32 ``[tokens, width]``, in blocks."""
    step = max(1, _BLOCK // trace.model.signal_width(signal, layer))
    for part in Sequences(trace.header.sequences).decoded():
        for start in part.rows[::step]:
            yield trace.read(layer, signal, start, min(start + step, part.rows.stop))

"""The numeric kernels: top-k selection, and who stays in a cache. Plain twins are in the tests.

All ties go to the lower index, so that results are exact and the same everywhere.
"""

from __future__ import annotations

import numpy as np


def read_only(array: np.ndarray) -> np.ndarray:
    """The same memory, any shape, that whoever gets it cannot make writable again; it follows what the owner writes.

    A view with ``flags.writeable = False`` can be made writable as long as its owner is.
    """
    return np.frombuffer(array.data.toreadonly(), array.dtype).reshape(array.shape)


def top_k(scores: np.ndarray, k: int, out: np.ndarray | None = None) -> np.ndarray:
    """Mask of the `k` best scores; among equals the lower index is better.

    Args:
        scores: float32 ``[units]``, no NaN.
        k: how many, 0 to units.
        out: bool ``[units]`` to write into.

    Returns:
        bool ``[units]`` with `k` set.
    """
    units = scores.shape[0]
    if out is None:
        out = np.empty(units, bool)
    if k >= units:
        out[:] = True
        return out
    if k <= 0:
        out[:] = False
        return out
    threshold = np.partition(scores, units - k)[units - k]
    np.greater(scores, threshold, out=out)
    missing = k - int(np.count_nonzero(out))
    # at least one score equals the threshold; usually it is the only one
    out[np.flatnonzero(scores == threshold)[:missing]] = True
    return out


def stay(rank: np.ndarray, candidates: np.ndarray, count: int) -> np.ndarray:
    """Which `count` of the candidates stay in a cache: those of highest rank, among equals the lower index.

    Args:
        rank: any number type ``[units]``.
        candidates: bool ``[units]``.
        count: how many stay, 0 to the number of candidates.

    Returns:
        bool ``[units]``, a part of `candidates` with `count` set.
    """
    kept = np.zeros(candidates.shape[0], bool)
    indices = np.flatnonzero(candidates)
    kept[indices[top_k(rank[indices], count)]] = True
    return kept


def first_k(mask: np.ndarray, k: int) -> np.ndarray:
    """The `k` lowest set indices of `mask`, as a mask: bool ``[units]`` -> bool ``[units]``."""
    kept = np.zeros(mask.shape[0], bool)
    kept[np.flatnonzero(mask)[:k]] = True
    return kept

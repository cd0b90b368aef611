"""The numeric kernels: top-k selection, choice of the units that stay in a cache, quantiles of magnitudes.

All ties are broken by the lower index, so that results are exact and the same everywhere. The tests compare the kernels
with simple versions.
"""

from __future__ import annotations

import numpy as np

_FLOAT16_MAX = 65504.0
_BINS = 0x7C00  # magnitudes of finite float16 values, by their bit pattern
_SIGN_AND_SIZE = np.int32(-0x80000000 | 0x7FFF << 13)  # where a float16's bits lie in a float32
_REBIAS = np.float32(2.0**112)  # between the exponents of the two
_SUBNORMAL = np.float32(2.0**-136)  # the least positive float16, where it lies


def read_only(array: np.ndarray) -> np.ndarray:
    """A view of the same memory, any shape, that cannot be made writable again; it shows later writes of the owner.

    A view with ``flags.writeable = False`` can be made writable as long as its owner is writable.
    """
    return np.frombuffer(array.data.toreadonly(), array.dtype).reshape(array.shape)


def kept(keep: float, count: int) -> int:
    """Number of items in a share `keep` of `count`: floor(keep x count) with a tolerance for rounding, at least 1."""
    return max(1, int(keep * count + 1e-9))


def finite(halves: np.ndarray) -> np.ndarray:
    """Mask of the float16 values, of any shape, that are neither NaN nor infinite: bool, the same shape."""
    return (halves.view(np.uint16) & np.uint16(0x7FFF)) < _BINS


def all_finite(halves: np.ndarray) -> bool:
    """Whether all float16 values are finite; takes two reductions and no copy."""
    if not halves.size:
        return True
    # read as int16, positive floats sort last; read as uint16, negative floats do
    positive, negative = int(halves.view(np.int16).max()), int(halves.view(np.uint16).max())
    return positive < _BINS and negative < _BINS + 0x8000


def widen(halves: np.ndarray) -> np.ndarray:
    """Finite float16 values as float32, any shape: bit-identical to `astype` in a third of its time.

    numpy converts one value after the other. Here the bits of many values at once move to their place in a float32.
    A product with a power of two, which is exact, then corrects the exponent.
    """
    if np.float32(2.0**-24) != _SUBNORMAL * _REBIAS:  # this thread treats subnormal numbers as 0
        return halves.astype(np.float32)
    bits = halves.view(np.int16).astype(np.int32)
    bits <<= 13
    bits &= _SIGN_AND_SIZE
    values = bits.view(np.float32)
    values *= _REBIAS
    return values


def top_k(scores: np.ndarray, k: int, out: np.ndarray | None = None) -> np.ndarray:
    """Mask of the `k` best scores; ties are broken by the lower index.

    Args:
        scores: float32 ``[units]``, no NaN.
        k: number of units, 0 to all.
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
    """Mask of the `count` candidates that stay in a cache: those of highest rank; ties are broken by the lower index.

    Args:
        rank: any number type ``[units]``.
        candidates: bool ``[units]``.
        count: number that stay, 0 to the number of candidates.

    Returns:
        bool ``[units]``, a subset of `candidates` with `count` set.
    """
    mask = np.zeros(candidates.shape[0], bool)
    indices = np.flatnonzero(candidates)
    mask[indices[top_k(rank[indices], count)]] = True
    return mask


def first_k(mask: np.ndarray, k: int) -> np.ndarray:
    """The `k` lowest set indices of `mask`, as a mask: bool ``[units]`` -> bool ``[units]``."""
    lowest = np.zeros(mask.shape[0], bool)
    lowest[np.flatnonzero(mask)[:k]] = True
    return lowest


def magnitude_counts(values: np.ndarray) -> np.ndarray:
    """How often each float16 magnitude occurs: a histogram that holds every value of a trace exactly.

    Args:
        values: finite float32, any shape; rounded to float16 and clipped at 65504.

    Returns:
        int64 ``[31744]``, counts of the values that `magnitudes` lists.
    """
    bits = np.minimum(np.abs(values), _FLOAT16_MAX).astype(np.float16).view(np.uint16)
    return np.bincount(bits.ravel(), minlength=_BINS).astype(np.int64)


def magnitudes() -> np.ndarray:
    """Every finite float16 magnitude, ascending: float64 ``[31744]``."""
    return np.arange(_BINS, dtype=np.uint16).view(np.float16).astype(np.float64)


def magnitude_quantiles(counts: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The smallest magnitudes that the given shares of all values do not exceed.

    Args:
        counts: from `magnitude_counts`, at least one value.
        shares: float64 ``[n]``, 0 to 1; for 0 the quantile is 0.

    Returns:
        float64 ``[n]``.
    """
    cumulative = np.cumsum(counts)
    return magnitudes()[np.searchsorted(cumulative, np.ceil(shares * cumulative[-1] - 1e-9))]


def threshold(quantiles: np.ndarray, keep: float) -> np.float32:
    """The threshold that a share `keep` of all magnitudes exceeds, strictly; -1 if all must exceed it.

    Args:
        quantiles: float32 ``[levels]``, of `magnitude_quantiles` at equally spaced shares from 0 to 1.
        keep: 0 to 1; between two levels the quantile is interpolated linearly.
    """
    if keep >= 1:
        return np.float32(-1)
    return np.float32(np.interp(1 - keep, np.linspace(0, 1, len(quantiles)), quantiles))

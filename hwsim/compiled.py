"""The scan of many tokens as one compiled loop: re-weighting, top-k, hits and cache update. Needs numba, an extra.

It decides exactly what `hwsim.kernels` and `hwsim.cache` decide token by token, to the bit; a test holds it to them.
It serves policies that give the scores of many tokens at once, and evictions whose rank is one number a unit.

Selection counts keys instead of sorting them: a float's bits, seen as a whole number, rise with it, so three passes
over 11, 11 and 10 bits find the k-th largest, the later ones over the few that share the first bits.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import numpy as np

RankUpdate = Literal["last", "count", "first"]
"""What serving a token does to a rank: the token at which a unit was last needed, how often it was, or admitted."""

_UPDATES: dict[str, int] = {"last": 0, "count": 1, "first": 2}
_BINS = 2048


@cache
def available() -> bool:
    """Whether numba is installed and can be imported: it refuses versions of numpy that it does not know."""
    try:
        import numba  # noqa: F401
    except Exception:
        return False
    return True


def serve(
    values: np.ndarray, uncached: np.ndarray, k: int, capacity: int, update: RankUpdate, cached: np.ndarray,
    rank: np.ndarray, token: int,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Decide the masks of some tokens, each after the one before it went through the cache.

    Args:
        values: float32 ``[tokens, units]``, no NaN: the score of what is cached.
        uncached: float32 ``[tokens]``: times this it is the score of what is not.
        k: units of each mask, at least 1.
        capacity: of the cache; 0: nothing is kept.
        update: of `rank`.
        cached: bool ``[units]``: what is in the cache; changed.
        rank: int32 ``[units]``: who stays; changed.
        token: number of the first of the tokens in its sequence.

    Returns:
        Masks, bool ``[tokens, units]``, and hits, int32 ``[tokens]``.
    """
    tokens, units = values.shape
    masks, hits = np.empty((tokens, units), bool), np.zeros(tokens, np.int32)
    scores = np.empty(units, np.float32)
    _kernel()(
        values, uncached, min(k, units), capacity, _UPDATES[update], cached, rank, token, masks, hits, scores,
        scores.view(np.int32), np.empty(units, np.uint32), np.empty(units, np.uint32), np.empty(_BINS, np.int64),
    )  # fmt: skip
    return masks, hits


@cache
def _kernel() -> Any:
    """The compiled loop; numba is imported when it is first needed, and keeps its code on disk."""
    import numba

    def compiled(function: Any) -> Any:
        try:
            return numba.njit(cache=True, nogil=True)(function)
        except RuntimeError:  # no folder to keep the code in
            return numba.njit(nogil=True)(function)

    @compiled
    def pick(hist: Any, k: Any) -> Any:  # the bin that holds the k-th largest, and how many are in those above it
        above = 0
        at = hist.shape[0] - 1
        while above + hist[at] < k:
            above += hist[at]
            at -= 1
        return at, above

    @compiled
    def threshold(
        keys: Any, count: Any, k: Any, rest: Any, hist: Any
    ) -> Any:  # the k-th largest key, and how many of its equals are among the k
        hist[:] = 0
        for i in range(count):
            hist[keys[i] >> 21] += 1
        high, above = pick(hist, k)
        k -= above
        found = 0
        for i in range(count):
            if keys[i] >> 21 == high:
                rest[found] = keys[i]
                found += 1
        hist[:] = 0
        for i in range(found):
            hist[(rest[i] >> 10) & 2047] += 1
        middle, above = pick(hist, k)
        k -= above
        hist[:1024] = 0
        hist[1024:] = 0
        for i in range(found):
            if (rest[i] >> 10) & 2047 == middle:
                hist[rest[i] & 1023] += 1
        low, above = pick(hist, k)
        return np.uint32((high << 21) | (middle << 10) | low), k - above

    @compiled
    def loop(
        values: Any, uncached: Any, k: Any, capacity: Any, update: Any, cached: Any, rank: Any, token: Any,
        masks: Any, hits: Any, scores: Any, bits: Any, keys: Any, rest: Any, hist: Any,
    ) -> None:  # fmt: skip
        tokens, units = values.shape
        occupied = 0
        for i in range(units):
            occupied += cached[i]
        for t in range(tokens):
            mask, factor = masks[t], uncached[t]
            for i in range(units):
                scores[i] = values[t, i] if cached[i] else factor * values[t, i]
            for i in range(units):
                b: Any = np.int64(bits[i])
                if scores[i] == 0:  # -0 is 0
                    b = 0
                elif b < 0:  # of negative numbers the bits fall
                    b = -1 - (b & 0x7FFFFFFF)
                keys[i] = np.uint32(b + 0x80000000)
            if k >= units:
                for i in range(units):
                    mask[i] = True
            else:
                least, equals = threshold(keys, units, k, rest, hist)
                for i in range(units):
                    mask[i] = keys[i] > least
                    if keys[i] == least and equals > 0:
                        mask[i] = True
                        equals -= 1
            if capacity == 0:
                continue
            there = 0
            for i in range(units):
                there += mask[i] and cached[i]
            hits[t] = there
            now = token + t
            if update == 0:
                for i in range(units):
                    if mask[i]:
                        rank[i] = now
            elif update == 1:
                for i in range(units):
                    rank[i] += mask[i]
            if k > capacity:  # hits stay, then the lowest misses fill what is left
                room = capacity - there
                for i in range(units):
                    if mask[i] and not cached[i] and room > 0:
                        cached[i] = True
                        room -= 1
                        if update == 2:
                            rank[i] = now
                    elif not mask[i]:
                        cached[i] = False
                occupied = capacity
                continue
            if update == 2:
                for i in range(units):
                    if mask[i] and not cached[i]:
                        rank[i] = now
            idle, stay = occupied - there, capacity - k
            if idle > stay:
                if stay == 0:
                    for i in range(units):
                        cached[i] = mask[i]
                else:
                    count = 0
                    for i in range(units):
                        if cached[i] and not mask[i]:
                            keys[count] = np.uint32(np.int64(rank[i]) + 0x80000000)
                            count += 1
                    least, equals = threshold(keys, count, stay, rest, hist)
                    for i in range(units):
                        if mask[i]:
                            cached[i] = True
                        elif cached[i]:
                            key = np.uint32(np.int64(rank[i]) + 0x80000000)
                            cached[i] = key > least
                            if key == least and equals > 0:
                                cached[i] = True
                                equals -= 1
                idle = stay
            else:
                for i in range(units):
                    if mask[i]:
                        cached[i] = True
            occupied = k + idle

    return loop

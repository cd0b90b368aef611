"""The loops of the compiled scan: functions that numba compiles and keeps on disk. Imported only where they are needed.

They stand in a module, not in a function: numba does not find again what it kept of inner functions that call each
other.

Nothing is sorted. A mask follows from a limit that exactly k scores exceed, and counting what exceeds a limit takes a
processor one instruction for 8 or 16 scores. The search begins at the limit of the token before, goes on between the
two that are known to be too low and too high, and needs some ten counts. Who stays in a cache is found the same way,
by rank. Loops are free of branches and begin at index 0, of views if need be, so that vector instructions come of them.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

_LEAST, _MOST = -0x7F800000, 0x7F800000  # of the keys of floats: those of both infinities
_STEP = 1 << 21  # of keys: a quarter of an octave
_FEW = 4  # values between two limits from which on the next one is looked up


def _compiled(function: Any) -> Any:
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # no folder to keep the code in
        return numba.njit(nogil=True)(function)


@_compiled
def above(values: Any, limit: Any) -> Any:  # how many exceed it
    count = np.int32(0)
    for i in range(values.shape[0]):
        count = np.int32(count + np.int32(values[i] > limit))
    return count


@_compiled
def following(bits: Any, limit: Any) -> Any:  # the least key of those that exceed the key `limit`
    least = np.int32(_MOST)
    for i in range(bits.shape[0]):
        key = bits[i] if bits[i] >= 0 else -(bits[i] & 0x7FFFFFFF)
        least = np.int32(min(np.int32(key if key > limit else _MOST), least))
    return least


@_compiled
def cut(flags: Any, count: Any) -> Any:  # the index before which the first `count` of the flags lie
    units = flags.shape[0]
    start = 0
    while count > 0 and start < units:
        stop = min(start + 64, units)
        there = above(flags[start:stop], 0)
        if there > count:
            while count > 0:
                count -= flags[start]
                start += 1
            return start
        count -= there
        start = stop
    return start


@_compiled
def mark(values: Any, limit: Any, end: Any, mask: Any) -> None:  # what exceeds it; before `end`, what equals it too
    first, rest, others = mask[:end], mask[end:], values[end:]
    for i in range(end):
        first[i] = values[i] >= limit
    for i in range(others.shape[0]):
        rest[i] = others[i] > limit


@_compiled
def float_of(key: Any, one: Any, bits: Any) -> Any:  # keys are whole numbers in the order of the floats; 0 is -0
    bits[0] = key if key >= 0 else -key | -0x80000000
    return one[0]


@_compiled
def key_of(value: Any, one: Any, bits: Any) -> Any:
    one[0] = value
    key: Any = np.int64(bits[0])
    return key if key >= 0 else -(key & 0x7FFFFFFF)


@_compiled
def split(scores: Any, keys: Any, k: Any, guess: Any, one: Any, bits: Any) -> Any:
    # a limit, and how many of those equal to it are among the k largest besides all that exceed it
    low, high = _LEAST - 1, _MOST
    over, under = scores.shape[0], 0  # how many exceed low, high: more than k, fewer than k
    at: Any = min(max(guess, low + 1), high - 1)
    step, tries = _STEP, 0
    while True:
        limit = float_of(at, one, bits)
        count = above(scores, limit)
        if count == k:
            return at, limit, 0
        if count > k:
            low, over = at, count
        else:
            high, under = at, count
        if high - low == 1:
            return high, float_of(high, one, bits), k - under
        tries += 1
        if low < _LEAST:  # none is known to be too low
            at, step = high - step, step * 2
        elif high == _MOST:
            at, step = low + step, step * 2
        elif over - under <= _FEW:
            at = np.int64(following(keys, low))
            limit = float_of(at, one, bits)
            count = above(scores, limit)
            if count <= k:
                return at, limit, k - count
            low, over = at, count
            at = low + (high - low) // 2
        elif tries % 4 == 0:  # it is halved at least so often, whatever the scores are
            at = low + (high - low) // 2
        else:
            first, last = float_of(low, one, bits), float_of(high, one, bits)
            share = np.float32(over - k) / np.float32(over - under)
            at = key_of(first + share * (last - first), one, bits)
        at = min(max(at, low + 1), high - 1)


@_compiled
def split_ranks(ranks: Any, k: Any, guess: Any) -> Any:  # the same of whole numbers
    low, high = -0x80000000, 0x7FFFFFFF
    under, step = 0, 1
    at = min(max(guess, low + 1), high - 1)
    while True:
        count = above(ranks, np.int32(at))
        if count == k:
            return at, 0
        if count > k:
            low = at
        else:
            high, under = at, count
        if high - low == 1:
            return high, k - under
        if low == -0x80000000:
            at, step = high - step, step * 2
        elif high == 0x7FFFFFFF:
            at, step = low + step, step * 2
        else:
            at = low + (high - low) // 2
        at = min(max(at, low + 1), high - 1)


@_compiled
def loop(
    values: Any, uncached: Any, k: Any, capacity: Any, update: Any, cached: Any, rank: Any, token: Any,
    masks: Any, hits: Any, before: Any, scores: Any, keys: Any, ranks: Any, flags: Any, one: Any, bits: Any,
) -> None:  # fmt: skip
    tokens, units = values.shape
    occupied = np.int64(0)
    for i in range(units):
        occupied += cached[i]
    guess, oldest = np.int64(0x3F800000), np.int64(token)  # 1.0
    for t in range(tokens):
        mask, value, factor, now = masks[t], values[t], uncached[t], np.int32(token + t)
        if before.shape[0]:
            before[t, :] = cached
        if k >= units:
            mask[:] = 1
        else:
            for i in range(units):
                scores[i] = value[i] if cached[i] else factor * value[i]
            guess, limit, equals = split(scores, keys, k, guess, one, bits)
            end = 0
            if equals:
                for i in range(units):
                    flags[i] = scores[i] == limit
                end = cut(flags, equals)
            mark(scores, limit, end, mask)
        if capacity == 0:
            continue
        there = np.int32(0)
        for i in range(units):
            there = np.int32(there + (mask[i] & cached[i]))
        hits[t] = there
        if update == 0:
            for i in range(units):
                rank[i] = now if mask[i] else rank[i]
        elif update == 1:
            for i in range(units):
                rank[i] += mask[i]
        if k > capacity:  # hits stay, then the lowest misses fill what is left
            for i in range(units):
                flags[i] = mask[i] & (1 - cached[i])
            end = cut(flags, capacity - there)
            if update == 2:
                for i in range(end):
                    rank[i] = now if flags[i] else rank[i]
            for i in range(end):
                cached[i] = mask[i]
            kept, asked = cached[end:], mask[end:]
            for i in range(units - end):
                kept[i] &= asked[i]
            occupied = capacity
            continue
        if update == 2:
            for i in range(units):
                rank[i] = now if mask[i] > cached[i] else rank[i]
        idle, stay = occupied - there, capacity - k
        if idle <= stay:
            for i in range(units):
                cached[i] |= mask[i]
        elif stay == 0:
            for i in range(units):
                cached[i] = mask[i]
        else:
            for i in range(units):
                ranks[i] = rank[i] if cached[i] > mask[i] else np.int32(-0x80000000)
            oldest, equals = split_ranks(ranks, stay, oldest)
            last, end = np.int32(oldest), 0
            if equals:
                for i in range(units):
                    flags[i] = ranks[i] == last
                end = cut(flags, equals)
            mark(ranks, last, end, cached)
            for i in range(units):
                cached[i] |= mask[i]
        occupied = k + min(idle, stay)

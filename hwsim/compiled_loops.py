"""The loops of the compiled scan: functions that numba compiles and keeps on disk. Imported only where they are needed.

They stand in a module, not in a function: numba does not find again what it kept of inner functions that call each
other.

Nothing is sorted. Scores are cut to keys of 16 bits in the same order, of which a processor compares 16 or 32 in one
instruction. A mask follows from a limit that k keys exceed, found by counting: the search begins at the limit of the
token before and goes on between two that are known to be too low and too high, some five counts. The few scores that
share the key at the limit are looked at whole, so the mask is exact whatever the scores are. Who stays in a cache is
found the same way, by rank. Loops are free of branches and begin at index 0, of views if need be, so that vector
instructions come of them.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

_LEAST, _MOST = -0x7F800000, 0x7F800000  # of the whole numbers of floats: those of both infinities
_SHORT = 32640  # how many a 16-bit number counts for sure, a multiple of what a vector holds
_CUT = np.int32(13)  # bits of a float32's mantissa that a key is without: 10 are left
_LOWEST = np.int32((87 << 10) + 0x8000)  # the key -32768 is 2**-40, and what is less; 32767 is 2**24, and what is more
_KEYS = (-0x8000, 0x7FFF)
_FEW = 2  # keys between two limits from which on they are looked at one by one
_FAR, _NEAR = 512, 64  # in how many they are looked for together


def _compiled(function: Any) -> Any:
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # no folder to keep the code in
        return numba.njit(nogil=True)(function)


def _intrinsic(function: Any) -> Any:
    return intrinsic(function)


@_intrinsic
def bits_of(context: Any, value: Any) -> Any:  # of a float32: int32
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return numba.types.int32(numba.types.float32), generate


@_intrinsic
def with_bits(context: Any, bits: Any) -> Any:  # of an int32: float32
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return numba.types.float32(numba.types.int32), generate


@_compiled
def above(values: Any, limit: Any) -> Any:  # how many exceed it
    count = np.int64(0)
    for start in range(0, values.shape[0], _SHORT):
        part, there = values[start : start + _SHORT], np.int16(0)
        for i in range(part.shape[0]):
            there = np.int16(there + np.int16(part[i] > limit))
        count += there
    return count


@_compiled
def cut(values: Any, value: Any, count: Any) -> Any:  # the index before which the first `count` that equal it lie
    start = 0
    while count > 0:
        part, there = values[start : start + 256], np.int16(0)
        for i in range(part.shape[0]):
            there = np.int16(there + np.int16(part[i] == value))
        if there >= count:
            while count > 0:
                count -= np.int64(values[start] == value)
                start += 1
            return start
        count -= there
        start += 256
    return start


@_compiled
def float_of(key: Any) -> Any:  # keys of floats are whole numbers in their order; 0 is -0
    return with_bits(np.int32(key if key >= 0 else -key | -0x80000000))


@_compiled
def key_of(value: Any) -> Any:
    key: Any = np.int64(bits_of(np.float32(value)))
    return key if key >= 0 else -(key & 0x7FFFFFFF)


@_compiled
def split(scores: Any, k: Any) -> Any:
    # a limit of floats, and how many of those equal to it are among the k largest besides all that exceed it
    low, high, under = _LEAST - 1, _MOST, 0  # more than k exceed the one, `under` and at most k the other
    at, step = min(max(key_of(scores[0]), low + 1), high - 1), 1 << 11
    while True:
        limit = float_of(at)
        count = above(scores, limit)
        if count == k:
            return limit, 0
        if count > k:
            low = at
        else:
            high, under = at, count
        if high - low == 1:
            return float_of(high), k - under
        if low < _LEAST:  # none is known to be too low
            at, step = high - step, step * 2
        elif high == _MOST:
            at, step = low + step, step * 2
        else:
            at = low + (high - low) // 2
        at = min(max(at, low + 1), high - 1)


@_compiled
def shorten(value: Any, factor: Any, cached: Any, keys: Any) -> None:  # scores as keys in the same order, some alike
    for i in range(value.shape[0]):
        score = value[i] if cached[i] else factor * value[i]
        key = np.int32((bits_of(score) >> _CUT) - _LOWEST)
        keys[i] = np.int16(min(max(key, np.int32(-0x8000)), np.int32(0x7FFF)))


@_compiled
def between(keys: Any, k: Any, known: Any, few: Any, bounds: Any) -> Any:
    # two keys: k or more, `over`, exceed the one, k or fewer, `under`, the other; they are neighbours, or at most `few`
    # lie between
    # known: where to begin, and how many share a key near there; bounds: the least and the greatest key
    least, most = np.int64(bounds[0]), np.int64(bounds[1])
    low, high, over, under = least - 1, most, np.int64(keys.shape[0]), np.int64(0)
    at = min(max(np.int64(known[0]), low + 1), high - 1)
    last, counted, tries = at, np.int64(0), 0
    while True:
        count = above(keys, keys.dtype.type(at))
        if count >= k:
            low, over = at, count
        if count <= k:
            high, under = at, count
        if over - under <= few or high - low <= 1:
            known[0] = high
            return low, high, over, under
        tries += 1
        if tries == 2 and at != last and count != counted:
            known[1] += 0.25 * ((counted - count) / (at - last) - known[1])
        last, counted = at, count
        if low >= least and high < most and tries % 4 == 0:  # it is halved at least so often
            at = (low + high) // 2
        elif low >= least and high < most and tries > 2:
            at = low + np.int64(np.round((over - k) * (high - low) / (over - under)))
        else:
            step = (count - k) / known[1] * (1.0 if tries < 3 else 2.0 ** min(tries, 40))
            at += np.int64(np.round(min(max(step, least - most), most - least)))
        at = min(max(at, low + 1), high - 1)


@_compiled
def nearest(keys: Any, low: Any) -> Any:  # how far above `low` the next one is that is above
    least, after = np.uint16(0xFFFF), np.int16(low + 1)
    for i in range(keys.shape[0]):
        least = min(least, np.uint16(keys[i] - after))
    return least


@_compiled
def gather(
    value: Any, factor: Any, cached: Any, keys: Any, low: Any, high: Any, count: Any, found: Any, scores: Any
) -> None:  # the indices and the whole scores of the `count` that exceed `low` and not `high`
    total, width = 0, np.uint16(high - low)
    start = 0
    while total < count:
        if nearest(keys[start : start + _FAR], low) < width:
            for near in range(start, min(start + _FAR, keys.shape[0]), _NEAR):
                part = keys[near : near + _NEAR]
                if nearest(part, low) < width:
                    for i in range(part.shape[0]):
                        if low < part[i] <= high:
                            at = near + i
                            found[total] = at
                            scores[total] = value[at] if cached[at] else factor * value[at]
                            total += 1
        start += _FAR


@_compiled
def select(
    value: Any, factor: Any, cached: Any, k: Any, known: Any, keys: Any, found: Any, scores: Any, mask: Any
) -> None:  # the k largest
    shorten(value, factor, cached, keys)
    low, high, over, under = between(keys, k, known, _FEW, _KEYS)
    limit = np.int16(high)
    for i in range(keys.shape[0]):
        mask[i] = keys[i] > limit
    missing = k - under
    if missing:
        total = over - under
        gather(value, factor, cached, keys, low, high, total, found, scores)
        if missing == total:
            for i in range(total):
                mask[found[i]] = 1
        else:
            least, equals = split(scores[:total], missing)
            for i in range(total):
                if scores[i] > least:
                    mask[found[i]] = 1
                elif equals and scores[i] == least:
                    mask[found[i]] = 1
                    equals -= 1


@_compiled
def touch(mask: Any, cached: Any, rank: Any, ranks: Any, now: Any, none: Any, update: Any) -> Any:
    # a mask is served: the ranks of all, those of who is cached and not asked for, and the number of hits
    hits, number = np.int64(0), rank.dtype.type
    for start in range(0, mask.shape[0], _SHORT):
        asked, held, there = mask[start : start + _SHORT], cached[start : start + _SHORT], np.int16(0)
        old, idle = rank[start : start + _SHORT], ranks[start : start + _SHORT]
        if update == 0:
            for i in range(asked.shape[0]):
                there = np.int16(there + np.int16(asked[i] & held[i]))
                new = now if asked[i] else old[i]
                old[i], idle[i] = new, new if held[i] > asked[i] else none
        elif update == 1:
            for i in range(asked.shape[0]):
                there = np.int16(there + np.int16(asked[i] & held[i]))
                new = number(old[i] + asked[i])
                old[i], idle[i] = new, new if held[i] > asked[i] else none
        else:
            since = now if update == 2 else none
            for i in range(asked.shape[0]):
                there = np.int16(there + np.int16(asked[i] & held[i]))
                new = since if (since != none) & (asked[i] > held[i]) else old[i]
                old[i], idle[i] = new, new if held[i] > asked[i] else none
        hits += there
    return hits


@_compiled
def stay(cached: Any, mask: Any, ranks: Any, last: Any, end: Any) -> None:
    # who exceeds the rank `last`, and before index `end` who equals it, stays; the mask comes in
    for i in range(end):
        cached[i] = mask[i] | np.uint8(ranks[i] >= last)
    kept, wanted, others = cached[end:], mask[end:], ranks[end:]
    for i in range(kept.shape[0]):
        kept[i] = wanted[i] | np.uint8(others[i] > last)


@_compiled
def fill(cached: Any, mask: Any, rank: Any, keys: Any, room: Any, now: Any, update: Any) -> None:
    # a mask larger than the cache: hits stay, then the lowest misses fill what is left
    for i in range(mask.shape[0]):
        keys[i] = mask[i] & (1 - cached[i])
    end = cut(keys, np.int16(1), room)
    if update == 2:
        for i in range(end):
            rank[i] = now if keys[i] else rank[i]
    for i in range(end):
        cached[i] = mask[i]
    kept, wanted = cached[end:], mask[end:]
    for i in range(kept.shape[0]):
        kept[i] &= wanted[i]


@_compiled
def loop(
    values: Any, uncached: Any, k: Any, capacity: Any, update: Any, cached: Any, rank: Any, token: Any, masks: Any,
    hits: Any, before: Any, keys: Any, found: Any, scores: Any, ranks: Any, known: Any, bounds: Any,
) -> None:  # fmt: skip
    tokens, units = values.shape
    none, sought, aged = rank.dtype.type(bounds[0]), known[1], update != 1
    sought[0] = token - sought[0]
    occupied = np.int64(0)
    for i in range(units):
        occupied += cached[i]
    for t in range(tokens):
        mask, value, now = masks[t], values[t], rank.dtype.type(token + t)
        if before.shape[0]:
            before[t, :] = cached
        if k >= units:
            mask[:] = 1
        else:
            select(value, uncached[t], cached, k, known[0], keys, found, scores, mask)
        if capacity == 0:
            continue
        there = touch(mask, cached, rank, ranks, now, none, update if update < 2 or k <= capacity else 3)
        hits[t] = there
        if k > capacity:
            fill(cached, mask, rank, keys, capacity - there, now, update)
            occupied = capacity
            continue
        idle, room = occupied - there, capacity - k
        if idle <= room:
            for i in range(units):
                cached[i] |= mask[i]
        elif room == 0:
            for i in range(units):
                cached[i] = mask[i]
        else:
            sought[0] += aged
            _, last, _, under = between(ranks, room, sought, 0, bounds)
            oldest = rank.dtype.type(last)
            stay(cached, mask, ranks, oldest, cut(ranks, oldest, room - under))
        occupied = k + min(idle, room)
    sought[0] = token + tokens - sought[0]

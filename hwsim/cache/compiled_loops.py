"""The loops of the compiled scan: functions that numba compiles and keeps on disk. Imported only where they are needed.

They stand in one module, not in a function and not in several files: numba does not find again what it kept of inner
functions that call each other, and takes what it kept of a function for good as long as its own file is the same.

Nothing is sorted. Scores are cut to keys of 16 bits in the same order, of which a processor compares 16 or 32 in one
instruction; of magnitudes that a trace stores as float16 the keys are the stored bits. A mask follows from two limits
that k keys reach, one of what is cached and one of what is not: units beyond both are in it, whatever is cached. They
are found by counting: the search begins at the limit of the token before and goes on between two that are known to be
too low and too high, some four counts. The few scores between the last two are looked at whole, so the mask is exact
whatever the scores are. Who stays in a cache is found the same way, by rank.

Loops are free of branches and of loads under a condition, and begin at index 0, of views if need be, so that vector
instructions come of them on every processor. Arrays are not counted as used (`_nrt`): nothing here makes one, and
counting took a sixth of the time.
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
_LOWEST = np.int32((87 << 10) + 0x8000)  # the key -32768 would be 2**-40
_LIMITS = (-0x7FFF, 0x8000)  # of keys of float32: all reach the first, also negative scores, none the last
_HALF_LIMITS = (0, 0x7C00)  # of keys of float16 magnitudes; the last is infinity
_NORMAL, _TINY = np.float32(2.0**-14), np.float32(2.0**-24)  # the least normal float16, and the least of all
_FEW = 4  # scores between two limits from which on they are looked at one by one
_NEAR = 256  # units among which they are looked for together
_SOME = 32  # how many are compared each with each


def _compiled(function: Any) -> Any:
    options: Any = {"nogil": True, "error_model": "numpy", "_nrt": False}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder to keep the code in
        return numba.njit(**options)(function)


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
def least_of(key: Any, halves: Any) -> Any:  # the least value that has a key
    if halves:
        if key < 0x400:
            return np.float32(key) * _TINY
        return with_bits(np.int32((key << 13) + (112 << 23)))
    if key <= _LIMITS[0]:
        return np.float32(-np.inf)
    if key >= _LIMITS[1]:
        return np.float32(np.inf)
    return with_bits(np.int32((key + np.int64(_LOWEST)) << 13))


@_compiled
def key_near(value: Any, halves: Any) -> Any:  # the key of a value, or a neighbour
    least, most = _HALF_LIMITS if halves else _LIMITS
    if not value > 0:
        return np.int64(least)
    bits = np.int64(bits_of(value) >> _CUT)
    if not halves:
        key = bits - np.int64(_LOWEST)
    elif value < _NORMAL:
        key = np.int64(value / _TINY)
    else:
        key = bits - (112 << 10)
    return min(max(key, np.int64(least)), np.int64(most))


@_compiled
def matching(limit: Any, factor: Any, halves: Any) -> Any:
    # the least key of which all values times `factor` reach the least value that has the key `limit`
    least, most = _HALF_LIMITS if halves else _LIMITS
    if factor == 1 or limit <= least or limit >= most:
        return np.int64(limit)
    wanted = least_of(limit, halves)
    if factor <= 0:
        return np.int64(least if wanted <= 0 else most)
    key = key_near(wanted / factor, halves)
    while key > least and factor * least_of(key - 1, halves) >= wanted:
        key -= 1
    while key < most and factor * least_of(key, halves) < wanted:
        key += 1
    return key


@_compiled
def reach(keys: Any, held: Any, limit: Any, other: Any) -> Any:  # how many do: the limit if held, else the other
    total, under = np.int64(0), np.int16(other - 1)
    apart = np.int16(np.int16(limit - 1) - under)
    for start in range(0, keys.shape[0], _SHORT):
        part, is_held, there = keys[start : start + _SHORT], held[start : start + _SHORT], np.int16(0)
        for i in range(part.shape[0]):
            there = np.int16(there + np.int16(part[i] > np.int16(under + np.int16(is_held[i] & apart))))
        total += there
    return total


@_compiled
def reach_first(row: Any, keys: Any, held: Any, limit: Any, other: Any) -> Any:  # of float32, whose keys are made
    total, under = np.int64(0), np.int16(other - 1)
    apart = np.int16(np.int16(limit - 1) - under)
    for start in range(0, keys.shape[0], _SHORT):
        values, part = row[start : start + _SHORT], keys[start : start + _SHORT]
        is_held, there = held[start : start + _SHORT], np.int16(0)
        for i in range(part.shape[0]):
            whole = np.int32((bits_of(values[i]) >> _CUT) - _LOWEST)
            key = np.int16(min(max(whole, np.int32(-0x7FFF)), np.int32(0x7FFF)))
            part[i] = key
            there = np.int16(there + np.int16(key > np.int16(under + np.int16(is_held[i] & apart))))
        total += there
    return total


@_compiled
def reach_first_half(row: Any, keys: Any, held: Any, limit: Any, other: Any) -> Any:  # of float16's bits
    total, under = np.int64(0), np.int16(other - 1)
    apart = np.int16(np.int16(limit - 1) - under)
    for start in range(0, keys.shape[0], _SHORT):
        bits, part = row[start : start + _SHORT], keys[start : start + _SHORT]
        is_held, there = held[start : start + _SHORT], np.int16(0)
        for i in range(part.shape[0]):
            key = bits[i] & np.int16(0x7FFF)
            part[i] = key
            there = np.int16(there + np.int16(key > np.int16(under + np.int16(is_held[i] & apart))))
        total += there
    return total


@_compiled
def advance(at: Any, count: Any, k: Any, aim: Any, low: Any, high: Any, over: Any, under: Any, sides: Any,
            tries: Any, shared: Any, span: Any) -> Any:  # fmt: skip
    # where to count next. sides: both are known; shared: how many share a value near there; span: of all values
    if sides and tries % 4 == 0:  # it is halved at least so often
        at = (low + high) // 2
    elif sides and tries > 2:
        at = low + np.int64(np.round((over - k) * (high - low) / (over - under)))
    else:
        step = (count - k + aim) / shared * (1.0 if tries < 3 else 2.0 ** min(tries, 40))
        at += np.int64(np.round(min(max(step, -span), span)))
    return min(max(at, low + 1), high - 1)


@_compiled
def search(row: Any, half: Any, keys: Any, held: Any, k: Any, factor: Any, known: Any) -> Any:
    # two limits of what is held, with their others: k or more, `over`, reach the low one, k or fewer, `under`, the high
    # one; they are neighbours, or at most _FEW lie between. Then how many do, or -1, and how many reach the high one
    halves = half.shape[0] > 0
    least, most = _HALF_LIMITS if halves else _LIMITS
    # between two keys, what is not held may reach a limit and have a key below the other: it is counted as if it did
    slack = np.int64(not halves and factor != 1)
    low, high, over, under = np.int64(least), np.int64(most), np.int64(keys.shape[0]), np.int64(0)
    low_other, high_other = low, high
    at = min(max(np.int64(known[0]), low + 1), high - 1)
    last, counted, tries = at, np.int64(0), 0
    while True:
        other = matching(at, factor, halves)
        outer = max(other - slack, np.int64(least))
        if tries:
            count = reach(keys, held, at, outer)
        elif halves:
            count = reach_first_half(half, keys, held, at, outer)
        else:
            count = reach_first(row, keys, held, at, outer)
        if count >= k:
            low, over, low_other = at, count, other
        if count <= k:
            high, under, high_other = at, count, other
        if over - under <= _FEW or high - low <= 1:
            break
        tries += 1
        if tries == 2 and at != last and count != counted:
            known[1] += 0.25 * ((counted - count) / (at - last) - known[1])
        last, counted = at, count
        aim = _FEW // 2 if count > k else -(_FEW // 2)  # to have k between this one and the next
        sides = low > least and high < most
        at = advance(at, count, k, aim, low, high, over, under, sides, tries, known[1], float(most - least))
    known[0] = high
    while slack and low > least:  # without those that were only counted as if, k must reach it still
        if reach(keys, held, low, low_other) >= k:
            break
        low -= 1
        low_other = matching(low, factor, halves)
    low_other = max(low_other - slack, np.int64(least))
    return low, low_other, high, high_other, over - under if slack == 0 else -1, under


@_compiled
def settle(
    keys: Any, held: Any, rank: Any, idle: Any, mask: Any, low: Any, low_other: Any, high: Any, high_other: Any,
    now: Any, top: Any, update: Any, near: Any,
) -> Any:  # fmt: skip
    # the mask, 2 where a score lies between the limits, and what follows from it without those: ranks; `idle`, which
    # is `top` of who is asked for, the rank of who is else held, 0 of others; how many hit, and how many of `idle`
    # exceed `near`. top: above all ranks but those of who is asked for; where it is not their own, it is `now`
    hits, over, number = np.int64(0), np.int64(0), rank.dtype.type
    low_under, high_under = np.int16(low_other - 1), np.int16(high_other - 1)
    low_apart, high_apart = np.int16(np.int16(low - 1) - low_under), np.int16(np.int16(high - 1) - high_under)
    for start in range(0, keys.shape[0], _SHORT):
        key, is_held, old = keys[start : start + _SHORT], held[start : start + _SHORT], rank[start : start + _SHORT]
        wait, wanted = idle[start : start + _SHORT], mask[start : start + _SHORT]
        there, more = np.int16(0), np.int16(0)
        if update == 0:
            for i in range(key.shape[0]):
                yes = key[i] > np.int16(high_under + np.int16(is_held[i] & high_apart))
                maybe = key[i] > np.int16(low_under + np.int16(is_held[i] & low_apart))
                wanted[i] = np.uint8(np.uint8(2 if maybe else 0) - np.uint8(yes))
                there = np.int16(there + (is_held[i] if yes else np.int16(0)))
                new = max(old[i], now if yes else number(0))
                old[i] = new
                rest = number(new & number(is_held[i] | (np.int16(-1) if yes else np.int16(0))))
                wait[i] = rest
                more = np.int16(more + np.int16(rest > near))
        elif update == 1:
            for i in range(key.shape[0]):
                yes = key[i] > np.int16(high_under + np.int16(is_held[i] & high_apart))
                maybe = key[i] > np.int16(low_under + np.int16(is_held[i] & low_apart))
                wanted[i] = np.uint8(np.uint8(2 if maybe else 0) - np.uint8(yes))
                there = np.int16(there + (is_held[i] if yes else np.int16(0)))
                new = number(old[i] + number(yes))
                old[i] = new
                rest = number(number(new & is_held[i]) | (top if yes else number(0)))
                wait[i] = rest
                more = np.int16(more + np.int16(rest > near))
        else:
            since = now if update == 2 else number(0)
            for i in range(key.shape[0]):
                yes = key[i] > np.int16(high_under + np.int16(is_held[i] & high_apart))
                maybe = key[i] > np.int16(low_under + np.int16(is_held[i] & low_apart))
                wanted[i] = np.uint8(np.uint8(2 if maybe else 0) - np.uint8(yes))
                there = np.int16(there + (is_held[i] if yes else np.int16(0)))
                new = max(old[i], since if yes & (is_held[i] == 0) else number(0))
                old[i] = new
                rest = number(number(new & is_held[i]) | (top if yes else number(0)))
                wait[i] = rest
                more = np.int16(more + np.int16(rest > near))
        hits -= there
        over += more
    return hits, over


@_compiled
def doubtful(mask: Any, found: Any, most: Any) -> Any:  # the indices of 2s, `most` of them or fewer, which become 0
    total = 0
    for start in range(0, mask.shape[0], _NEAR):
        part, some = mask[start : start + _NEAR], np.uint8(0)
        for i in range(part.shape[0]):
            some = np.uint8(some | part[i])
        if some & 2:
            words = part[: part.shape[0] // 8 * 8].view(np.uint64)
            for at in range(words.shape[0] + 1):
                if at == words.shape[0] or words[at] & np.uint64(0x0202020202020202):
                    for i in range(at * 8, min(at * 8 + 8, part.shape[0])):
                        found[total] = start + i
                        total += part[i] >> 1
                        part[i] &= 1
            if total == most:
                break
    return total


@_compiled
def ones(mask: Any) -> Any:
    total = np.int64(0)
    for start in range(0, mask.shape[0], _SHORT):
        part, there = mask[start : start + _SHORT], np.int16(0)
        for i in range(part.shape[0]):
            there = np.int16(there + np.int16(part[i] & 1))
        total += there
    return total


@_compiled
def split_some(scores: Any, k: Any) -> Any:  # as `split`, of a few
    for i in range(scores.shape[0]):
        before, equals = 0, 0
        for j in range(scores.shape[0]):
            before += scores[j] > scores[i]
            equals += scores[j] == scores[i]
        if before < k <= before + equals:
            return scores[i], k - before
    return scores[0], 0


@_compiled
def choose(row: Any, factor: Any, held: Any, keys: Any, halves: Any, found: Any, k: Any, scores: Any) -> None:
    # of those found, in order, the k best: the others become -1
    total = found.shape[0]
    for i in range(total):
        at = found[i]
        value = least_of(np.int64(keys[at]), True) if halves else row[at]
        scores[i] = value if held[at] else factor * value
    limit, equals = split_some(scores[:total], k) if total <= _SOME else split(scores[:total], k)
    for i in range(total):
        if scores[i] == limit and equals:
            equals -= 1
        elif not scores[i] > limit:
            found[i] = -1


@_compiled
def remain(held: Any, idle: Any, last: Any, end: Any) -> None:
    # who exceeds the rank `last`, and before index `end` who equals it, is held from now on
    for i in range(end):
        held[i] = np.int16(-1) if idle[i] >= last else np.int16(0)
    others, later = held[end:], idle[end:]
    for i in range(others.shape[0]):
        others[i] = np.int16(-1) if later[i] > last else np.int16(0)


@_compiled
def oldest(idle: Any, k: Any, count: Any, known: Any, guess: Any, least: Any, most: Any) -> Any:
    # a rank that fewer than k, `under`, exceed and k or more reach, or that k exceed; `count` exceed the guess
    low, high, over, under = np.int64(least - 1), np.int64(most), np.int64(idle.shape[0]), np.int64(0)
    at, last, counted, tries = guess, guess, np.int64(0), 0
    while True:
        if count >= k:
            low, over = at, count
        if count <= k:
            high, under = at, count
        if over == under or high - low <= 1:
            return high, under
        tries += 1
        if tries == 2 and at != last and count != counted:
            known[1] += 0.25 * ((counted - count) / (at - last) - known[1])
        last, counted = at, count
        sides = low >= least and high < most
        at = advance(at, count, k, 0, low, high, over, under, sides, tries, known[1], float(most - least))
        count = above(idle, idle.dtype.type(at))


@_compiled
def fill(held: Any, mask: Any, rank: Any, keys: Any, room: Any, now: Any, update: Any) -> None:
    # a mask larger than the cache: hits stay, then the lowest misses fill what is left
    for i in range(mask.shape[0]):
        keys[i] = np.int16(np.int16(mask[i]) & np.int16(~held[i]))
    end = cut(keys, np.int16(1), room)
    if update == 2:
        for i in range(end):
            rank[i] = max(rank[i], now if keys[i] else rank.dtype.type(0))
    for i in range(end):
        held[i] = np.int16(-np.int16(mask[i]))
    kept, wanted = held[end:], mask[end:]
    for i in range(kept.shape[0]):
        kept[i] = np.int16(kept[i] & np.int16(-np.int16(wanted[i])))


@_compiled
def loop(
    values: Any, halves: Any, uncached: Any, k: Any, capacity: Any, update: Any, cached: Any, rank: Any, token: Any,
    masks: Any, hits: Any, before: Any, held: Any, keys: Any, found: Any, scores: Any, idle: Any, known: Any, top: Any,
) -> None:  # fmt: skip
    tokens, units = masks.shape
    is_half, number, sought = halves.shape[0] > 0, rank.dtype.type, known[1]
    renewed = update if update < 2 or k <= capacity else 3
    sought[0] = token - sought[0]
    occupied = np.int64(0)
    for i in range(units):
        occupied += cached[i]
        held[i] = np.int16(-np.int16(cached[i]))
    keys[:] = 0
    for t in range(tokens):
        mask, now, factor = masks[t], number(token + t), uncached[t]
        row, half = values[t if not is_half else 0], halves[t if is_half else 0]
        if before.shape[0]:
            was = before[t]
            for i in range(units):
                was[i] = held[i] & np.int16(1)
        low, other, high, high_other, total, asked = _LIMITS[0], _LIMITS[0], _LIMITS[0], _LIMITS[0], 0, units
        if k < units:
            low, other, high, high_other, total, asked = search(row, half, keys, held, k, factor, known[0])
        best = now if renewed == 0 else number(top)
        guess = np.int64(min(max(np.int64(np.round(sought[0] + sought[2])), 1), best - 1))
        there, over = settle(
            keys, held, rank, idle, mask, low, other, high, high_other, now, best, renewed, number(guess)
        )
        if total:
            total, asked = doubtful(mask, found, total), asked if total > 0 else ones(mask)
        if asked < k:
            choose(row, factor, held, keys, is_half, found[:total], k - asked, scores)
            for i in range(total):
                at = found[i]
                if at >= 0:
                    there -= held[at]
                    over += np.int64(idle[at] <= guess)
                    mask[at], idle[at] = 1, best
                    if renewed == 0 or (renewed == 2 and not held[at]):
                        rank[at] = now
                    elif renewed == 1:
                        rank[at] += 1
        if capacity == 0:
            continue
        hits[t] = there
        if k > capacity:
            fill(held, mask, rank, keys, capacity - there, now, update)
            occupied = capacity
            continue
        if occupied - there <= capacity - k:
            remain(held, idle, number(0), 0)
        elif k == capacity:
            remain(held, idle, number(best - 1), 0)
        else:
            last, under = oldest(idle, capacity, over, sought, guess, 1, top)
            remain(held, idle, number(last), cut(idle, number(last), capacity - under))
            sought[2] += 0.06 * (last - sought[0] - sought[2])
            sought[0] = last
        occupied = min(k + occupied - there, capacity)
    for i in range(units):
        cached[i] = held[i] & np.int16(1)
    sought[0] = token + tokens - sought[0]

"""The loops of the compiled scan: functions that numba compiles and caches on disk. Imported only when needed.

All loops are in one module, and none is an inner function. numba cannot reload cached inner functions that call each
other, and it considers cached code of a function valid as long as the function's own file is unchanged.

Nothing is sorted. Scores are shortened to keys of 16 bits in the same order, because a processor compares 16 or 32 of
them in one instruction; if a trace stores magnitudes as float16, the keys are the stored bits. A mask follows from two
limits, one for cached units and one for the others, which k keys reach together. The limits are searched by counting:
the search begins at the limit of the token before and continues between a limit that is known to be too low and one
that is known to be too high; this takes about four counts. The few scores between the last two limits are compared
with full precision, so the mask is exact for all scores. The units that stay in a cache are searched in the same way,
by rank.

Loops have no branches and no conditional loads, and begin at index 0 (of a view, if need be), so that compilers of all
processors vectorise them. Reference counting of arrays is off (`_nrt`), because no function here creates an array and
counting took a sixth of the time.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

from hwsim.cache.jit import compiled

_LEAST, _MOST = -0x7F800000, 0x7F800000  # integer keys of minus and plus infinity
_SHORT = 32640  # elements that a 16-bit count cannot overflow on, a multiple of the vector length
_CUT = np.int32(13)  # bits of a float32's mantissa that a key drops: 10 are left
_LOWEST = np.int32((87 << 10) + 0x8000)  # the key -32768 would be 2**-40
_LIMITS = (-0x7FFF, 0x8000)  # for keys of float32: all keys reach the first, also of negative scores; none the last
_HALF_LIMITS = (0, 0x7C00)  # for keys of float16 magnitudes; the last is infinity
_NORMAL, _TINY = np.float32(2.0**-14), np.float32(2.0**-24)  # the least normal and the least positive float16
_FEW = 4  # scores between two limits that are compared one by one
_NEAR = 256  # units that are searched for doubtful ones together
_SOME = 32  # most scores that are compared pairwise


def _intrinsic(function: Any) -> Any:
    return intrinsic(function)


@_intrinsic
def bits_of(context: Any, value: Any) -> Any:  # the bits of a float32 as an int32
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return numba.types.int32(numba.types.float32), generate


@_intrinsic
def with_bits(context: Any, bits: Any) -> Any:  # the float32 that has the bits of an int32
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return numba.types.float32(numba.types.int32), generate


@compiled
def above(values: Any, limit: Any) -> Any:  # the number of values that exceed the limit
    count = np.int64(0)
    for start in range(0, values.shape[0], _SHORT):
        part, there = values[start : start + _SHORT], np.int16(0)
        for i in range(part.shape[0]):
            there = np.int16(there + np.int16(part[i] > limit))
        count += there
    return count


@compiled
def cut(values: Any, value: Any, count: Any) -> Any:  # the index after the first `count` elements that equal `value`
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


@compiled
def float_of(key: Any) -> Any:  # the float of an integer key; keys are ordered as the floats, and key 0 is -0
    return with_bits(np.int32(key if key >= 0 else -key | -0x80000000))


@compiled
def key_of(value: Any) -> Any:
    key: Any = np.int64(bits_of(np.float32(value)))
    return key if key >= 0 else -(key & 0x7FFFFFFF)


@compiled
def split(scores: Any, k: Any) -> Any:
    # a limit, and how many scores equal to it belong to the k largest, beside all scores that exceed it
    low, high, under = _LEAST - 1, _MOST, 0  # more than k scores exceed `low`; `under`, at most k, exceed `high`
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
        if low < _LEAST:  # no limit is known to be too low
            at, step = high - step, step * 2
        elif high == _MOST:
            at, step = low + step, step * 2
        else:
            at = low + (high - low) // 2
        at = min(max(at, low + 1), high - 1)


@compiled
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


@compiled
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


@compiled
def matching(limit: Any, factor: Any, halves: Any) -> Any:
    # the least key whose values, times `factor`, all reach the least value with the key `limit`
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


@compiled
def reach(keys: Any, held: Any, limit: Any, other: Any) -> Any:  # keys that reach `limit` if held, otherwise `other`
    total, under = np.int64(0), np.int16(other - 1)
    apart = np.int16(np.int16(limit - 1) - under)
    for start in range(0, keys.shape[0], _SHORT):
        part, is_held, there = keys[start : start + _SHORT], held[start : start + _SHORT], np.int16(0)
        for i in range(part.shape[0]):
            there = np.int16(there + np.int16(part[i] > np.int16(under + np.int16(is_held[i] & apart))))
        total += there
    return total


@compiled
def reach_first(row: Any, keys: Any, held: Any, limit: Any, other: Any) -> Any:  # `reach`, computes keys of float32
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


@compiled
def reach_first_half(row: Any, keys: Any, held: Any, limit: Any, other: Any) -> Any:  # the same for bits of float16
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


@compiled
def advance(at: Any, count: Any, k: Any, aim: Any, low: Any, high: Any, over: Any, under: Any, sides: Any,
            tries: Any, shared: Any, span: Any) -> Any:  # fmt: skip
    # the limit to count next. sides: whether both a too low and a too high limit are known; shared: number of units
    # that share a value near the limit; span: range of all values
    if sides and tries % 4 == 0:  # every fourth time the range is halved
        at = (low + high) // 2
    elif sides and tries > 2:
        at = low + np.int64(np.round((over - k) * (high - low) / (over - under)))
    else:
        step = (count - k + aim) / shared * (1.0 if tries < 3 else 2.0 ** min(tries, 40))
        at += np.int64(np.round(min(max(step, -span), span)))
    return min(max(at, low + 1), high - 1)


@compiled
def search(row: Any, half: Any, keys: Any, held: Any, k: Any, factor: Any, known: Any) -> Any:
    # two limits for held units, `low` and `high`, each with its `other` for units that are not held. `over` units, at
    # least k, reach `low`; `under` units, at most k, reach `high`. The limits are neighbours, or at most _FEW units lie
    # between them. Then the number of units between them (-1: unknown), and `under`
    halves = half.shape[0] > 0
    least, most = _HALF_LIMITS if halves else _LIMITS
    # because keys are rounded, a unit that is not held may reach the limit with a key just below: it is counted, too
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
        aim = _FEW // 2 if count > k else -(_FEW // 2)  # so that k lies between this count and the next
        sides = low > least and high < most
        at = advance(at, count, k, aim, low, high, over, under, sides, tries, known[1], float(most - least))
    known[0] = high
    while slack and low > least:  # k units must also reach `low` without those that were counted because of rounding
        if reach(keys, held, low, low_other) >= k:
            break
        low -= 1
        low_other = matching(low, factor, halves)
    low_other = max(low_other - slack, np.int64(least))
    return low, low_other, high, high_other, over - under if slack == 0 else -1, under


@compiled
def settle(
    keys: Any, held: Any, rank: Any, idle: Any, mask: Any, low: Any, low_other: Any, high: Any, high_other: Any,
    now: Any, top: Any, update: Any, near: Any,
) -> Any:  # fmt: skip
    # sets the mask (2 where a score lies between the limits) and, as if those were not in the mask, the ranks and
    # `idle`: `top` for needed units, the rank for other held units, 0 for the rest. Returns the hits, and how many
    # values of `idle` exceed `near`. top: exceeds the ranks of all units that are not needed; `now` if it is a rank
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


@compiled
def doubtful(mask: Any, found: Any, most: Any) -> Any:  # writes the indices of 2s to `found`, at most `most`; sets 0
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


@compiled
def ones(mask: Any) -> Any:
    total = np.int64(0)
    for start in range(0, mask.shape[0], _SHORT):
        part, there = mask[start : start + _SHORT], np.int16(0)
        for i in range(part.shape[0]):
            there = np.int16(there + np.int16(part[i] & 1))
        total += there
    return total


@compiled
def split_some(scores: Any, k: Any) -> Any:  # as `split`, for few scores
    for i in range(scores.shape[0]):
        before, equals = 0, 0
        for j in range(scores.shape[0]):
            before += scores[j] > scores[i]
            equals += scores[j] == scores[i]
        if before < k <= before + equals:
            return scores[i], k - before
    return scores[0], 0


@compiled
def choose(row: Any, factor: Any, held: Any, keys: Any, halves: Any, found: Any, k: Any, scores: Any) -> None:
    # keeps the k best of the indices in `found`, which ascend; the others become -1
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


@compiled
def remain(held: Any, idle: Any, last: Any, end: Any) -> None:
    # holds units whose rank exceeds `last`, and units before index `end` whose rank equals it
    for i in range(end):
        held[i] = np.int16(-1) if idle[i] >= last else np.int16(0)
    others, later = held[end:], idle[end:]
    for i in range(others.shape[0]):
        others[i] = np.int16(-1) if later[i] > last else np.int16(0)


@compiled
def oldest(idle: Any, k: Any, count: Any, known: Any, guess: Any, least: Any, most: Any) -> Any:
    # the rank of the last units that stay, and `under`, the number of units that exceed it: fewer than k units exceed
    # the rank and at least k reach it, or exactly k exceed it. `count` units exceed the guess
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


@compiled
def fill(held: Any, mask: Any, rank: Any, keys: Any, room: Any, now: Any, update: Any) -> None:
    # a mask larger than the cache: hits stay, then the misses with the lowest indices fill the room that is left
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


@compiled
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
        low, other, high, high_other, total, certain = _LIMITS[0], _LIMITS[0], _LIMITS[0], _LIMITS[0], 0, units
        if k < units:
            low, other, high, high_other, total, certain = search(row, half, keys, held, k, factor, known[0])
        best = now if renewed == 0 else number(top)
        guess = np.int64(min(max(np.int64(np.round(sought[0] + sought[2])), 1), best - 1))
        there, over = settle(
            keys, held, rank, idle, mask, low, other, high, high_other, now, best, renewed, number(guess)
        )
        if total:
            total, certain = doubtful(mask, found, total), certain if total > 0 else ones(mask)
        if certain < k:
            choose(row, factor, held, keys, is_half, found[:total], k - certain, scores)
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

"""The loops that serve many events from a cache of experts, compiled by numba. Imported only when needed.

The cached units lie in a binary heap by their key: rank x 2^32 + number of the last use. Unlike the heap of
`hwsim.cache.experts`, it holds each unit once, since ``place`` tells where a unit is. Keys differ, so both heaps give
the same order. Reference counting of arrays is off, because no function here creates an array.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hwsim.cache.jit import compiled

LAST, COUNT, FIRST, NEXT = range(4)  # how an event changes the rank of its units
USED, FILLED, EVENTS, USES = range(4)  # places of the state: bytes, units in the heap, events and uses so far
_SHIFT = 32  # bits of a key that hold the number of a use


@compiled
def rise(heap: Any, place: Any, key: Any, at: Any) -> Any:  # move the unit at a place of the heap up
    unit = heap[at]
    while at > 0:
        above = (at - 1) >> 1
        other = heap[above]
        if key[other] < key[unit]:
            break
        heap[at], place[other] = other, at
        at = above
    heap[at], place[unit] = unit, at


@compiled
def sink(heap: Any, place: Any, key: Any, at: Any, filled: Any) -> Any:  # move the unit at a place of the heap down
    unit = heap[at]
    while 2 * at + 1 < filled:
        below = 2 * at + 1
        if below + 1 < filled and key[heap[below + 1]] < key[heap[below]]:
            below += 1
        other = heap[below]
        if key[unit] < key[other]:
            break
        heap[at], place[other] = other, at
        at = below
    heap[at], place[unit] = unit, at


@compiled
def put(heap: Any, place: Any, key: Any, unit: Any, filled: Any) -> Any:  # add a unit; return the new number of units
    heap[filled], place[unit] = unit, filled
    rise(heap, place, key, filled)
    return filled + 1


@compiled
def take(heap: Any, place: Any, key: Any, filled: Any) -> Any:  # remove the unit of lowest key; return the new number
    filled -= 1
    heap[0] = heap[filled]
    place[heap[0]] = 0
    sink(heap, place, key, 0, filled)
    return filled


@compiled
def next_uses(units: Any, offsets: Any, nexts: Any, latest: Any) -> Any:
    # the event that needs each unit next, for each use; `latest` holds a number beyond all events
    for event in range(offsets.shape[0] - 2, -1, -1):
        for use in range(offsets[event], offsets[event + 1]):
            nexts[use] = latest[units[use]]
            latest[units[use]] = event


@compiled
def serve(
    units: Any, offsets: Any, nexts: Any, hits: Any, sizes: Any, size: Any, update: Any, cached: Any, rank: Any,
    key: Any, heap: Any, place: Any, event_of: Any, aside: Any, state: Any,
) -> Any:  # fmt: skip
    used, filled, number, uses = state[USED], state[FILLED], state[EVENTS], state[USES]
    for event in range(offsets.shape[0] - 1):
        found = np.int32(0)
        for use in range(offsets[event], offsets[event + 1]):
            unit = units[use]
            new = cached[unit] == 0
            if update == LAST or (update == FIRST and new):
                rank[unit] = number
            elif update == COUNT:
                rank[unit] += 1
            elif update == NEXT:
                rank[unit] = -nexts[use]
            key[unit] = (rank[unit] << _SHIFT) + uses
            uses += 1
            event_of[unit] = number
            if new:
                cached[unit] = 1
                used += sizes[unit]
                filled = put(heap, place, key, unit, filled)
            else:
                found += np.int32(1)
                rise(heap, place, key, place[unit])
                sink(heap, place, key, place[unit], filled)
        hits[event] = found
        stay = 0
        while used > size and filled > 0:
            unit = heap[0]
            filled = take(heap, place, key, filled)
            if event_of[unit] == number:
                aside[stay] = unit
                stay += 1
            else:
                cached[unit] = 0
                used -= sizes[unit]
        for at in range(stay):
            filled = put(heap, place, key, aside[at], filled)
        number += 1
    state[USED], state[FILLED], state[EVENTS], state[USES] = used, filled, number, uses

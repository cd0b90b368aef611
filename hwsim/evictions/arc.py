"""ARC (Megiddo and Modha 2003, "ARC: a self-tuning, low overhead replacement cache", FAST)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hwsim.evictions import Eviction, Use
from hwsim.evictions._sweep import entering

_NONE, _T1, _T2, _B1, _B2 = range(5)


@dataclass
class _Lists:
    capacity: int
    lists: np.ndarray  # int8 [units]: the list that each unit is in
    places: np.ndarray  # int64 [units], the lowest was used longest ago; orders every list
    target: float = 0.0  # units that T1 should hold, p of the paper
    again: bool = False  # this token needed a unit of B2


class Arc(Eviction):
    """ARC: least recently used among those needed once, or among those needed again, at a share that adapts itself."""

    def start(self, units: int, capacity: int, future: np.ndarray | None) -> _Lists:
        """Four empty lists: T1 and T2 are in the cache, B1 and B2 remember the units that left them."""
        return _Lists(capacity, np.full(units, _NONE, np.int8), np.zeros(units, np.int64))

    def warm(self, state: _Lists, cached: np.ndarray) -> None:
        """Put the units into T1, as if one mask had needed them."""
        inside = np.flatnonzero(cached)
        state.lists[inside] = _T1
        state.places[inside] = entering(inside, 0, cached.shape[0])

    def use(self, state: _Lists, use: Use) -> None:
        """Move hits and newcomers that B1 or B2 remember to T2, other newcomers to T1; memories move the target."""
        size = use.mask.shape[0]
        once, again = (int(np.count_nonzero(state.lists == memory)) for memory in (_B1, _B2))
        fresh = np.flatnonzero(use.admitted)
        origins = state.lists[fresh]
        from_once, from_again = (int(np.count_nonzero(origins == memory)) for memory in (_B1, _B2))
        if from_once:
            state.target = min(state.target + from_once * max(again / once, 1.0), float(state.capacity))
        if from_again:
            state.target = max(state.target - from_again * max(once / again, 1.0), 0.0)
        state.again = from_again > 0
        hits = np.flatnonzero(use.mask & (state.lists != _NONE) & (state.lists < _B1))
        state.lists[hits] = _T2
        state.lists[fresh] = np.where(origins == _NONE, _T1, _T2)
        served = np.concatenate([hits, fresh])
        state.places[served] = entering(served, (use.token + 1) * size, size)

    def stay(self, state: _Lists, candidates: np.ndarray, count: int) -> np.ndarray:
        """Evict from T1 what it holds above the target, the rest from T2; B1 and B2 remember them as in the paper."""
        kept = candidates.copy()
        lists = state.lists
        first, second = np.flatnonzero(kept & (lists == _T1)), np.flatnonzero(kept & (lists == _T2))
        gone = first.shape[0] + second.shape[0] - count
        give = min(gone, max(0, math.ceil(first.shape[0] - state.target)))
        if state.again and give < gone and 0 < first.shape[0] - give == state.target:
            give += 1
        give = min(first.shape[0], max(give, gone - second.shape[0]))
        for queue, number, memory in ((first, give, _B1), (second, gone - give, _B2)):
            leaving = self._oldest(state, queue, number)
            lists[leaving], kept[leaving] = memory, False
        self._forget(state, _B1, state.capacity - int(np.count_nonzero(lists == _T1)))
        remaining = np.count_nonzero(lists != _NONE) - np.count_nonzero(lists == _B2)
        self._forget(state, _B2, 2 * state.capacity - int(remaining))
        return kept

    def _forget(self, state: _Lists, memory: int, most: int) -> None:
        queue = np.flatnonzero(state.lists == memory)
        # what a cache of experts needs at once may exceed its capacity
        state.lists[self._oldest(state, queue, queue.shape[0] - max(0, most))] = _NONE

    @staticmethod
    def _oldest(state: _Lists, queue: np.ndarray, count: int) -> np.ndarray:
        if count <= 0:
            return queue[:0]
        return queue[np.argpartition(state.places[queue], count - 1)[:count]]

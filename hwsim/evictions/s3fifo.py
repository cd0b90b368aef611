"""S3-FIFO (Yang et al. 2023, "FIFO queues are all you need for cache eviction", SOSP).

As in its authors' simulator libCacheSim: while the cache fills for the first time, a unit enters the main queue if the
small queue is full.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from pydantic import Field

from hwsim.evictions import Eviction, Use
from hwsim.evictions._sweep import entering, sweep

_NONE = -1
_MOST = 3  # largest number of uses that is counted


@dataclass
class _Queues:
    capacity: int
    small: int  # units that the small queue should hold
    ghosts: int  # units that the ghost queue holds
    places: np.ndarray  # int64 [units], the lowest leaves its queue first
    main: np.ndarray  # bool [units]: in the main queue, not in the small one; valid for cached units
    uses: np.ndarray  # int64 [units], uses since the unit entered its queue; valid for cached units
    ghost: np.ndarray  # int64 [units]: place in the ghost queue, or _NONE
    in_small: int = 0  # units in the small queue
    in_main: int = 0  # units in the main queue
    full: bool = False  # whether a unit has left the cache yet
    next: int = 0  # the next free place
    fresh: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # newcomers of this token
    known: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))  # which of them the ghost queue remembered
    waiting: bool = False  # whether they have not entered a queue yet


class S3Fifo(Eviction):
    """S3-FIFO: newcomers pass a small queue; who is needed there again, or soon after, enters the main one."""

    small: float = Field(0.1, gt=0, lt=1, description="share of the capacity that the small queue should hold")
    ghost: float = Field(0.9, ge=0, le=10, description="units remembered after they left the small queue, per capacity")
    threshold: int = Field(2, ge=1, le=_MOST, description="uses in the small queue that lead to the main one")

    def start(self, units: int, capacity: int, future: np.ndarray | None) -> _Queues:
        """Three empty queues; the small one has room for at least one unit."""
        return _Queues(
            capacity, max(1, int(capacity * self.small)), int(capacity * self.ghost),
            np.zeros(units, np.int64), np.zeros(units, bool), np.zeros(units, np.int64),
            np.full(units, _NONE, np.int64),
        )  # fmt: skip

    def warm(self, state: _Queues, cached: np.ndarray) -> None:
        """Enter the units, as if one mask had needed them."""
        self._enter(state, np.flatnonzero(cached), np.zeros(np.count_nonzero(cached), bool))

    def use(self, state: _Queues, use: Use) -> None:
        """Count hits; newcomers enter the small queue, or the main one if the ghost queue remembers them."""
        if state.waiting:  # `stay` was not asked: experts that are needed at once may exceed the capacity
            self._enter(state, state.fresh, state.known)
        np.add(state.uses, use.mask, out=state.uses)
        np.minimum(state.uses, _MOST, out=state.uses)
        state.next = (use.token + 1) * 8 * use.mask.shape[0]  # a token moves no unit more than four times
        state.fresh = fresh = np.flatnonzero(use.admitted)
        state.known = state.ghost[fresh] != _NONE
        state.ghost[fresh] = _NONE
        state.waiting = True
        if state.in_small + state.in_main + fresh.shape[0] <= state.capacity:
            self._enter(state, fresh, state.known)  # else after `stay`

    def stay(self, state: _Queues, candidates: np.ndarray, count: int) -> np.ndarray:
        """Evict from the main queue what exceeds its share, then from the small queue, then from the main one."""
        kept, state.full = candidates.copy(), True
        excess = int(np.count_nonzero(kept)) - count
        while excess:
            small, main = np.flatnonzero(kept & ~state.main), np.flatnonzero(kept & state.main)
            over = state.in_main - (state.capacity - state.small)
            if main.shape[0] and (over > 0 or not small.shape[0]):
                leaving = self._leave_main(state, main, min(excess, main.shape[0], over if small.shape[0] else excess))
            else:
                leaving = self._leave_small(state, small, excess)
            kept[leaving] = False
            excess -= leaving.shape[0]
        self._enter(state, state.fresh, state.known)
        return kept

    def _enter(self, state: _Queues, units: np.ndarray, to_main: np.ndarray) -> None:
        state.waiting = False
        if not state.full:  # units enter from the highest index to the lowest
            to_main[: max(0, units.shape[0] - max(0, state.small - state.in_small))] = True
        state.main[units], state.uses[units] = to_main, 0
        size = state.places.shape[0]
        state.places[units] = entering(units, state.next, size)
        state.next += size
        main_count = int(np.count_nonzero(to_main))
        state.in_main += main_count
        state.in_small += units.shape[0] - main_count

    def _leave_small(self, state: _Queues, queue: np.ndarray, count: int) -> np.ndarray:
        """Evict and remember up to `count` units; units with enough uses on the way enter the main queue."""
        queue = queue[np.argsort(state.places[queue])]
        leaves = state.uses[queue] < self.threshold
        met_count = int(np.searchsorted(np.cumsum(leaves), count)) + 1  # units that the hand meets
        queue, leaves = queue[:met_count], leaves[:met_count]
        leaving, moved = queue[leaves], queue[~leaves]
        self._move(state, moved)
        state.main[moved], state.uses[moved] = True, 0
        state.in_small -= queue.shape[0]
        state.in_main += moved.shape[0]
        state.ghost[leaving] = state.next + np.arange(leaving.shape[0])
        remembered = np.flatnonzero(state.ghost != _NONE)
        if remembered.shape[0] > state.ghosts:
            too_many = remembered.shape[0] - state.ghosts
            state.ghost[remembered[np.argpartition(state.ghost[remembered], too_many - 1)[:too_many]]] = _NONE
        return leaving

    @classmethod
    def _leave_main(cls, state: _Queues, queue: np.ndarray, count: int) -> np.ndarray:
        """Evict `count` units; a unit that the hand passes loses a use and moves to the end."""
        places = state.places[queue]
        leaves, passed, _ = sweep(places, state.uses[queue], count)
        state.uses[queue] -= passed
        moved = np.flatnonzero(passed)
        cls._move(state, queue[moved[np.lexsort((places[moved], passed[moved]))]])
        state.in_main -= count
        return queue[leaves]

    @staticmethod
    def _move(state: _Queues, units: np.ndarray) -> None:
        state.places[units] = state.next + np.arange(units.shape[0])
        state.next += units.shape[0]

"""S3-FIFO (Yang et al. 2023, "FIFO queues are all you need for cache eviction", SOSP).

As its authors' simulator libCacheSim has it: while the cache fills for the first time, who finds the small queue full
enters the main one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from pydantic import Field

from hwsim.evictions import Eviction, Use
from hwsim.evictions._sweep import entering, sweep

_NONE = -1
_MOST = 3  # uses that are counted


@dataclass
class _Queues:
    capacity: int
    small: int  # units that the small queue should hold
    ghosts: int  # units that the ghost queue holds
    places: np.ndarray  # int64 [units], lowest leaves its queue first
    main: np.ndarray  # bool [units]: in the main queue, not in the small one; of those in the cache
    uses: np.ndarray  # int64 [units], since it entered its queue; of those in the cache
    ghost: np.ndarray  # int64 [units]: place in the ghost queue, or _NONE
    in_small: int = 0  # units there
    in_main: int = 0
    full: bool = False  # somebody has left
    next: int = 0  # the next free place
    fresh: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # newcomers of this token
    known: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))  # which of them the ghost queue knew


class S3Fifo(Eviction):
    """S3-FIFO: newcomers pass a small queue; who is needed there again, or soon after, enters the main one."""

    small: float = Field(0.1, gt=0, lt=1, description="share of the capacity that the small queue should hold")
    ghost: float = Field(0.9, ge=0, le=10, description="units remembered after they left the small queue, per capacity")
    threshold: int = Field(2, ge=1, le=_MOST, description="uses in the small queue that lead to the main one")

    def start(self, units: int, capacity: int, future: np.ndarray | None) -> _Queues:
        """Three empty queues; the small one is for at least one unit."""
        return _Queues(
            capacity, max(1, int(capacity * self.small)), int(capacity * self.ghost),
            np.zeros(units, np.int64), np.zeros(units, bool), np.zeros(units, np.int64),
            np.full(units, _NONE, np.int64),
        )  # fmt: skip

    def warm(self, state: _Queues, cached: np.ndarray) -> None:
        """As if one mask had brought them."""
        self._enter(state, np.flatnonzero(cached), np.zeros(np.count_nonzero(cached), bool))

    def use(self, state: _Queues, use: Use) -> None:
        """Hits are counted; newcomers enter the small queue, or the main one if the ghost queue knows them."""
        np.add(state.uses, use.mask, out=state.uses)
        np.minimum(state.uses, _MOST, out=state.uses)
        state.next = (use.token + 1) * 8 * use.mask.shape[0]  # a token moves no unit more than four times
        state.fresh = fresh = np.flatnonzero(use.admitted)
        state.known = state.ghost[fresh] != _NONE
        state.ghost[fresh] = _NONE
        if state.in_small + state.in_main + fresh.shape[0] <= state.capacity:
            self._enter(state, fresh, state.known)  # else after `stay`

    def stay(self, state: _Queues, candidates: np.ndarray, count: int) -> np.ndarray:
        """Who leaves: from the main queue what it holds too much, then from the small one, then from the main one."""
        kept, state.full = candidates.copy(), True
        left = int(np.count_nonzero(kept)) - count
        while left:
            small, main = np.flatnonzero(kept & ~state.main), np.flatnonzero(kept & state.main)
            over = state.in_main - (state.capacity - state.small)
            if main.shape[0] and (over > 0 or not small.shape[0]):
                gone = self._leave_main(state, main, min(left, main.shape[0], over if small.shape[0] else left))
            else:
                gone = self._leave_small(state, small, left)
            kept[gone] = False
            left -= gone.shape[0]
        self._enter(state, state.fresh, state.known)
        return kept

    def _enter(self, state: _Queues, units: np.ndarray, known: np.ndarray) -> None:
        if not state.full:  # units enter from the highest index to the lowest
            known[: max(0, units.shape[0] - max(0, state.small - state.in_small))] = True
        state.main[units], state.uses[units] = known, 0
        size = state.places.shape[0]
        state.places[units] = entering(units, state.next, size)
        state.next += size
        mains = int(np.count_nonzero(known))
        state.in_main += mains
        state.in_small += units.shape[0] - mains

    def _leave_small(self, state: _Queues, queue: np.ndarray, count: int) -> np.ndarray:
        """Up to `count` leave and are remembered; whom the hand meets before with enough uses enters the main queue."""
        queue = queue[np.argsort(state.places[queue])]
        goes = state.uses[queue] < self.threshold
        met = int(np.searchsorted(np.cumsum(goes), count)) + 1  # whom the hand meets
        queue, goes = queue[:met], goes[:met]
        gone, moved = queue[goes], queue[~goes]
        self._move(state, moved)
        state.main[moved], state.uses[moved] = True, 0
        state.in_small -= queue.shape[0]
        state.in_main += moved.shape[0]
        state.ghost[gone] = state.next + np.arange(gone.shape[0])
        known = np.flatnonzero(state.ghost != _NONE)
        if known.shape[0] > state.ghosts:
            too_many = known.shape[0] - state.ghosts
            state.ghost[known[np.argpartition(state.ghost[known], too_many - 1)[:too_many]]] = _NONE
        return gone

    @classmethod
    def _leave_main(cls, state: _Queues, queue: np.ndarray, count: int) -> np.ndarray:
        """`count` leave; whom the hand passes loses a use and moves to the end."""
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

"""SIEVE (Zhang et al. 2024, "SIEVE is simpler than LRU", NSDI)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hwsim.evictions import Eviction, Use
from hwsim.evictions._sweep import entering, sweep

_OUT = -1
_TURN = 2**62  # more than any place


@dataclass
class _Queue:
    places: np.ndarray  # int64 [units], the lowest is at the tail; _OUT for units that are not cached
    visited: np.ndarray  # int64 [units], 1 for units needed again since they entered or the hand passed
    hand: int = 0  # the place where the hand continues
    base: int = 0  # the lowest place of this token's newcomers


class Sieve(Eviction):
    """SIEVE: a hand goes from the oldest to the newest; who was needed since it last passed stays where it is."""

    def start(self, units: int, capacity: int, future: np.ndarray | None) -> _Queue:
        """An empty queue, the hand at its tail."""
        return _Queue(np.full(units, _OUT, np.int64), np.zeros(units, np.int64))

    def warm(self, state: _Queue, cached: np.ndarray) -> None:
        """Put the units into the queue, as if one mask had needed them."""
        inside = np.flatnonzero(cached)
        state.places[inside] = entering(inside, 0, cached.shape[0])

    def use(self, state: _Queue, use: Use) -> None:
        """Mark hits; newcomers enter at the head, unmarked."""
        size = use.mask.shape[0]
        state.base = (use.token + 1) * size
        fresh = np.flatnonzero(use.admitted)
        state.visited[use.mask] = 1
        state.visited[fresh] = 0
        state.places[fresh] = entering(fresh, state.base, size)

    def stay(self, state: _Queue, candidates: np.ndarray, count: int) -> np.ndarray:
        """Move the hand on from where it stopped, and around; it stops before this token's newcomers enter."""
        kept, queue = candidates.copy(), np.flatnonzero(candidates)
        places = state.places[queue]
        places[places < state.hand] += _TURN
        leaves, passed, final = sweep(places, state.visited[queue], queue.shape[0] - count)
        leaving = queue[leaves]
        kept[leaving] = False
        state.visited[queue] -= passed
        state.places[leaving] = _OUT
        final %= _TURN
        older = state.places[state.places < state.base]
        # from the head it returns to the tail, before newcomers enter
        state.hand = final + 1 if older.shape[0] and int(older.max()) > final else 0
        return kept

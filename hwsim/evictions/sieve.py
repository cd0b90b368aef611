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
    places: np.ndarray  # int64 [units], lowest at the tail; _OUT for who is not in the cache
    visited: np.ndarray  # int64 [units], 1 for who was needed again since it entered or the hand passed
    hand: int = 0  # the place where it goes on
    base: int = 0  # the lowest place of this token's newcomers


class Sieve(Eviction):
    """SIEVE: a hand goes from the oldest to the newest; who was needed since it last passed stays where it is."""

    def start(self, units: int, capacity: int, future: np.ndarray | None) -> _Queue:
        """An empty queue, the hand at its tail."""
        return _Queue(np.full(units, _OUT, np.int64), np.zeros(units, np.int64))

    def warm(self, state: _Queue, cached: np.ndarray) -> None:
        """As if one mask had brought them."""
        inside = np.flatnonzero(cached)
        state.places[inside] = entering(inside, 0, cached.shape[0])

    def use(self, state: _Queue, use: Use) -> None:
        """Hits are marked; newcomers enter at the head, unmarked."""
        size = use.mask.shape[0]
        state.base = (use.token + 1) * size
        fresh = np.flatnonzero(use.admitted)
        state.visited[use.mask] = 1
        state.visited[fresh] = 0
        state.places[fresh] = entering(fresh, state.base, size)

    def stay(self, state: _Queue, candidates: np.ndarray, count: int) -> np.ndarray:
        """The hand goes on from where it stopped, and around; this token's newcomers come after it has stopped."""
        kept, queue = candidates.copy(), np.flatnonzero(candidates)
        places = state.places[queue]
        places[places < state.hand] += _TURN
        leaves, passed, final = sweep(places, state.visited[queue], queue.shape[0] - count)
        left = queue[leaves]
        kept[left] = False
        state.visited[queue] -= passed
        state.places[left] = _OUT
        final %= _TURN
        older = state.places[state.places < state.base]
        # at the head it returns to the tail, and is there before newcomers enter
        state.hand = final + 1 if older.shape[0] and int(older.max()) > final else 0
        return kept

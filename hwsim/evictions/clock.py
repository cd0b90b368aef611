"""CLOCK, or second chance (Corbato 1968, "A paging experiment with the Multics system")."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import Field

from hwsim.evictions import Eviction, Use
from hwsim.evictions._sweep import entering, sweep


@dataclass
class _Circle:
    places: np.ndarray  # int64 [units]: the hand meets the lowest first
    chances: np.ndarray  # int64 [units], valid for cached units
    token: int = -1


class Clock(Eviction):
    """CLOCK: first in, first out, but who was needed since the hand last passed is passed over once more."""

    bits: int = Field(1, ge=1, le=8, description="bits of a unit's counter: it is passed over at most 2^bits - 1 times")

    def start(self, units: int, capacity: int, future: np.ndarray | None) -> _Circle:
        """An empty circle."""
        return _Circle(np.zeros(units, np.int64), np.zeros(units, np.int64))

    def warm(self, state: _Circle, cached: np.ndarray) -> None:
        """Put the units into the circle, as if one mask had needed them."""
        inside = np.flatnonzero(cached)
        state.places[inside] = entering(inside, 0, cached.shape[0])

    def use(self, state: _Circle, use: Use) -> None:
        """Give hits one more chance; newcomers enter behind the hand without any."""
        state.token, size = use.token, use.mask.shape[0]
        fresh = np.flatnonzero(use.admitted)
        np.add(state.chances, use.mask, out=state.chances)
        np.minimum(state.chances, 2**self.bits - 1, out=state.chances)
        state.chances[fresh] = 0
        state.places[fresh] = entering(fresh, self._base(state, size) + size, size)

    def stay(self, state: _Circle, candidates: np.ndarray, count: int) -> np.ndarray:
        """Move units that the hand passes to the end of the queue, before this token's newcomers."""
        kept, queue = candidates.copy(), np.flatnonzero(candidates)
        places = state.places[queue]
        leaves, passed, _ = sweep(places, state.chances[queue], queue.shape[0] - count)
        kept[queue[leaves]] = False
        state.chances[queue] -= passed
        moved = np.flatnonzero(passed)
        moved = moved[np.lexsort((places[moved], passed[moved]))]
        state.places[queue[moved]] = self._base(state, candidates.shape[0]) + np.arange(moved.shape[0])
        return kept

    @staticmethod
    def _base(state: _Circle, size: int) -> int:
        """First place of a token; it has two places for every unit, one for being passed over and one for entering."""
        return (2 * state.token + 1) * size

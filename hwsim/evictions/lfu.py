"""Least frequently used, counting every use since the sequence began (as the simulator of arXiv 2412.01380 does)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from hwsim.evictions import Eviction, RankUpdate, Use


class Lfu(Eviction):
    """Least frequently used: who was needed the fewest times since the sequence began leaves first."""

    shares: ClassVar[bool] = True
    rank_update: ClassVar[RankUpdate | None] = "count"

    def start(self, units: int, capacity: int, future: np.ndarray | None) -> np.ndarray:
        """How often each unit was needed, in the cache or not, int32 ``[units]``."""
        return np.zeros(units, np.int32)

    def use(self, state: np.ndarray, use: Use) -> None:
        """Count the need."""
        np.add(state, use.mask, out=state)

    def rank(self, state: np.ndarray) -> np.ndarray:
        """A higher count ranks higher."""
        return state

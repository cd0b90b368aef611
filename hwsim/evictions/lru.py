"""Least recently used (Mattson et al. 1970)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from hwsim.evictions import Eviction, RankUpdate, Use


class Lru(Eviction):
    """Least recently used: who was not needed for the longest time leaves first."""

    shares: ClassVar[bool] = True
    rank_update: ClassVar[RankUpdate | None] = "last"

    def start(self, units: int, capacity: int, future: np.ndarray | None) -> np.ndarray:
        """The token at which each unit was last needed, int32 ``[units]``."""
        return np.full(units, -1, np.int32)

    def use(self, state: np.ndarray, use: Use) -> None:
        """Store the token of the need."""
        state[use.mask] = use.token

    def rank(self, state: np.ndarray) -> np.ndarray:
        """A later need ranks higher."""
        return state

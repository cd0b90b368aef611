"""First in, first out."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from hwsim.evictions import Eviction, RankUpdate, Use


class Fifo(Eviction):
    """First in, first out: who was admitted first leaves first, however often it was needed since."""

    shares: ClassVar[bool] = True
    rank_update: ClassVar[RankUpdate | None] = "first"

    def start(self, units: int, capacity: int, future: np.ndarray | None) -> np.ndarray:
        """The token at which each unit was last admitted, int32 ``[units]``."""
        return np.full(units, -1, np.int32)

    def use(self, state: np.ndarray, use: Use) -> None:
        """Store the token of admission."""
        state[use.admitted] = use.token

    def rank(self, state: np.ndarray) -> np.ndarray:
        """A later admission ranks higher."""
        return state

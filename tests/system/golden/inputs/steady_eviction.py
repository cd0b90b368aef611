"""An eviction rule in a file of its own: its source is part of the store's keys, so it must not change."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from hwsim.evictions import Eviction, Use


class Steady(Eviction):
    """Units that were needed at several tokens in a row stay; a token without need takes `loss` off their count."""

    loss: int = Field(1, ge=1, description="taken off the count of a unit that is not needed")

    def start(self, units: int, capacity: int, future: np.ndarray | None) -> np.ndarray:
        """A count for each unit."""
        return np.zeros(units, np.int64)

    def use(self, state: np.ndarray, use: Use) -> None:
        """Count up what is needed, down what is not."""
        state[:] = np.where(use.mask, state + 1, np.maximum(state - self.loss, 0))

    def rank(self, state: np.ndarray) -> np.ndarray:
        """The higher count is better."""
        return state

"""Least frequently used with ageing: counters are halved at times, as in TinyLFU (Einziger, Friedman, Manes 2017)."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from hwsim.evictions import Eviction, Use


class LfuAged(Eviction):
    """Least frequently used, where every `period` tokens all counters are halved, rounded down."""

    period: int = Field(32, ge=1, description="tokens after which the counters are halved")

    def start(self, units: int, capacity: int, future: np.ndarray | None) -> np.ndarray:
        """How often each unit was needed, in the cache or not, with older needs halved: int32 ``[units]``."""
        return np.zeros(units, np.int32)

    def use(self, state: np.ndarray, use: Use) -> None:
        """Count the need; halve all counters after every `period`-th token."""
        np.add(state, use.mask, out=state)
        if (use.token + 1) % self.period == 0:
            np.right_shift(state, 1, out=state)

    def rank(self, state: np.ndarray) -> np.ndarray:
        """A higher count ranks higher."""
        return state

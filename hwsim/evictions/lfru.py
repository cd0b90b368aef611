"""Least frequently and recently used: uses divided by age, as vLLM's cache of experts and tinyserve rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hwsim.evictions import Eviction, Use


@dataclass
class _Uses:
    counts: np.ndarray  # int64 [units]: uses since the unit entered the cache, which is the first
    last: np.ndarray  # int64 [units]: the token of the last use
    now: int = -1  # the present token


class Lfru(Eviction):
    """Least frequently and recently used: the fewest uses in the cache per token since the last one leave first."""

    shares: ClassVar[bool] = True
    ages: ClassVar[bool] = True

    def start(self, units: int, capacity: int, future: np.ndarray | None) -> _Uses:
        """No use of any unit yet."""
        return _Uses(np.zeros(units, np.int64), np.full(units, -1, np.int64))

    def use(self, state: _Uses, use: Use) -> None:
        """Count the need; for units that enter the cache now counting begins anew."""
        state.counts[use.admitted] = 0
        np.add(state.counts, use.mask, out=state.counts)
        state.last[use.mask] = use.token
        state.now = use.token

    def rank(self, state: _Uses) -> np.ndarray:
        """Uses divided by the age, which is 1 at the token of the last use."""
        rank: np.ndarray = state.counts / (state.now - state.last + 1)
        return rank

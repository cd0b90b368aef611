"""Random replacement: the control of all rules (RAND in Belady 1966)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from pydantic import Field

from hwsim.evictions import Eviction


class _Numbers(NamedTuple):
    rng: np.random.Generator
    units: int


class Random(Eviction):
    """Random: everybody in the cache who is not needed now is equally likely to leave."""

    seed: int = Field(0, ge=0, description="of the random numbers, which are the same in every cache and sequence")

    def start(self, units: int, capacity: int, future: np.ndarray | None) -> _Numbers:
        """A generator of random numbers from the seed, and the number of units."""
        return _Numbers(np.random.default_rng(self.seed), units)

    def rank(self, state: _Numbers) -> np.ndarray:
        """New numbers each time, float32 ``[units]``."""
        return state.rng.random(state.units, np.float32)

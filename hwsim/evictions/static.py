"""A fixed set of cached units: the weights are placed once, without any eviction."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from hwsim.evictions import Admission, Eviction, Use


class Static(Eviction):
    """A fixed set: who is admitted while there is room stays for good, and nobody else enters."""

    admission: ClassVar[Admission] = "bypass"

    def start(self, units: int, capacity: int, future: np.ndarray | None) -> np.ndarray:
        """The token at which each unit last tried to enter, int32 ``[units]``; -1 for units cached from the start."""
        return np.full(units, -1, np.int32)

    def use(self, state: np.ndarray, use: Use) -> None:
        """Store the token of the attempt."""
        state[use.admitted] = use.token

    def rank(self, state: np.ndarray) -> np.ndarray:
        """An earlier attempt ranks higher, so no cached unit leaves."""
        return -state

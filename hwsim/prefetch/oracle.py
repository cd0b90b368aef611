"""Prefetch of exactly the needed units: the bound of perfect prefetch."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from hwsim.prefetch import Ahead, Prefetch


class Oracle(Prefetch):
    """The masks themselves: what a perfect guess would give; not a way to get there."""

    oracle: ClassVar[bool] = True

    def guess(self, ahead: Ahead) -> np.ndarray:
        """The masks themselves."""
        assert ahead.truth is not None
        return ahead.truth

"""Prefetch by the mask of the previous token."""

from __future__ import annotations

import numpy as np

from hwsim.prefetch import Ahead, Prefetch


class LastToken(Prefetch):
    """The mask of the token before, in the same layer."""

    def guess(self, ahead: Ahead) -> np.ndarray:
        """The mask of the previous token."""
        return ahead.last

"""What the token before needed."""

from __future__ import annotations

import numpy as np

from hwsim.prefetch import Ahead, Prefetch


class LastToken(Prefetch):
    """The mask of the token before, in the same layer."""

    def guess(self, ahead: Ahead) -> np.ndarray:
        """That of the token before."""
        return ahead.last

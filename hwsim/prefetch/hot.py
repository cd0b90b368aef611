"""Prefetch of the units that the sequence has used most often so far."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from hwsim.prefetch import Ahead, Prefetch, first


class Hot(Prefetch):
    """The units of each layer that the earlier tokens of the sequence needed most often.

    Experts are counted from the first token of the prompt on, other units from the first decoded token on. A unit that
    no token has needed yet is not predicted.
    """

    counts: ClassVar[bool] = True
    k: int | None = Field(None, ge=1, description="experts to predict; none: as many as the model uses")

    def guess(self, ahead: Ahead) -> np.ndarray:
        """The most used units: k experts, of other units as many as the previous token needed."""
        assert ahead.uses is not None
        count = ahead.experts(self.k) or np.count_nonzero(ahead.last, axis=1)
        return first(ahead.uses, np.minimum(count, np.count_nonzero(ahead.uses, axis=1)))

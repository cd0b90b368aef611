"""Prefetch of experts by the next layer's router, which sees the input of this layer's experts."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from hwsim.model.shape import ROUTER_AHEAD
from hwsim.prefetch import Ahead, Prefetch, first
from hwsim.prefetch.last_token import last_units


class NextRouter(Prefetch):
    """The experts that the layer's router ranks first on what enters the experts of the layer before.

    Neighbouring layers see similar inputs, so the router can be asked one layer early. Its matrix gets the recorded
    input as it is, without the norm of its own layer, and corrections that only change the choice of experts are left
    out. Where the layer before has no experts, and for other units, the mask of the token before is predicted.
    """

    signals: ClassVar[tuple[str, ...]] = (ROUTER_AHEAD,)
    required: ClassVar[tuple[str, ...]] = (ROUTER_AHEAD,)
    k: int | None = Field(None, ge=1, description="experts to predict; none: as many as the model uses")

    def guess(self, ahead: Ahead) -> np.ndarray:
        """The experts with the largest logits."""
        logits, count = ahead.signals.get(ROUTER_AHEAD), ahead.experts(self.k)
        if not ahead.used or logits is None:
            return last_units(ahead, self.k)
        return first(logits, np.full(len(logits), count))

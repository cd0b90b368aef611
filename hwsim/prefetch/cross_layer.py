"""The MLP's input changes little from layer to layer, so that of the layer before stands in for it."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from hwsim.prefetch import Ahead, Prefetch, best


class CrossLayer(Prefetch):
    """Masks of the MLP's input by the input of the layer before; others, and the first layer, by the token before.

    Neighbouring layers see similar inputs, as the residual stream changes slowly (Deja Vu, arXiv 2310.17157; LLM
    inference engines that offload read ahead by it).
    """

    signals: ClassVar[tuple[str, ...]] = ("input",)

    def guess(self, ahead: Ahead) -> np.ndarray:
        """The largest of the layer before, as many as the token before needed."""
        before = ahead.signals.get("input")
        if before is None or ahead.needs[:1] != ("input",) or before.shape[1] != ahead.units:
            return ahead.last
        return best(np.abs(before), ahead.last)

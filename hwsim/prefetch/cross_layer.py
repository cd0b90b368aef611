"""Prefetch by the MLP input of the previous layer, as this input changes little from layer to layer."""

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
        """The largest inputs of the previous layer, as many as the previous token needed."""
        inputs = ahead.signals.get("input")
        if inputs is None or ahead.needs[:1] != ("input",) or inputs.shape[1] != ahead.units:
            return ahead.last
        return best(np.abs(inputs), ahead.last)

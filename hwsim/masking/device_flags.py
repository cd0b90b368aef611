"""Compares a cache of experts with the flags of the device that ran the model."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from hwsim.masking.counts import Served
from hwsim.masking.observers import Observer
from hwsim.memory.groups import Place
from hwsim.trace import Trace
from hwsim.trace.steps import Steps


class FlagCounts(Observer):
    """Counts the chosen experts that the device and hwsim's cache agree about.

    Attributes:
        rows: chosen experts of decoded tokens so far.
        agree: of which both say that they were cached, or both that they were not.

    Args:
        trace: has the device's flags.
        steps: the steps that decode, each of one token.
    """

    sees_cache: ClassVar[bool] = True

    def __init__(self, trace: Trace, steps: Steps) -> None:
        self.rows = self.agree = 0
        self._trace, self._rows = trace, steps.rows

    def masks(self, place: Place, token: int, served: Served) -> None:
        """Compare the experts of one step."""
        if not place.plan.routed:
            return
        assert served.before is not None
        row = int(self._rows[token])
        chosen = self._trace.read(place.layer, "experts", row, row + 1)[0]
        flags = self._trace.residency(place.layer, row, row + 1)
        assert flags is not None
        known = chosen >= 0
        self.rows += int(np.count_nonzero(known))
        self.agree += int(np.count_nonzero(served.before[0][chosen[known]] == flags[0][known]))


def flags_of(trace: Trace | None, steps: Steps, *, routed: bool) -> FlagCounts | None:
    """The comparison for a run; None without flags, without experts, or if a step has several tokens."""
    decoded = steps.part(~steps.prompts)
    if trace is None or not routed or not decoded.single:
        return None
    layers = trace.model.layers_with("experts")
    return FlagCounts(trace, decoded) if layers and trace.residency(layers[0], 0, 0) is not None else None

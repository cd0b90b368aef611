"""DIP with thresholds from a calibration in place of top-k (method: docs/model.md)."""

from __future__ import annotations

from dataclasses import replace

from hwsim.policy import Group, ModelShape
from hwsim_policies._calibration import Thresholds
from hwsim_policies.dip import Dip


class DipThreshold(Thresholds, Dip):
    """DIP with a threshold for each layer in place of top-k, for |input| and for |glu|."""

    def keep_of(self, model: ModelShape, layer: int, signal: str) -> float:
        """DIP's split of the density, in every layer."""
        keep_input, keep_down = self.keeps(model)
        return keep_input if signal == "input" else keep_down

    def groups(self, model: ModelShape) -> list[Group]:
        """DIP's groups, with masks of any size."""
        self.calibrated.check(model, ["input", "glu"], "quantiles")
        return [replace(group, keep=None) for group in super().groups(model)]

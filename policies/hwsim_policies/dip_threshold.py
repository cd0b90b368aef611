"""DIP with thresholds from a calibration in place of top-k (method: docs/explanation/model.md)."""

from __future__ import annotations

from dataclasses import replace

from hwsim.policy import Field, Group, ModelShape
from hwsim_policies._calibration import Thresholds
from hwsim_policies.dip import Dip


class DipThreshold(Thresholds):
    """DIP with a threshold for each layer in place of top-k, for |input| and for |glu|."""

    density: float = Field(0.5, gt=0, le=1, description="share of the MLP that a token reads")
    keep_input: float | None = Field(None, gt=0, le=1, description="keep of the inputs; none: the authors' split")

    def keep_of(self, model: ModelShape, layer: int, signal: str) -> float:
        """DIP's split of the density, in every layer."""
        keep_input, keep_down = self._dip.keeps(model)
        return keep_input if signal == "input" else keep_down

    def groups(self, model: ModelShape) -> list[Group]:
        """DIP's groups, with masks of any size."""
        self.calibrated.check(model, ["input", "glu"], "quantiles")
        return [replace(group, keep=None) for group in self._dip.groups(model)]

    @property
    def _dip(self) -> Dip:
        return Dip(density=self.density, keep_input=self.keep_input)

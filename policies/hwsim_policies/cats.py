"""CATS (arXiv 2404.08763): gate pruning with a threshold for each layer in place of top-k."""

from __future__ import annotations

from hwsim.policy import Field, Group, ModelShape, PluginError
from hwsim_policies._calibration import Thresholds


class Cats(Thresholds):
    """CATS: gate stays dense; rows of up and columns of down where |gate| exceeds the layer's threshold."""

    density: float = Field(0.5, gt=0, le=1, description="share of the MLP that a token reads; above 1/3")

    def keep_of(self, model: ModelShape, layer: int, signal: str) -> float:
        """Density (1 + 2 keep)/3, in every layer."""
        return min(1.0, (3 * self.density - 1) / 2)

    def groups(self, model: ModelShape) -> list[Group]:
        """One group: the row of up and the column of down of a neuron."""
        if not model.gated:
            raise PluginError(f"prunes by the gate, and {model.name} has none; choose dip-threshold or teal")
        if self.density <= 1 / 3:
            raise PluginError(
                f"density={self.density} cannot be reached: the gate is read whole, so it must be above 1/3; "
                "choose a higher --density, or dip-threshold"
            )
        self.calibrated.check(model, ["gate"], "quantiles")
        return [Group("neurons", axis="neuron", slices=["up.row", "down.column"], needs=["gate"])]

"""GLU pruning by magnitude: up and gate stay dense, columns of down are skipped (method: docs/explanation/model.md)."""

from __future__ import annotations

import numpy as np

from hwsim.policy import Context, Field, Group, ModelShape, PluginError, Policy, Scores


class Magnitude(Policy):
    """GLU pruning: up and gate stay dense, down reads the columns with the largest |glu|."""

    density: float = Field(
        0.75, gt=0, le=1, description="share of the MLP that a token reads; above 2/3 (no gate: 1/2)"
    )
    weighted: bool = Field(False, description="weigh |glu| by the norm of down's column")

    def groups(self, model: ModelShape) -> list[Group]:
        """Density (2 + keep)/3, without a gate (1 + keep)/2."""
        whole = len(model.mlp) - 1
        keep = self.density * (whole + 1) - whole
        if keep <= 0:
            raise PluginError(
                f"density={self.density} cannot be reached: up and gate are read whole, so it must be above "
                f"{whole}/{whole + 1}; choose a higher --density, or dip"
            )
        needs = ["glu", *(["norm_down"] if self.weighted else [])]
        return [Group("down", axis="neuron", slices=["down.column"], keep=keep, needs=needs)]

    def score(self, ctx: Context) -> np.ndarray:
        """|glu|; weighted: the length of what the column adds to the MLP's output."""
        value = np.abs(ctx.signals["glu"])
        return value * ctx.signals["norm_down"] if self.weighted else value

    def scores(self, ctx: Context) -> Scores | None:
        """The cache plays no part."""
        return Scores(self.score(ctx) if self.weighted else ctx.magnitudes("glu"))

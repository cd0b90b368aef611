"""A fixed hot set: the neurons that were largest on average in a calibration, for every token the same."""

from __future__ import annotations

import numpy as np

from hwsim.policy import Context, Field, Group, ModelShape
from hwsim_policies._calibration import Calibrated


class Static(Calibrated):
    """A fixed hot set: the neurons of largest mean |glu| in a calibration; what pinning alone gives."""

    density: float = Field(0.5, gt=0, le=1, description="share of the MLP that a token reads")

    def groups(self, model: ModelShape) -> list[Group]:
        """One group: the bundle of a neuron's slices. It needs no signal."""
        self.calibrated.check(model, ["glu"], "mean")
        rows = [f"{matrix}.row" for matrix in model.mlp[:-1]]
        return [Group("neurons", axis="neuron", slices=[*rows, "down.column"], keep=self.density)]

    def score(self, ctx: Context) -> np.ndarray:
        """Mean |glu| of the calibration."""
        return self.calibrated.mean(ctx.layer, "glu")

"""A predictor of given quality, without training one: the oracle's masks with a chosen share of mistakes."""

from __future__ import annotations

import numpy as np

from hwsim.policy import Context, Field, Group, ModelShape, PluginError, top_k
from hwsim_policies.oracle import Oracle


class NoisyOracle(Oracle):
    """What a predictor of given recall and precision would read: the oracle's neurons, some of them wrong."""

    recall: float = Field(0.9, gt=0, le=1, description="share of the true top neurons that it finds")
    precision: float = Field(0.9, gt=0, le=1, description="share of what it finds that is true")

    def groups(self, model: ModelShape) -> list[Group]:
        """As the oracle's; refused where so few others are left that a worse recall is impossible."""
        groups = super().groups(model)
        units = model.intermediate_size
        self._true(max(1, int(self.density * units + 1e-9)), units)
        return groups

    def select(self, ctx: Context) -> np.ndarray:
        """A mask of `ctx.k` neurons of which `precision` are among the true top ones, and find `recall` of those."""
        true = self._true(ctx.k, ctx.units)
        best = top_k(np.abs(ctx.signals["glu"]), true)
        # what cannot be wrong, because there are not enough other neurons, is right
        right = max(min(round(ctx.k * self.precision), true), ctx.k - (ctx.units - true))
        mask = np.zeros(ctx.units, bool)
        mask[ctx.rng.choice(np.flatnonzero(best), right, replace=False)] = True
        mask[ctx.rng.choice(np.flatnonzero(~best), ctx.k - right, replace=False)] = True
        return mask

    def _true(self, k: int, units: int) -> int:
        """How many neurons count as truly needed, for `k` found ones to have that recall and precision."""
        true = max(1, round(k * self.precision / self.recall))
        if true > units:
            raise PluginError(
                f"recall={self.recall} with precision={self.precision} is impossible when {k} of {units} "
                f"units are taken: recall must be at least {k * self.precision / units:.3g}"
            )
        return true

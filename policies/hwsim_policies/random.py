"""The control: neurons by lot. What a policy gains over this, it gains by choosing."""

from __future__ import annotations

import numpy as np

from hwsim.policy import Context, Field, Group, ModelShape, Policy
from hwsim_policies.oracle import neurons


class Random(Policy):
    """Control: rows of gate and up and columns of down of neurons that are drawn anew for each token."""

    density: float = Field(0.5, gt=0, le=1, description="share of the MLP that a token reads")

    def groups(self, model: ModelShape) -> list[Group]:
        """One group, the bundle of a neuron's slices: keep is the density."""
        return [neurons(model, keep=self.density, needs=[])]

    def score(self, ctx: Context) -> np.ndarray:
        """A random number for each neuron, from the run's seed."""
        return ctx.rng.random(ctx.units, np.float32)

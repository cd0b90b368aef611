"""Sparsity that the model brings along: with an activation such as ReLU most entries of the GLU are exactly zero."""

from __future__ import annotations

import numpy as np

from hwsim.policy import Context, Group, ModelShape, Policy
from hwsim_policies.oracle import neurons


class Relu(Policy):
    """Neurons whose glu is not exactly zero, for models with true zeros: nothing is lost, the density is theirs."""

    def groups(self, model: ModelShape) -> list[Group]:
        """One group, the bundle of a neuron's slices; how many a token needs is decided by the model."""
        return [neurons(model, keep=None, needs=["glu"], oracle=True)]

    def select(self, ctx: Context) -> np.ndarray:
        """Glu is not zero."""
        return ctx.signals["glu"] != 0

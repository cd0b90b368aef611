"""Oracle GLU pruning: the masks of GLU pruning, if they were known before up and gate were computed."""

from __future__ import annotations

import numpy as np

from hwsim.policy import Context, Field, Group, ModelShape, Policy, Scores


class Oracle(Policy):
    """Oracle GLU pruning: rows of gate and up and columns of down by the largest |glu|, known beforehand."""

    density: float = Field(0.5, gt=0, le=1, description="share of the MLP that a token reads")

    def groups(self, model: ModelShape) -> list[Group]:
        """One group, the bundle of a neuron's slices: keep is the density."""
        return [neurons(model, keep=self.density, needs=["glu"], oracle=True)]

    def score(self, ctx: Context) -> np.ndarray:
        """|glu|."""
        return np.abs(ctx.signals["glu"])

    def scores(self, ctx: Context) -> Scores | None:
        """The cache plays no part."""
        return Scores(ctx.magnitudes("glu"))


def neurons(model: ModelShape, keep: float | None, needs: list[str], *, oracle: bool = False) -> Group:
    """The group that cuts all matrices of the MLP by neuron: rows of gate and up, columns of down."""
    rows = [f"{matrix}.row" for matrix in model.mlp[:-1]]
    return Group("neurons", "neuron", [*rows, "down.column"], keep=keep, needs=needs, oracle=oracle)

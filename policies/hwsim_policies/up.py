"""Up pruning (arXiv 2412.01380): up is computed whole and decides what is read of gate and down."""

from __future__ import annotations

import numpy as np

from hwsim.policy import Context, Field, Group, ModelShape, PluginError, Policy, Scores


class Up(Policy):
    """Up pruning: up stays dense, rows of gate and columns of down by the largest |up|."""

    density: float = Field(0.5, gt=0, le=1, description="share of the MLP that a token reads; above 1/3")

    def groups(self, model: ModelShape) -> list[Group]:
        """Density (1 + 2 keep)/3."""
        return [one_dense("up", "gate", self.density, model)]

    def score(self, ctx: Context) -> np.ndarray:
        """|up|, or |gate|: the signal of the matrix that stays dense."""
        return np.abs(ctx.signals[ctx.group.needs[0]])

    def scores(self, ctx: Context) -> Scores | None:
        """The cache plays no part."""
        return Scores(ctx.magnitudes(ctx.group.needs[0]))


def one_dense(whole: str, cut: str, density: float, model: ModelShape) -> Group:
    """The group that reads the matrix `whole` densely and cuts rows of `cut` and columns of down by its signal.

    Raises:
        PluginError: the model has no gate, or `whole` alone is more than the density.
    """
    if not model.gated:
        raise PluginError(
            f"{model.name} has no gate: {whole} pruning cuts {cut} by {whole}, and needs both; choose oracle, or dip"
        )
    keep = (3 * density - 1) / 2
    if keep <= 0:
        raise PluginError(
            f"density={density} cannot be reached: {whole} is read whole, so it must be above 1/3; "
            "choose a higher --density, or dip"
        )
    return Group("neurons", "neuron", [f"{cut}.row", "down.column"], keep=keep, needs=[whole])

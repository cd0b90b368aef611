"""Dynamic input pruning, DIP (arXiv 2412.01380, equations 7-8), with the authors' split of the density."""

from __future__ import annotations

import math

import numpy as np

from hwsim.policy import Context, Field, Group, Magnitudes, ModelShape, PluginError, Policy, Scores

_SIGNALS = (("input", "norm_input"), ("glu", "norm_down"))  # of the two groups


class Dip(Policy):
    """Dynamic input pruning: columns of gate and up by the largest |input|, of down by the largest |glu|."""

    density: float = Field(0.5, gt=0, le=1, description="share of the MLP that a token reads")
    keep_input: float | None = Field(None, gt=0, le=1, description="keep of the inputs; none: the authors' split")
    weighted: bool = Field(False, description="weigh |input| and |glu| by the norm of the unit's columns")

    def keeps(self, model: ModelShape) -> tuple[float, float]:
        """Keeps of input and down: (2 input + down)/3 = density, without a gate (input + down)/2."""
        if self.density == 1 and self.keep_input is None:
            return 1.0, 1.0
        if self.keep_input is None:
            logit = math.log(self.density / (1 - self.density))
            given = 1 / (1 + math.exp(-(0.9849930711 * logit + 0.2997647759)))
        else:
            given = self.keep_input
        matrices = len(model.mlp)
        down = matrices * self.density - (matrices - 1) * given
        if not 0 < down <= 1 + 1e-9:
            raise PluginError(
                f"density={self.density} with keep_input={given:.4g} would need {down:.4g} of down's columns; "
                "it must be between 0 and 1"
            )
        return given, min(down, 1.0)

    def groups(self, model: ModelShape) -> list[Group]:
        """Columns of gate and up share the input's mask; columns of down have their own."""
        keep_input, keep_down = self.keeps(model)
        inputs = [f"{matrix}.column" for matrix in model.mlp[:-1]]
        needs = [[signal, *([norm] if self.weighted else [])] for signal, norm in _SIGNALS]
        return [
            Group("input", axis="hidden", slices=inputs, keep=keep_input, needs=needs[0]),
            Group("down", axis="neuron", slices=["down.column"], keep=keep_down, needs=needs[1]),
        ]

    def score(self, ctx: Context) -> np.ndarray:
        """|v| of the group's one signal; weighted: times the norm of the unit's columns."""
        signal, *norms = ctx.group.needs
        value = np.abs(ctx.signals[signal])
        return value * ctx.signals[norms[0]] if norms else value

    def scores(self, ctx: Context) -> Scores | None:
        """The cache plays no part."""
        return Scores(self._values(ctx))

    def _values(self, ctx: Context) -> np.ndarray | Magnitudes:
        """The scores of many tokens, whatever is cached."""
        return Dip.score(self, ctx) if self.weighted else ctx.magnitudes(ctx.group.needs[0])

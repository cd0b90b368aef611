"""Dynamic input pruning inside of the experts that a model chooses: DIP (arXiv 2412.01380) for mixtures of experts."""

from __future__ import annotations

import numpy as np

from hwsim.policy import Context, Field, Group, ModelShape
from hwsim_policies.dip import Dip


class DipExperts(Dip):
    """DIP within the chosen experts: one mask for their input, one for each expert's down; dense MLPs stay whole."""

    density: float = Field(0.5, gt=0, le=1, description="share of each chosen expert that a token reads")
    weighted: bool = Field(False, description="must be off: no norms of experts are recorded", exclude=True)

    def groups(self, model: ModelShape) -> list[Group]:
        """The model's own experts; columns of their gate and up; columns of each one's down."""
        keep_input, keep_down = self.keeps(model)
        gated = model.experts.gated if model.experts else model.gated
        inputs = ["expert_gate.column", "expert_up.column"] if gated else ["expert_up.column"]
        return [
            Group("experts", axis="expert", slices=[], needs=["experts"]),
            Group("input", axis="hidden", slices=inputs, keep=keep_input, needs=["expert_input"], within="experts"),
            Group("down", axis="neuron", slices=["expert_down.column"], keep=keep_down, needs=["expert_glu"],
                  within="experts"),
        ]  # fmt: skip

    def select(self, ctx: Context) -> np.ndarray | None:
        """The model's own choice of experts; the masks within them follow from `score`."""
        if ctx.group.axis != "expert":
            return None
        mask = np.zeros(ctx.units, bool)
        mask[ctx.signals["experts"]] = True
        return mask

"""A policy in a file of its own: its source is part of the store's keys, so it must not change."""

from __future__ import annotations

import numpy as np

from hwsim.policy import Context, Field, Group, ModelShape, Policy


class Nearest(Policy):
    """The strongest inputs and neurons, where a unit that is cached counts `bonus` times."""

    density: float = Field(0.5, gt=0, le=1, description="share of the MLP that a token reads")
    bonus: float = Field(1.5, ge=1, description="factor of a unit that is cached")

    def groups(self, model: ModelShape) -> list[Group]:
        """One group for the MLP's input, one for its neurons."""
        slices = ["gate.column", "up.column"] if model.gated else ["up.column"]
        return [
            Group("input", axis="hidden", slices=slices, keep=self.density, needs=["input"]),
            Group("down", axis="neuron", slices=["down.column"], keep=self.density, needs=["glu"]),
        ]

    def score(self, ctx: Context) -> np.ndarray:
        """Magnitudes, those of cached units raised."""
        worth = np.abs(ctx.signals["input" if ctx.group.name == "input" else "glu"])
        return np.where(ctx.cached, worth * self.bonus, worth)

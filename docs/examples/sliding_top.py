"""Columns of down by |glu|, averaged over the last tokens, so that masks change slowly."""

import numpy as np

from hwsim.policy import Field, Group, Policy


class SlidingTop(Policy):
    """Down reads the columns with the largest moving average of |glu|."""

    keep: float = Field(0.5, gt=0, le=1, description="share of down's columns that a token reads")
    memory: float = Field(0.5, ge=0, lt=1, description="weight of the past; 0 looks at this token only")

    def groups(self, model):
        return [Group("down", axis="neuron", slices=["down.column"], keep=self.keep, needs=["glu"])]

    def score(self, ctx):
        past = ctx.state.get("past", 0.0)
        ctx.state["past"] = self.memory * past + (1 - self.memory) * np.abs(ctx.signals["glu"])
        return ctx.state["past"]

"""A policy and an eviction rule of somebody else, found by the entry points of the package that holds them."""

import numpy as np

from hwsim.evictions import Eviction, Use
from hwsim.policy import Context, Field, Group, ModelShape, Policy


class EveryOther(Policy):
    """Down reads the columns with the largest |glu| at even tokens, and the same ones again at odd tokens."""

    keep: float = Field(0.5, gt=0, le=1, description="share of down's columns that a token reads")

    def groups(self, model: ModelShape) -> list[Group]:
        return [Group("down", axis="neuron", slices=["down.column"], keep=self.keep, needs=["glu"])]

    def score(self, ctx: Context) -> np.ndarray:
        if ctx.token % 2 == 0:
            ctx.state["score"] = np.abs(ctx.signals["glu"])
        return ctx.state["score"]


class LeastAdmitted(Eviction):
    """Who entered the cache the fewest times since the sequence began leaves first."""

    def start(self, units: int, capacity: int, future: np.ndarray | None) -> np.ndarray:
        return np.zeros(units, np.int64)

    def use(self, state: np.ndarray, use: Use) -> None:
        state += use.admitted

    def rank(self, state: np.ndarray) -> np.ndarray:
        return state

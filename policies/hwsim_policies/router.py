"""The model's own choice of experts."""

from __future__ import annotations

import numpy as np

from hwsim.policy import Context, Group, ModelShape, Policy


class Router(Policy):
    """The model's own choice of experts."""

    def groups(self, model: ModelShape) -> list[Group]:
        """The experts of each layer."""
        return [Group("experts", axis="expert", slices=["experts.expert"], needs=["experts"])]

    def select(self, ctx: Context) -> np.ndarray:
        """The experts that the router chose."""
        mask = np.zeros(ctx.units, bool)
        mask[ctx.signals["experts"]] = True
        return mask

    def masks(self, ctx: Context) -> np.ndarray | None:
        """The same for many tokens."""
        chosen = ctx.signals["experts"]
        mask = np.zeros((len(chosen), ctx.units + 1), bool)
        np.put_along_axis(mask, chosen, True, axis=1)  # -1 sets the last place
        return mask[:, :-1]

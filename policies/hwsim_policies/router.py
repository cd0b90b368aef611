"""The model's own choice of experts, as its router makes it."""

from __future__ import annotations

import numpy as np

from hwsim.policy import Context, Group, ModelShape, Policy
from hwsim_policies._experts import experts, mask_of, masks_of


class Router(Policy):
    """The model's own choice of experts: nothing is changed."""

    def groups(self, model: ModelShape) -> list[Group]:
        """One group, decided from the model's choice."""
        return experts("experts")

    def select(self, ctx: Context) -> np.ndarray:
        """The chosen experts."""
        return mask_of(ctx, ctx.signals["experts"])

    def masks(self, ctx: Context) -> np.ndarray | None:
        """The chosen experts of many tokens."""
        return masks_of(ctx, ctx.signals["experts"])

"""Another number of experts than the model's own, as BigMoeOnEdge's ``--n-expert-used``."""

from __future__ import annotations

import numpy as np

from hwsim.policy import Context, Field, Group, ModelShape, PluginError, Policy
from hwsim_policies._experts import experts, mask_of, masks_of, ranked


class RouterK(Policy):
    """The `k` experts of highest rank: fewer than the model's own choice, or more."""

    k: int = Field(1, ge=1, description="experts that a token reads; more than the model chooses needs its logits")

    def groups(self, model: ModelShape) -> list[Group]:
        """One group, decided from the model's choice; from the router's logits, too, if `k` is larger."""
        if model.experts is None or self.k <= model.experts.used:
            return experts("experts")
        if self.k > (count := model.experts.count):
            raise PluginError(f"k={self.k}: {model.name} has {count} experts in a layer; set k to at most {count}")
        return experts("experts", "router")

    def select(self, ctx: Context) -> np.ndarray:
        """The first `k` of the model's choice, or of all experts by rank."""
        order = ranked(ctx).experts if "router" in ctx.signals else ctx.signals["experts"]
        return mask_of(ctx, order[: self.k])

    def masks(self, ctx: Context) -> np.ndarray | None:
        """The first `k` of the model's choice for many tokens; token by token if `k` is larger."""
        return None if "router" in ctx.signals else masks_of(ctx, ctx.signals["experts"][:, : self.k])

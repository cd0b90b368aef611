"""Skip experts that are not cached and weigh little, as BigMoeOnEdge's ``--drop-cold-experts``."""

from __future__ import annotations

import numpy as np

from hwsim.policy import Context, Field, Group, ModelShape, Policy
from hwsim_policies._experts import experts, mask_of


class DropCold(Policy):
    """The model's own choice without experts that are not cached and weigh less than `factor`/k; never the largest."""

    factor: float = Field(1.0, ge=0, le=1000, description="F: experts below F/k are dropped if not cached; 0 is router")

    def groups(self, model: ModelShape) -> list[Group]:
        """One group, decided from the model's choice and the weights of the chosen experts."""
        return experts("experts", "expert_weights")

    def select(self, ctx: Context) -> np.ndarray:
        """Chosen experts that are cached, weigh enough, or weigh most; k is the number that the model chooses."""
        assert ctx.model.experts is not None
        chosen, weights = ctx.signals["experts"], ctx.signals["expert_weights"]
        keep = ctx.cached[chosen] | (weights >= np.float32(self.factor) / np.float32(ctx.model.experts.used))
        keep[np.argmax(weights)] = True
        return mask_of(ctx, chosen[keep])

"""Cache-Prior (arXiv 2412.00099): a bonus on the router's logits of cached experts, for the choice alone."""

from __future__ import annotations

import numpy as np

from hwsim.policy import Context, Field, Group, ModelShape, Policy
from hwsim_policies._experts import check_top_j, experts, mask_of, ranked


class CachePrior(Policy):
    """Cache-Prior: experts are chosen anew, with a bonus on the logits of cached ones: `bonus` x their mean range."""

    bonus: float = Field(0.15, ge=0, le=1, description="lambda: bonus as a share of the logits' range; 0 is router")
    top_j: int = Field(1, ge=1, description="experts of highest rank that are taken, cached or not")

    def groups(self, model: ModelShape) -> list[Group]:
        """One group, decided from the model's choice and the router's logits."""
        check_top_j(self.top_j, model)
        return experts("experts", "router")

    def select(self, ctx: Context) -> np.ndarray:
        """As many experts as the model chooses, by logit + bonus x mean range of the tokens so far."""
        order, logits = ranked(ctx)
        ctx.state["sum"] = ctx.state.get("sum", 0.0) + float(np.ptp(ctx.signals["router"].astype(np.float64)))
        ctx.state["tokens"] = ctx.state.get("tokens", 0) + 1
        favoured = ctx.cached[order]
        favoured[: self.top_j] = True
        scores = logits + self.bonus * (ctx.state["sum"] / ctx.state["tokens"]) * favoured
        best = np.argsort(-scores, kind="stable")[: len(ctx.signals["experts"])]
        return mask_of(ctx, order[best])

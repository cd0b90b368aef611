"""Max-rank routing (arXiv 2412.00099): cached experts of high rank come before those that are not cached."""

from __future__ import annotations

import numpy as np

from hwsim.policy import Context, Field, Group, ModelShape, Policy
from hwsim_policies._experts import cached_first, check_top_j, experts, ranked


class MaxRank(Policy):
    """Max-rank: of the experts of the first `max_rank` ranks cached ones are taken first, then the others by rank."""

    max_rank: int | None = Field(None, ge=1, description="ranks in which cached experts come first; none: 2 k")
    top_j: int = Field(1, ge=1, description="experts of highest rank that are taken, cached or not")

    def groups(self, model: ModelShape) -> list[Group]:
        """One group, decided from the model's choice and the router's logits."""
        check_top_j(self.top_j, model)
        return experts("experts", "router")

    def select(self, ctx: Context) -> np.ndarray:
        """As many experts as the model chooses."""
        window = self.max_rank or 2 * len(ctx.signals["experts"])
        return cached_first(ctx, ranked(ctx).experts, window, self.top_j)

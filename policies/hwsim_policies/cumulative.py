"""Routing by a cumulative threshold (arXiv 2412.00099): max-rank whose window follows the router's certainty."""

from __future__ import annotations

import numpy as np

from hwsim.policy import Context, Field, Group, ModelShape, Policy
from hwsim_policies._experts import cached_first, check_top_j, experts, ranked


class Cumulative(Policy):
    """Cumulative threshold: max-rank over the first ranks whose probabilities add up to `mass`."""

    mass: float = Field(0.7, gt=0, le=1, description="sum of probabilities in which cached experts come first")
    top_j: int = Field(1, ge=1, description="experts of highest rank that are taken, cached or not")

    def groups(self, model: ModelShape) -> list[Group]:
        """One group, decided from the model's choice and the router's logits."""
        check_top_j(self.top_j, model)
        return experts("experts", "router")

    def select(self, ctx: Context) -> np.ndarray:
        """As many experts as the model chooses; the window is the fewest ranks that reach the sum."""
        order, logits = ranked(ctx)
        shares = np.cumsum(np.exp(logits - logits.max()))
        window = int(np.searchsorted(shares, self.mass * shares[-1])) + 1
        return cached_first(ctx, order, window, self.top_j)

"""Cache-aware masking, DIP-CA (arXiv 2412.01380, equation 10 and algorithm 1)."""

from __future__ import annotations

import numpy as np

from hwsim.policy import Context, Field, Scores, top_k
from hwsim_policies.dip import Dip


class DipCa(Dip):
    """DIP that prefers what the cache holds: the score of a unit that is not cached counts gamma times."""

    gamma: float = Field(
        0.2, ge=0, le=1, description="weight of what is not cached; 1 is DIP, 0 takes cached units first"
    )
    fixed_top_n: int = Field(0, ge=0, description="the n strongest units are exempt from the penalty")
    warm_up: bool = Field(False, description="begin each sequence with gamma 1: 1 - (1 - gamma)(1 - gamma^(token/4))")
    alpha_blend: bool = Field(
        False, description="add to favour, not weigh: gamma x |v| for all, and 1 - gamma on top where cached"
    )

    def score(self, ctx: Context) -> np.ndarray:
        """|v| where cached, gamma x |v| where not; blended: gamma x |v| + (1 - gamma) x cached."""
        value = super().score(ctx)
        gamma = np.float32(self._gamma(ctx.token))
        favoured = ctx.cached
        if self.fixed_top_n:
            # the n strongest by their own value, ties to the lower index, count as if they were cached
            favoured = favoured | top_k(value, self.fixed_top_n)
        if self.alpha_blend:
            return gamma * value + (1 - gamma) * favoured
        return np.where(favoured, value, gamma * value)

    def scores(self, ctx: Context) -> Scores | None:
        """|v|, gamma times that where not cached; nothing shorter is known for the other options."""
        if self.fixed_top_n or self.alpha_blend:
            return None
        values = self._values(ctx)
        if not self.warm_up:
            return Scores(values, np.full(len(values), self.gamma, np.float32))
        gammas = [self._gamma(token) for token in range(ctx.token, ctx.token + len(values))]
        return Scores(values, np.array(gammas, np.float32))

    def _gamma(self, token: int) -> float:
        if not self.warm_up:
            return self.gamma
        return 1 - (1 - self.gamma) * (1 - self.gamma ** (token / 4))

"""Approximate caching, the second cache-aware strategy in the code of arXiv 2412.01380 (top-m variant)."""

from __future__ import annotations

import numpy as np

from hwsim.policy import Context, Field, top_k
from hwsim_policies.dip import Dip


class ApproximateCaching(Dip):
    """DIP that replaces strong units that are not cached by cached ones that are nearly as strong (top-m)."""

    reach: float = Field(1.5, ge=1, description="cached units of the top reach x k may step in; 1 is DIP")
    fixed_top_n: int = Field(0, ge=0, description="the n strongest units are taken, cached or not")

    def select(self, ctx: Context) -> np.ndarray:
        """Fill k places: the n strongest, cached units of the top k, then of the top m, then the rest of the top k."""
        value, cached = self.score(ctx), ctx.cached
        best = top_k(value, ctx.k)
        mask = top_k(value, min(self.fixed_top_n, ctx.k)) | (best & cached)
        wide = top_k(value, int(self.reach * ctx.k + 1e-9))
        for candidates in (wide & cached & ~mask, best & ~cached & ~mask):
            units = np.flatnonzero(candidates)
            mask[units[top_k(value[units], ctx.k - int(np.count_nonzero(mask)))]] = True
        return mask

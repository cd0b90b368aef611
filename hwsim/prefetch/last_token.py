"""Prefetch by the mask of the previous token."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from hwsim.errors import PluginError
from hwsim.prefetch import Ahead, Prefetch, first


class LastToken(Prefetch):
    """The mask of the token before, in the same layer; of experts those with the largest weights, if k is given."""

    k: int | None = Field(None, ge=1, description="experts to predict at most; none: all that the token before needed")

    def guess(self, ahead: Ahead) -> np.ndarray:
        """The mask of the previous token."""
        return last_units(ahead, self.k)


def last_units(ahead: Ahead, k: int | None) -> np.ndarray:
    """The mask of the previous token; if `k` is given, the k needed experts with the largest weights.

    Raises:
        PluginError: `k` is given, but the units are no experts, or the run does not know the weights.
    """
    if k is None:
        return ahead.last
    count = ahead.experts(k)
    if ahead.order is None:
        raise PluginError(f"k={k}: saved masks do not tell the experts' weights; leave k out, or give a trace")
    return first(_ranks(ahead), np.minimum(count, np.count_nonzero(ahead.last, axis=1)))


def _ranks(ahead: Ahead) -> np.ndarray:
    """Scores by which the needed experts with the largest weights come first, then other needed ones."""
    assert ahead.order is not None
    scores = np.where(ahead.last, 0, -1)
    used = ahead.order.shape[1]
    for rank, experts in enumerate(ahead.order.T):
        rows = np.flatnonzero(experts >= 0)
        chosen = rows, experts[rows]
        scores[chosen] = np.where(ahead.last[chosen], used - rank, -1)
    return scores

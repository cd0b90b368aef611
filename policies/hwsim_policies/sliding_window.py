"""Windowing of LLM in a flash (arXiv 2312.11514, section 3.1): what the last tokens used stays, and is used again."""

from __future__ import annotations

from collections import deque

import numpy as np

from hwsim.policy import Context, Field, Group, ModelShape, Policy, top_k
from hwsim_policies.oracle import neurons


class SlidingWindow(Policy):
    """Windowing of LLM in a flash: the neurons with the largest |glu| of this token and of those just before it."""

    keep: float = Field(0.1, gt=0, le=1, description="share of the neurons that one token needs itself")
    window: int = Field(5, ge=1, description="tokens whose neurons are used, this one counted; 1: its own alone")

    def groups(self, model: ModelShape) -> list[Group]:
        """One group, the bundle of a neuron's slices; how many the window holds depends on how much tokens agree."""
        return [neurons(model, keep=None, needs=["glu"], oracle=True)]

    def select(self, ctx: Context) -> np.ndarray:
        """The union of the top neurons of the last `window` tokens."""
        recent = ctx.state.setdefault("recent", deque(maxlen=self.window))
        recent.append(top_k(np.abs(ctx.signals["glu"]), max(1, int(self.keep * ctx.units + 1e-9))))
        return np.logical_or.reduce(recent)

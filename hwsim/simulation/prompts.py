"""Prompts that went through the caches: their hits, and their time, which is the time to first token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hwsim.masking.counts import Counts
from hwsim.memory.groups import Plans
from hwsim.simulation import metrics
from hwsim.simulation.run import Run
from hwsim.timing.time_of import time_of
from hwsim.timing.work import Decode


@dataclass(frozen=True, eq=False)
class Prompts:
    """The prompts of a run.

    Attributes:
        tokens: tokens of all prompts.
        counts: requests and hits of their steps.
        seconds: mean time of a prompt, the time to first token.
    """

    tokens: int
    counts: Counts
    seconds: float

    def result(self, plans: Plans) -> metrics.PromptResult:
        """The part of the result about prompts."""
        requests, hits = int(self.counts.requests.sum()), int(self.counts.hits.sum())
        return metrics.PromptResult(
            tokens=self.tokens,
            requests=requests,
            hits=hits,
            hit_rate=hits / requests if requests else None,
            flash_bytes=int(self.counts.miss_bytes(plans).sum()),
        )


def read_prompts(run: Run, counts: Counts | None) -> Prompts | None:
    """Time the prompts of a run; None if no prompt went through the caches.

    Args:
        run: the run.
        counts: requests and hits of the prompts' steps.
    """
    if counts is None:
        return None
    settings, steps = run.settings, run.steps.part(run.steps.prompts)
    decode = Decode(counts, run.placement, run.hardware, steps, run.bits, settings.reads, settings.fills)
    timing = time_of(decode, run.overlap, closed_form=settings.timing == "closed-form")
    sequences = steps.sequences[steps.offsets[:-1]]
    seconds = np.bincount(np.unique(sequences, return_inverse=True)[1], weights=timing.token_s)
    return Prompts(len(steps.rows), counts, float(seconds.mean()))

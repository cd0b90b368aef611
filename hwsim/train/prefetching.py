"""Frequencies for the prefetch rules `trained` and `hot-list`: how often a unit is needed, in all, and given its need
at the token before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import PrivateAttr

from hwsim.masking.observers import Observer
from hwsim.prefetch import Ahead, Prefetch
from hwsim.prefetch.trained import member, uses_member
from hwsim.simulation.replay import replay
from hwsim.simulation.run import Run


class _Learner(Prefetch):
    """Counts over the masks of a replay; predicts nothing."""

    oracle: ClassVar[bool] = True
    _counts: dict[str, np.ndarray] = PrivateAttr(default_factory=dict)
    _uses: dict[str, np.ndarray] = PrivateAttr(default_factory=dict)

    def guess(self, ahead: Ahead) -> np.ndarray:
        """Count, and return empty masks: bool ``[tokens, units]``."""
        assert ahead.truth is not None
        uses = self._uses.setdefault(uses_member(ahead.layer, ahead.group), np.zeros(ahead.units, np.int64))
        uses += np.count_nonzero(ahead.truth, axis=0)
        has_last = ahead.last.any(axis=1)  # the first token of a sequence has none before it
        last, now = ahead.last[has_last], ahead.truth[has_last]
        counts = self._counts.setdefault(member(ahead.layer, ahead.group), np.zeros((2, 2, ahead.units), np.int64))
        for before, rows in ((0, ~last), (1, last)):
            counts[before, 0] += np.count_nonzero(rows, axis=0)
            counts[before, 1] += np.count_nonzero(rows & now, axis=0)
        return np.zeros_like(ahead.last)

    def frequencies(self) -> dict[str, np.ndarray]:
        """Frequencies of need by member: float32 ``[2, units]``, after a token without need and after one with need;
        and the number of tokens that needed each unit, int64 ``[units]``.

        One token is added to each count and half a need, so that a unit without observations has the frequency 1/2.
        """
        return {
            name: ((counts[:, 1] + 0.5) / (counts[:, 0] + 1.0)).astype(np.float32)
            for name, counts in self._counts.items()
        } | self._uses


def train_prefetch(run: Run, observers: Sequence[Observer] = ()) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Count the frequencies over a replay of a trace.

    Args:
        run: which trace, device, policy, eviction and settings.
        observers: receive the progress.

    Returns:
        Header fields that name the source of the counts, and the frequencies.
    """
    learner = _Learner()
    watched = run.but(overlap="prefetch", prefetch=("learner", learner), timing="events")
    result = replay(watched, observers, threads=1)
    provenance = result.provenance
    return {key: provenance[key] for key in ("hwsim", "trace", "policy")} | {
        "model": provenance["model"]["name"]
    }, learner.frequencies()

"""Frequencies for the rule `trained` of reading ahead: what a unit's need at one token tells of the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import PrivateAttr

from hwsim.masking.observers import Observer
from hwsim.prefetch import Ahead, Prefetch
from hwsim.prefetch.trained import member
from hwsim.simulation.replay import replay
from hwsim.simulation.run import Run


class _Learner(Prefetch):
    """Looks at the masks of a replay and counts."""

    oracle: ClassVar[bool] = True
    _counts: dict[str, np.ndarray] = PrivateAttr(default_factory=dict)

    def guess(self, ahead: Ahead) -> np.ndarray:
        """Count, and guess nothing."""
        assert ahead.truth is not None
        known = ahead.last.any(axis=1)  # the first of a sequence has none before it
        last, now = ahead.last[known], ahead.truth[known]
        found = self._counts.setdefault(member(ahead.layer, ahead.group), np.zeros((2, 2, ahead.units), np.int64))
        for before, rows in ((0, ~last), (1, last)):
            found[before, 0] += np.count_nonzero(rows, axis=0)
            found[before, 1] += np.count_nonzero(rows & now, axis=0)
        return np.zeros_like(ahead.last)

    def frequencies(self) -> dict[str, np.ndarray]:
        """Of need after no need, and after need: float32 ``[2, units]`` by member; one token of each kind is added.

        A unit that was never seen to be needed, or never not, gets what is added: one need in two.
        """
        return {
            name: ((counts[:, 1] + 0.5) / (counts[:, 0] + 1.0)).astype(np.float32)
            for name, counts in self._counts.items()
        }


def train_prefetch(run: Run, observers: Sequence[Observer] = ()) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Replay a trace and count.

    Args:
        run: which trace, device, policy, eviction and settings.
        observers: see the progress.

    Returns:
        What the counts were made of, and the frequencies.
    """
    learner = _Learner()
    watched = run.but(overlap="prefetch", prefetch=("learner", learner), timing="events")
    result = replay(watched, observers, threads=1)
    told = result.provenance
    return {key: told[key] for key in ("hwsim", "trace", "policy")} | {
        "model": told["model"]["name"]
    }, learner.frequencies()

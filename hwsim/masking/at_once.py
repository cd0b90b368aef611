"""Serve many steps of experts at once, where their masks do not depend on the cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from hwsim.cache.cache import Cache
from hwsim.cache.compiled_events import CompiledEvents, can_serve, worth_compiling
from hwsim.cache.experts import ExpertPart
from hwsim.masking.choosers import Chooser

_EVENTS = 2**17  # events that are held at once, unless the eviction rule needs all of them


class ServedSteps(NamedTuple):
    """Consecutive steps that a cache has served for all of its places.

    Attributes:
        steps: the steps.
        requests: int64 ``[steps, places]``: units that were needed.
        hits: int32 ``[steps, places]``: needed units that were cached.
        used: int64 ``[steps, places]``: units, summed over the members of each step.
    """

    steps: range
    requests: np.ndarray
    hits: np.ndarray
    used: np.ndarray


class AtOnce:
    """Serves steps with the compiled loop; the results are those of serving them one by one.

    Attributes:
        knows: whether all masks were known beforehand so far; if not, the last episode must be served step by step.
    """

    def __init__(self, choosers: Sequence[Chooser], parts: Sequence[ExpertPart]) -> None:
        self._choosers, self._firsts = choosers, [part.first for part in parts]
        self._loop = CompiledEvents(parts[0].cache)
        self._whole = parts[0].cache.update == "next"
        self.knows = True

    @classmethod
    def of(cls, choosers: Sequence[Chooser], caches: Sequence[Cache], events: int) -> AtOnce | None:
        """Serve all places of one cache at once; None if that cannot be done, or does not pay off.

        Args:
            choosers: decide the masks of each place.
            caches: the cache's part of each place.
            events: number of events in all caches of the run.
        """
        parts = [cache for cache in caches if isinstance(cache, ExpertPart)]
        if len(parts) < len(caches) or not can_serve(parts[0].cache):
            return None
        if not worth_compiling(parts[0].cache, events):
            return None
        return cls(choosers, parts) if all(chooser.knows_beforehand for chooser in choosers) else None

    def serve(self, episode: range) -> Iterator[ServedSteps]:
        """Serve an episode with empty caches at its beginning."""
        self._loop.start()
        most = len(episode) if self._whole else max(1, _EVENTS // len(self._choosers))
        for start in range(episode.start, episode.stop, most):
            served = self._some(range(start, min(start + most, episode.stop)))
            if served is None:
                self.knows = False
                return
            yield served

    def _some(self, steps: range) -> ServedSteps | None:
        needs = []
        for chooser in self._choosers:
            need = chooser.needs(steps)
            if need is None:
                return None
            needs.append(need)
        counts = np.stack([need.counts for need in needs], axis=1)
        offsets = np.concatenate([[0], np.cumsum(counts.ravel())]).astype(np.int64)
        units = np.empty(offsets[-1], np.int32)
        starts = offsets[:-1].reshape(counts.shape)
        for place, (need, first) in enumerate(zip(needs, self._firsts, strict=True)):
            before = np.cumsum(need.counts) - need.counts  # units of earlier steps
            at = np.repeat(starts[:, place] - before, need.counts) + np.arange(len(need.units))
            units[at] = need.units + first
        hits = self._loop.serve(units, offsets).reshape(counts.shape)
        return ServedSteps(steps, counts, hits, np.stack([need.used for need in needs], axis=1))

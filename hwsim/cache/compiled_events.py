"""Serve many events from a cache of experts in one compiled loop. Needs the extra numba.

Its results are bit-identical to those of `hwsim.cache.experts` event by event; a test compares both. It serves rules
with one rank for each unit, without bypass and without units that are cached from the start.
"""

from __future__ import annotations

import sys

import numpy as np

from hwsim.cache import compiled
from hwsim.cache.experts import ExpertCache
from hwsim.evictions import RankUpdate

_UPDATES: dict[RankUpdate, int] = {"last": 0, "count": 1, "first": 2, "next": 3}
_WORTH = 30_000  # events from which on it pays to load numba, which takes half a second
_WORTH_IN_ORDER = 120_000  # for a rule that needs no heap
_WORTH_LOADED = 2_000  # where numba is loaded
_MOST = 2**31 - 1  # uses that a key can number


def worth_compiling(cache: ExpertCache, events: int) -> bool:
    """Whether the loop is available, and pays off for a number of events; each needs at most the units of a part."""
    least = _WORTH_LOADED
    if "hwsim.cache.compiled_experts" not in sys.modules:
        least = _WORTH_IN_ORDER if cache.update == "last" else _WORTH
    most = events * max(len(part.view) for part in cache.parts)
    return least <= events and most <= _MOST and compiled.available()


def can_serve(cache: ExpertCache) -> bool:
    """Whether the loop knows the rule and the beginning of a cache."""
    return cache.update is not None and cache.size > 0 and not cache.bypass and not cache.begins_with_units


class CompiledEvents:
    """The compiled loop of one cache, which takes the place of the cache's own `start` and `serve`.

    Args:
        cache: the cache; its `cached` and `used` follow.
    """

    def __init__(self, cache: ExpertCache) -> None:
        assert cache.update is not None
        units = len(cache.bytes)
        self._cache, self._update = cache, _UPDATES[cache.update]
        self._rank, self._key, self._event_of = (np.empty(units, np.int64) for _ in range(3))
        self._heap, self._place, self._aside = (np.zeros(units, np.int32) for _ in range(3))
        self._state = np.zeros(4, np.int64)
        self._sizes = np.ascontiguousarray(cache.bytes, np.int64)

    def start(self) -> None:
        """Begin with empty caches."""
        self._cache.cached[:] = False
        self._cache.used = 0
        self._rank[:] = 0
        self._event_of[:] = -1
        self._state[:] = 0

    def serve(self, units: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Serve consecutive events and return the hits of each: int32 ``[events]``.

        Args:
            units: int32, the units of all events among the units of all parts; in each event the unit that was used
                last is the last one. If the rule needs the future, these are all events until the next start.
            offsets: int64 ``[events + 1]``: event e needs ``units[offsets[e]:offsets[e + 1]]``.
        """
        from hwsim.cache import compiled_experts as loops

        cache, events = self._cache, len(offsets) - 1
        nexts = np.empty(0, np.int64)
        if cache.update == "next":
            nexts = np.empty(len(units), np.int64)
            loops.next_uses(units, offsets, nexts, np.full(len(cache.bytes), _MOST, np.int64))
        hits = np.zeros(events, np.int32)
        loops.serve(
            units, offsets, nexts, hits, self._sizes, cache.size, self._update, cache.cached.view(np.uint8), self._rank,
            self._key, self._heap, self._place, self._event_of, self._aside, self._state,
        )  # fmt: skip
        cache.used = int(self._state[0])
        return hits

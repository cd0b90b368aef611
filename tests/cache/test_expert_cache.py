"""The cache of experts itself, with events that are larger than it is."""

from __future__ import annotations

import numpy as np
import pytest

from hwsim.cache.experts import ExpertCache
from hwsim.simulation.plugins import EVICTIONS


@pytest.mark.parametrize("rule", sorted(EVICTIONS.names()))
@pytest.mark.parametrize("pinned", [0, 3])
@pytest.mark.parametrize("capacity", [1, 2, 4, 7])
def test_every_rule_serves_events_larger_than_the_cache(rule: str, pinned: int, capacity: int) -> None:
    eviction = EVICTIONS.make(rule)[1]
    units, rng = 12, np.random.default_rng(capacity)
    pins = np.arange(units) < (pinned if eviction.caches else 0)
    events = [rng.permutation(units)[: rng.integers(1, 7)].astype(np.int64) for _ in range(300)]
    cache = ExpertCache([np.full(units, 10)], 10 * (capacity + int(pins.sum())), eviction, pinned=pins)
    cache.start([(0, event) for event in events])
    for event in events:
        before = cache.cached.copy()
        hits = cache.serve(cache.parts[0], event)
        assert hits == (np.count_nonzero(before[event]) if eviction.caches else 0)
        assert cache.cached[pins].all()
        assert cache.used == 10 * np.count_nonzero(cache.cached)
        assert cache.used <= max(cache.size, 10 * np.count_nonzero(pins | np.isin(np.arange(units), event)))
        if eviction.caches and not cache.bypass:
            assert cache.cached[event].all()

"""The hit rate of LRU for all sizes of a cache at once, from one pass over a policy's masks: stack distances on sets.

LRU is a stack algorithm (Mattson et al. 1970): a cache of any size holds the top of one list, the stack. In hwsim the
stack after a token begins with the units of its mask, by index. All other units follow in the order that they had: by
the token at which they were last needed, ties by index. A cache of C units holds the first C units of the stack as long
as no mask so far was larger than C: a mask of k units leaves room for C - k others, which are the first of the rest of
the stack. So a needed unit at place d, counted from 0, is a hit in every cache of more than d units and in no other.

A mask larger than the cache breaks this: the cache keeps the hits and adds the misses of lowest index, which is not the
top of the stack. So sizes below the largest mask have no curve. If such sizes are requested, a cache is simulated for
each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from hwsim.analysis.groups import alike_groups
from hwsim.cache.cache import Cache
from hwsim.errors import SettingError
from hwsim.evictions.lru import Lru
from hwsim.masking.streams import Masking, SignalSource, decided
from hwsim.trace.sequences import Sequences

_BLIND = "its masks change with the size of the cache and have no curve"


class Stack:
    """The LRU stack of one group of one layer.

    Attributes:
        distances: int64 ``[units]``: number of requests whose unit was at each place of the stack.
        requests: units of all masks together.
        largest: units of the largest mask.
    """

    def __init__(self, units: int) -> None:
        self.distances = np.zeros(units, np.int64)
        self.requests = self.largest = 0
        self._order = np.arange(units)  # the stack, then the units that this sequence has not needed yet
        self._used = 0

    def start(self) -> None:
        """Begin a sequence, with empty caches."""
        self._used = 0

    def step(self, mask: np.ndarray) -> None:
        """Count the hits of one token's mask, bool ``[units]``, and update the stack."""
        needed = mask[self._order]
        places = np.flatnonzero(needed)
        hits = int(np.searchsorted(places, self._used))
        self.distances[places[:hits]] += 1
        self._order = np.concatenate([np.flatnonzero(mask), self._order[~needed]])
        self._used += len(places) - hits
        self.requests += len(places)
        self.largest = max(self.largest, len(places))

    def hits(self) -> np.ndarray:
        """Hits of a cache of 0, 1, ... units: int64 ``[units + 1]``; exact from `largest` on."""
        return np.concatenate([[0], np.cumsum(self.distances)])


@dataclass
class GroupCurve:
    """One group, over all layers.

    Attributes:
        units: of the group.
        capacity: units that its cache holds at the run's DRAM; None if no DRAM was given.
        requests: units of all masks together.
        first: requests of units that their sequence had not needed before, which no cache can hit.
        largest: units of the largest mask.
        hits: hits by the capacity of the cache: all capacities from `largest` to `units`, and requested ones below.
    """

    units: int
    capacity: int | None = None
    requests: int = 0
    first: int = 0
    largest: int = 0
    hits: dict[int, int] = field(default_factory=dict)

    def rate(self, capacity: int) -> float:
        """Hit rate of a cache of `capacity` units, which must be a key of `hits`."""
        return self.hits[capacity] / max(1, self.requests)


def curve(
    source: SignalSource,
    sequences: Sequences,
    masking: Masking,
    shares: Iterable[float] = (),
    *,
    known: bool = False,
    progress: Callable[[int], None] | None = None,
) -> dict[str, GroupCurve]:
    """Count the hits of LRU caches of every size on the masks of a policy.

    Args:
        source: gives the signals.
        sequences: windows of the trace.
        masking: the policy, with its caches' capacities; its masks must not depend on the cache.
        shares: cache sizes as shares of the units, 0 to 1; they are counted even if they are below the largest mask.
        known: whether to count the capacities of the plans, too.
        progress: callback that receives the number of finished layers.

    Returns:
        The curves, by group.

    Raises:
        PluginError: the policy looks at the cache, or broke its contract.
        SettingError: the policy masks nothing, or groups of one name differ in size.
    """
    if not masking.plans:
        raise SettingError(f"policy {masking.name}: masks nothing, so nothing is cached; choose another, such as dip")
    shares = tuple(shares)
    groups = alike_groups(masking.plans)
    curves = {name: GroupCurve(plan.units, plan.capacity if known else None) for name, plan in groups.items()}
    totals = {name: np.zeros(plan.units + 1, np.int64) for name, plan in groups.items()}
    for layer in range(masking.plans.layers):
        for place in masking.plans.places([layer]):
            plan = place.plan
            sizes = {units_of(share, plan.units) for share in shares} | ({plan.capacity} if known else set())
            masks = partial(decided, source, sequences, masking, place, _BLIND)
            _count(curves[plan.name], totals[plan.name], sizes, masks)
        if progress:
            progress(layer + 1)
    for name, group in curves.items():
        group.hits |= {size: int(totals[name][size]) for size in range(group.largest, group.units + 1)}
        group.hits = dict(sorted(group.hits.items()))
    return curves


def units_of(share: float, units: int) -> int:
    """Units of a cache that holds a share of all units, rounded down."""
    return int(share * units + 1e-9)


def _count(
    group: GroupCurve, total: np.ndarray, sizes: set[int], masks: Callable[[], Iterable[Iterable[np.ndarray]]]
) -> None:
    """Add one layer: its curve to `total`, and the hits at the requested sizes to the group's hits."""
    stack = Stack(group.units)
    for sequence in masks():
        stack.start()
        for mask in sequence:
            stack.step(mask)
    hits = stack.hits()
    total += hits
    group.requests += stack.requests
    group.first += stack.requests - int(hits[-1])
    group.largest = max(group.largest, stack.largest)
    small = {size: Cache(group.units, size, Lru()) for size in sizes if 0 < size < stack.largest}
    counts = {size: 0 if size in small else int(hits[size]) for size in sizes}
    for sequence in masks() if small else ():
        for cache in small.values():
            cache.start()
        for mask in sequence:
            for size, cache in small.items():
                counts[size] += cache.step(mask)[1]
    for size, count in counts.items():
        group.hits[size] = group.hits.get(size, 0) + count

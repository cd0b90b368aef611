"""The DRAM cache of experts of one or several layers: it serves whole events, in exact bytes.

An event is what one layer needs in one step. The rules, which are those of a measured phone (see
docs/explanation/experts.md):

* Hits are counted before the event's own admissions; a unit is counted once in an event.
* The event is admitted whole; then other units leave until the bytes fit. What the event needed stays, even beyond the
  size of the cache.
* The lowest rank leaves first; among equal ranks the unit that was used longest ago. Within an event recency follows
  the order of its units.
* Under bypass what the event needed may leave, too; among equal ranks newcomers leave first.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from hwsim.cache.cache import Cache, rank_update
from hwsim.errors import ContractError, SettingError
from hwsim.evictions import Admission, Eviction, RankUpdate, Use
from hwsim.util import kernels
from hwsim.util.calls import call

NEVER = np.iinfo(np.int64).max
Event = tuple[int, np.ndarray]
"""What one layer needs in one step: number of the part, and its units, int64, each once, the last used one last."""


class ExpertCache:
    """A cache of `size` bytes that serves several parts, each the experts of one layer.

    Attributes:
        size: capacity in bytes.
        used: bytes of the cached units.
        parts: the caches of the layers, in order.
        cached: bool ``[units]``: the cached units of all parts.

    Args:
        parts: for each part the bytes of its units: int64 ``[units]``.
        size: capacity in bytes.
        eviction: picks the units that leave.
        admission: how units enter; None: the eviction rule's own admission.
        pinned: bool ``[units]``: units that are cached permanently.
        warm: bool ``[units]``: further units that are cached when the caches begin.
        where: place of the cache, for messages.

    Raises:
        SettingError: the eviction cannot serve this cache, or more units are pinned or warm than it holds.
    """

    def __init__(
        self, parts: Sequence[np.ndarray], size: int, eviction: Eviction, *, admission: Admission | None = None,
        pinned: np.ndarray | None = None, warm: np.ndarray | None = None, where: str = "",
    ) -> None:  # fmt: skip
        self.bytes = np.concatenate(parts)
        units = len(self.bytes)
        self.size = min(size, int(self.bytes.sum())) if eviction.caches else 0
        self.used = 0
        self.eviction, self._who = eviction, f"eviction {type(eviction).__name__}"
        self.update = rank_update(type(eviction), shared=True)
        self.bypass = (admission or eviction.admission) == "bypass"
        self.pinned = np.zeros(units, bool) if pinned is None else pinned
        self._warm = np.zeros(units, bool) if warm is None else warm & ~self.pinned
        self.cached = self.pinned.copy()
        check_eviction(eviction, alone=len(parts) == 1)
        self._check(where)
        self._rule: _Rule = _ByUse(self) if self.update == "last" and not self.bypass else _of_rank(self)
        self._sizes = self.bytes.tolist()
        starts = np.cumsum([0, *map(len, parts)]).tolist()
        self.parts = [ExpertPart(self, number, start, stop) for number, (start, stop) in enumerate(pairwise(starts))]

    def start(self, future: Sequence[Event] | None = None) -> None:
        """Begin with empty or warm caches.

        Args:
            future: all events until the next start, for rules that need the future.
        """
        np.logical_or(self.pinned, self._warm, out=self.cached)
        self.used = int(self.bytes[self.cached].sum())
        self._rule.start(future, np.flatnonzero(self._warm))

    def serve(self, part: ExpertPart, units: np.ndarray) -> int:
        """Serve an event and return the number of hits.

        Args:
            part: the layer's part.
            units: units of the part, int64, each once; the unit that was used last is the last one.
        """
        if self.size == 0:
            return 0
        needed = (units + part.first).tolist()
        cached, sizes = self.cached, self._sizes
        newcomers = [unit for unit in needed if not cached[unit]]
        self._rule.use(needed, newcomers)
        for unit in newcomers:
            cached[unit] = True
            self.used += sizes[unit]
        if self.used > self.size:
            self._rule.evict(needed, newcomers)
        return len(needed) - len(newcomers)

    def leave(self, unit: int) -> None:
        """Remove a unit."""
        self.cached[unit] = False
        self.used -= self._sizes[unit]

    @property
    def begins_with_units(self) -> bool:
        """Whether units are cached from the start."""
        return bool(self.pinned.any() or self._warm.any())

    @property
    def who(self) -> str:
        """Name of the eviction rule, for messages."""
        return self._who

    def _check(self, where: str) -> None:
        pinned, warm = (int(self.bytes[units].sum()) for units in (self.pinned, self._warm))
        if (pinned or warm) and not self.eviction.caches:
            raise SettingError(
                f"{where}{self._who} keeps nothing, so nothing can be there from the start; "
                "--eviction static keeps a fixed set"
            )
        if pinned + warm > self.size:
            raise SettingError(
                f"{where}{pinned} B of experts are pinned and {warm} B more are there from the start, but the cache "
                f"holds {self.size} B; give more with --dram or --cache, or name fewer"
            )
        if self.bypass and self.update is None and self.eviction.admission != "bypass":
            raise SettingError(
                f"--admission bypass: {self._who} ranks no newcomer among experts; leave the option out, or choose a "
                "rule such as lfu"
            )


class ExpertPart(Cache):
    """The part of an `ExpertCache` that serves one layer, with the interface of `Cache`.

    Attributes:
        number: of the part.
        first: its first unit among the units of all parts.
    """

    def __init__(self, cache: ExpertCache, number: int, first: int, stop: int) -> None:
        units = stop - first
        super().__init__(units, min(units, cache.size // max(1, int(cache.bytes[first]))), cache.eviction)
        self.number, self.first, self._shared = number, first, cache
        self.view = kernels.read_only(cache.cached[first:stop])

    def start(self, future: np.ndarray | None = None) -> None:
        """Begin a sequence; a cache of several parts begins by its own `start` alone, and this does nothing.

        Args:
            future: bool ``[events, units]``: all events of the sequence, for rules that need the future.
        """
        if len(self._shared.parts) > 1:
            return
        events = None if future is None else [(self.number, np.flatnonzero(mask)) for mask in future]
        self._shared.start(events)

    def step(self, mask: np.ndarray, order: np.ndarray | None = None) -> tuple[int, int]:
        """Serve one mask and return (requests, hits) in units.

        Args:
            mask: bool ``[units]``.
            order: int64, units by falling rank, which are used in this order; units that it lacks come first.
        """
        units = in_order(mask, order)
        return len(units), self._shared.serve(self, units)

    def serve_units(self, units: np.ndarray) -> int:
        """Serve an event and return the number of hits; `units` as for `ExpertCache.serve`."""
        return self._shared.serve(self, units)

    @property
    def cache(self) -> ExpertCache:
        """The cache that this is a part of."""
        return self._shared

    @property
    def rank_update(self) -> RankUpdate | None:
        """None: the scan of single units does not serve events."""
        return None


def in_order(mask: np.ndarray, order: np.ndarray | None) -> np.ndarray:
    """The units of a mask in the order of their use: int64.

    Args:
        mask: bool ``[units]``.
        order: int64, units in the order of their use; units of the mask that it lacks come before all others.
    """
    if order is None:
        return np.flatnonzero(mask)
    listed = order[mask[order]]
    if len(listed) == np.count_nonzero(mask):
        return listed
    others = mask.copy()
    others[order] = False
    return np.concatenate([np.flatnonzero(others), listed])


def check_eviction(eviction: Eviction, *, alone: bool) -> None:
    """Refuse a rule that cannot serve experts of several layers in one cache.

    Raises:
        SettingError: it does not decide by rank, or needs the future and has no ``rank_update = "next"``.
    """
    by_rank = type(eviction).stay is Eviction.stay
    foresight = eviction.needs_future and rank_update(type(eviction), shared=True) != "next"
    if not alone and (not by_rank or foresight):
        raise SettingError(
            f"--cache-scope: {type(eviction).__name__} cannot serve one cache for the experts of several layers, which "
            "must be compared by a rank alone; choose matrix or another --eviction, such as lru or lfu"
        )


class _Rule(Protocol):
    """What an eviction rule does in this cache."""

    def start(self, future: Sequence[Event] | None, warm: np.ndarray) -> None: ...

    def use(self, needed: list[int], newcomers: list[int]) -> None: ...

    def evict(self, needed: list[int], newcomers: list[int]) -> None: ...


_Entry = tuple[int, int, int, int]


def _of_rank(cache: ExpertCache) -> _Rule:
    return _ByUpdate(cache) if cache.update else _ByPlugin(cache)


class _ByUse:
    """A rule that ranks by the last use, without bypass: the units in the order of their last use."""

    def __init__(self, cache: ExpertCache) -> None:
        self._cache = cache
        self._pinned = set(np.flatnonzero(cache.pinned).tolist())

    def start(self, future: Sequence[Event] | None, warm: np.ndarray) -> None:
        self._order: OrderedDict[int, None] = OrderedDict.fromkeys(warm.tolist())

    def use(self, needed: list[int], newcomers: list[int]) -> None:
        order = self._order
        for unit in needed:
            order[unit] = None
            order.move_to_end(unit)
        for unit in self._pinned.intersection(needed) if self._pinned else ():
            del order[unit]

    def evict(self, needed: list[int], newcomers: list[int]) -> None:
        cache, order, stays = self._cache, self._order, set(needed)
        while cache.used > cache.size and order:
            unit = next(iter(order))
            if unit in stays:  # as are all that come after it
                return
            del order[unit]
            cache.leave(unit)


class _ByUpdate:
    """A rule whose rank changes only for the units of an event: a heap finds the lowest rank.

    Entries are (rank, settled, recency, unit); an entry is valid if it is the unit's last one. `settled` is 0 for
    newcomers under bypass, until their event is over.
    """

    def __init__(self, cache: ExpertCache) -> None:
        self._cache = cache
        self._units = len(cache.bytes)

    def start(self, future: Sequence[Event] | None, warm: np.ndarray) -> None:
        self._event = self._uses_so_far = 0
        self._rank = [0] * self._units
        self._last: list[_Entry | None] = [None] * self._units
        self._heap: list[_Entry] = []
        if self._cache.update == "next":
            if future is None:
                raise ContractError(f"{self._cache.who}: needs all events beforehand")
            self._uses = next_uses(future, [part.first for part in self._cache.parts], self._units)
        for unit in warm.tolist():
            if self._cache.update == "next":
                self._rank[unit] = -self._uses[unit][-1] if self._uses[unit] else -NEVER
            self._push(unit)

    def use(self, needed: list[int], newcomers: list[int]) -> None:
        event, rank, update = self._event, self._rank, self._cache.update
        if update == "last":
            for unit in needed:
                rank[unit] = event
        elif update == "count":
            for unit in needed:
                rank[unit] += 1
        elif update == "first":
            for unit in newcomers:
                rank[unit] = event
        else:
            for unit in needed:
                uses = self._uses[unit]
                uses.pop()
                rank[unit] = -uses[-1] if uses else -NEVER
        self._event += 1
        for unit in needed:
            self._push(unit)

    def evict(self, needed: list[int], newcomers: list[int]) -> None:
        cache, aside = self._cache, []
        stays = set() if cache.bypass else set(needed)
        settled = [self._last[unit] for unit in newcomers] if cache.bypass else []
        for entry in settled:
            if entry is not None:
                self._put((entry[0], 0, entry[2], entry[3]))
        while cache.used > cache.size and self._heap:
            entry = heapq.heappop(self._heap)
            unit = entry[3]
            if entry is not self._last[unit] or not cache.cached[unit]:
                continue
            if unit in stays:
                aside.append(entry)
            else:
                cache.leave(unit)
        for entry in aside:
            heapq.heappush(self._heap, entry)
        for entry in settled:
            if entry is not None and cache.cached[entry[3]]:
                self._put(entry)

    def _push(self, unit: int) -> None:
        """Enter a unit that was used now."""
        if not self._cache.pinned[unit]:
            self._put((self._rank[unit], 1, self._uses_so_far, unit))
            self._uses_so_far += 1

    def _put(self, entry: _Entry) -> None:
        self._last[entry[3]] = entry
        heapq.heappush(self._heap, entry)
        if len(self._heap) > 64 + 8 * self._units:  # mostly entries that are no longer valid
            self._heap = [entry for entry in self._heap if entry is self._last[entry[3]]]
            heapq.heapify(self._heap)


class _ByPlugin:
    """Any other rule, which sees the experts of all parts as the units of one group."""

    def __init__(self, cache: ExpertCache) -> None:
        self._cache = cache
        self._ranks = type(cache.eviction).stay is Eviction.stay

    def start(self, future: Sequence[Event] | None, warm: np.ndarray) -> None:
        cache, units = self._cache, len(self._cache.bytes)
        masks = None
        if cache.eviction.needs_future and future is not None:
            masks = np.zeros((len(future), units), bool)
            for number, (part, needed) in enumerate(future):
                masks[number, needed + cache.parts[part].first] = True
        pinned = int(np.count_nonzero(cache.pinned))
        self._capacity = max(0, min(units, cache.size // int(cache.bytes.min())) - pinned)
        self._state: Any = call(cache.who, cache.eviction.start, units, self._capacity, masks)
        self._recency = np.zeros(units, np.int64)
        self._clock = self._event = 0
        if len(warm):
            initial = np.zeros(units, bool)
            initial[warm] = True
            call(cache.who, cache.eviction.warm, self._state, kernels.read_only(initial))

    def use(self, needed: list[int], newcomers: list[int]) -> None:
        units = len(self._cache.bytes)
        mask, admitted = np.zeros(units, bool), np.zeros(units, bool)
        mask[needed], admitted[newcomers] = True, True
        mask &= ~self._cache.pinned  # which no rule sees
        use = Use(self._event, kernels.read_only(mask), kernels.read_only(admitted))
        call(self._cache.who, self._cache.eviction.use, self._state, use)
        self._event += 1
        self._recency[needed] = np.arange(self._clock, self._clock + len(needed))
        self._clock += len(needed)

    def evict(self, needed: list[int], newcomers: list[int]) -> None:
        cache = self._cache
        idle = cache.cached & ~cache.pinned
        if not cache.bypass:
            idle[needed] = False
        if self._ranks:
            units = np.flatnonzero(idle)
            rank = self._rank()[units]
            fresh = np.isin(units, newcomers) if cache.bypass else np.zeros(len(units), bool)
            order = units[np.lexsort((self._recency[units], ~fresh, rank))]
            freed = np.cumsum(cache.bytes[order])
            leaving = order[: int(np.searchsorted(freed, cache.used - cache.size)) + 1]
        else:
            others = int(np.count_nonzero(cache.cached & ~cache.pinned & ~idle))
            stay = self._stay(idle, max(0, self._capacity - others))
            leaving = np.flatnonzero(idle & ~stay)
        for unit in leaving.tolist():
            cache.leave(unit)

    def _stay(self, candidates: np.ndarray, count: int) -> np.ndarray:
        cache = self._cache
        if np.count_nonzero(candidates) <= count:  # nothing may leave, because an event alone is too large
            return candidates
        kept = call(cache.who, cache.eviction.stay, self._state, kernels.read_only(candidates), count)
        valid = isinstance(kept, np.ndarray) and kept.dtype == bool and kept.shape == candidates.shape
        if not valid or np.count_nonzero(kept) != count or np.any(kept & ~candidates):
            raise ContractError(f"{cache.who}: stay() must return a mask of exactly {count} of the candidates")
        return np.asarray(kept)

    def _rank(self) -> np.ndarray:
        cache, units = self._cache, len(self._cache.bytes)
        rank = call(cache.who, cache.eviction.rank, self._state)
        if not isinstance(rank, np.ndarray) or rank.dtype.kind not in "fiub" or rank.shape != (units,):
            description = f"{rank.dtype} of shape {rank.shape}" if isinstance(rank, np.ndarray) else type(rank).__name__
            raise ContractError(f"{cache.who}: rank() returned {description}, needs numbers of shape ({units},)")
        if rank.dtype.kind == "f" and np.isnan(rank.max()):
            unit = int(np.flatnonzero(np.isnan(rank))[0])
            raise ContractError(f"{cache.who}: rank() returned NaN for unit {unit}")
        return rank


def next_uses(events: Sequence[Event], first: Sequence[int], units: int) -> list[list[int]]:
    """For each unit of all parts the numbers of the events that need it, the first one last.

    Args:
        events: all events.
        first: first unit of each part among the units of all parts.
        units: units of all parts.
    """
    uses: list[list[int]] = [[] for _ in range(units)]
    for number in range(len(events) - 1, -1, -1):
        part, needed = events[number]
        for unit in (needed + first[part]).tolist():
            uses[unit].append(number)
    return uses

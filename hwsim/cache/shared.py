"""One DRAM cache for several groups whose units differ in size: the set of cached units, in exact bytes.

Groups are served one after the other. The rules are those of `hwsim.cache.cache`, in bytes:

* Hits are counted before the service's own update.
* The group's mask is admitted first; then units of all groups that are not in it leave until the rest fits. The lowest
  rank leaves first; ties are broken by the later group, then by the higher index.
* If a mask is larger than the cache, its hits stay, then each of its misses that still fits enters, the lower index
  first; everything else leaves.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwsim.cache.cache import Cache
from hwsim.errors import ContractError, SettingError
from hwsim.evictions import Eviction, Use
from hwsim.util import kernels
from hwsim.util.calls import call


class SharedCache:
    """A cache of `size` bytes that serves several parts, each a group of one layer.

    Attributes:
        size: capacity in bytes.
        used: bytes of the cached units.
        parts: the caches of the groups, in order.

    Args:
        parts: for each part the bytes of its units: int64 ``[units]``.
        size: capacity in bytes.
        eviction: picks the units that leave; it must be able to serve a shared cache.
    """

    def __init__(self, parts: Sequence[np.ndarray], size: int, eviction: Eviction) -> None:
        self.size, self.used = size if eviction.caches else 0, 0
        self._bytes = np.concatenate(parts)
        self._cached = np.zeros(len(self._bytes), bool)
        self._ranks: np.ndarray | None = None
        self._service, self._ages = 0, eviction.ages
        self.parts: list[Part] = []
        start = 0
        for sizes in parts:
            self.parts.append(Part(self, start, sizes, self._cached[start : start + len(sizes)], eviction))
            start += len(sizes)

    def start(self) -> None:
        """Begin a sequence with an empty cache."""
        self._cached[:] = False
        self.used = self._service = 0
        self._ranks = None

    def serve(self, part: Part, mask: np.ndarray) -> tuple[int, int]:
        """Serve one mask of one part, bool ``[units]``, and return (requests, hits) in units."""
        needed = int(np.count_nonzero(mask))
        if self.size == 0:
            return needed, 0
        there = mask & part.view
        wanted = int(part.bytes[mask].sum())
        fits = wanted <= self.size
        admitted = mask ^ there if fits else _that_fit(mask ^ there, part.bytes, self.size - part.weigh(there))
        part.use(self._service, mask, admitted)
        for other in self.parts if self._ages else ():
            if other is not part:
                other.use(self._service, other.none, other.none)
        self._service += 1
        ranks = self._ranked(part)
        if fits:
            excess = self.used + part.weigh(admitted) - self.size
            if excess > 0:
                self._evict(ranks, part, mask, excess)
            part.admit(admitted)
            self.used += part.weigh(admitted)
        else:
            self._cached[:] = False
            part.admit(there | admitted)
            self.used = part.weigh(there) + part.weigh(admitted)
        return needed, int(np.count_nonzero(there))

    def _ranked(self, part: Part) -> np.ndarray:
        """Ranks of all units; only those of the part that was just served are updated, unless all of them age."""
        for updated in self.parts if self._ages else [part]:
            rank = updated.ranks()
            if self._ranks is None:
                self._ranks = np.zeros(len(self._bytes), rank.dtype)
            if rank.dtype != self._ranks.dtype:
                raise ContractError(
                    f"{part.who}: rank() returned {rank.dtype} after {self._ranks.dtype}; it must be one"
                )
            self._ranks[updated.place] = rank
        assert self._ranks is not None
        return self._ranks

    def _evict(self, ranks: np.ndarray, part: Part, mask: np.ndarray, excess: int) -> None:
        """Remove units that are not in the mask until `excess` bytes are free."""
        idle = self._cached.copy()
        idle[part.place] &= ~mask
        indices = np.flatnonzero(idle)
        leaving = _lowest(ranks[indices], self._bytes[indices], excess)
        gone = indices[leaving]
        self._cached[gone] = False
        self.used -= int(self._bytes[gone].sum())


def _that_fit(misses: np.ndarray, sizes: np.ndarray, room: int) -> np.ndarray:
    """The misses that fit into `room` bytes, the lower index first: bool ``[units]``.

    All units of a group have the same size, except that the last may be smaller.
    """
    admitted = np.zeros(len(misses), bool)
    indices = np.flatnonzero(misses)
    admitted[indices[np.cumsum(sizes[indices]) <= room]] = True
    if len(indices) and not admitted[indices[-1]]:
        room -= int(sizes[admitted].sum())
        admitted[indices[-1]] = sizes[indices[-1]] <= room
    return admitted


def _lowest(ranks: np.ndarray, sizes: np.ndarray, excess: int) -> np.ndarray:
    """Positions of the lowest ranks, among equals the higher position first, that free `excess` bytes."""
    most = -(-excess // int(sizes.min()))  # any units of this number are enough
    if most < len(ranks):
        limit = np.partition(ranks, most - 1)[most - 1]
        lower = np.flatnonzero(ranks < limit)
        equal = np.flatnonzero(ranks == limit)
    else:
        lower, equal = np.arange(len(ranks)), np.zeros(0, np.intp)
    lower = lower[::-1]
    order = np.concatenate([lower[np.argsort(ranks[lower], kind="stable")], equal[::-1]])
    freed = np.cumsum(sizes[order])
    return order[: int(np.searchsorted(freed, excess)) + 1]


class Part(Cache):
    """The part of a shared cache that serves one group, with the interface of `Cache`.

    Attributes:
        bytes: int64 ``[units]``: sizes of its units.
        place: positions of its units among the units of all parts.
        none: bool ``[units]``, read-only: an empty mask.
    """

    def __init__(self, cache: SharedCache, first: int, sizes: np.ndarray, cached: np.ndarray, rule: Eviction) -> None:
        whole = cache.size >= int(sizes.sum())
        super().__init__(len(sizes), len(sizes) if whole else cache.size // int(sizes[0]), rule)
        self.bytes, self.place = sizes, slice(first, first + len(sizes))
        self.none = kernels.read_only(np.zeros(len(sizes), bool))
        self._shared = cache
        self._cached = cached
        self.view = kernels.read_only(cached)

    def start(self, future: np.ndarray | None = None) -> None:
        """Begin a sequence for this part; the shared cache's `start` must have been called before."""
        self._state = call(self._who, self._eviction.start, self.units, self.capacity, None)

    def step(self, mask: np.ndarray) -> tuple[int, int]:
        """Serve one mask, bool ``[units]``, and return (requests, hits) in units."""
        return self._shared.serve(self, mask)

    def weigh(self, mask: np.ndarray) -> int:
        """Bytes of the units in a mask."""
        return int(self.bytes[mask].sum())

    def use(self, service: int, mask: np.ndarray, admitted: np.ndarray) -> None:
        """Inform the eviction rule of a service."""
        use = Use(service, kernels.read_only(mask) if mask.flags.writeable else mask, kernels.read_only(admitted))
        call(self._who, self._eviction.use, self._state, use)

    def ranks(self) -> np.ndarray:
        """The eviction rule's rank of each unit."""
        return self._rank()

    def admit(self, units: np.ndarray) -> None:
        """Mark units as cached."""
        np.logical_or(self._cached, units, out=self._cached)

    @property
    def who(self) -> str:
        """Name of the eviction rule, for messages."""
        return self._who


def check_shared(eviction: Eviction, scope: str) -> None:
    """Refuse a rule that cannot serve a shared cache.

    Raises:
        SettingError: the rule does not declare ``shares = True``, does not rank, needs the future, or bypasses.
    """
    by_rank = type(eviction).stay is Eviction.stay and not eviction.needs_future
    if not (eviction.shares and by_rank and eviction.admission == "always"):
        raise SettingError(
            f"--cache-scope {scope}: {type(eviction).__name__} cannot serve one cache for groups whose units differ in "
            "size: it must compare units of all groups by a rank alone, admit whatever is needed, and say so with "
            "shares = True; choose another "
            "--eviction, such as lru or lfu"
        )

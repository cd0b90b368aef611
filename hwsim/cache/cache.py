"""The DRAM cache of one group of one layer: the set of cached units, without time and bytes.

The exact rules:

* Hits are counted before the token's own update.
* The mask is admitted first; then units outside the mask leave by the eviction's rank.
* If a mask is larger than the capacity, its hits stay, and then its misses enter by ascending index.
* The cache is empty at the start of each sequence, unless it is warm.
* Under bypass the best-ranked of all cached and needed units stay. Ties go to units in the cache, then to the lower
  index.
* Pinned units take room and never leave.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hwsim.cache import compiled
from hwsim.cache.unit_sets import UnitSets
from hwsim.errors import ContractError, SettingError
from hwsim.evictions import Admission, Eviction, RankUpdate, Use
from hwsim.util import kernels
from hwsim.util.calls import call


@dataclass(frozen=True, eq=False)
class CacheSetup:
    """Admission and initial content of all caches of a run.

    Attributes:
        admission: how units enter; None: the eviction rule's own admission.
        pinned: units that are cached from the start and never leave; they count towards the capacity.
        warm: units that are cached when a sequence begins and may leave.
    """

    admission: Admission | None = None
    pinned: UnitSets | None = None
    warm: UnitSets | None = None

    def cache(self, layer: int, group: str, units: int, capacity: int, eviction: Eviction) -> Cache:
        """Make the cache of one group of one layer.

        Raises:
            SettingError: the eviction cannot bypass, a set is missing, or more units are pinned or warm than fit.
        """
        pinned, warm = (part.of(layer, group, units) if part else None for part in (self.pinned, self.warm))
        where = f"layer {layer}, group {group}: "
        return Cache(units, capacity, eviction, admission=self.admission, pinned=pinned, warm=warm, where=where)


def rank_update(kind: type[Eviction], *, shared: bool = False) -> RankUpdate | None:
    """How serving a token changes a rule's rank; None if a subclass overrides more than the class that declares it.

    Args:
        kind: the rule.
        shared: whether the cache serves whole events and can tell the next use of a unit.
    """
    if kind.rank_update == "next" and not shared:
        return None
    owner = _definer(kind, "rank_update")
    complete = all(issubclass(owner, _definer(kind, name)) for name in ("start", "use", "rank", "stay"))
    return kind.rank_update if complete else None


def _definer(kind: type, name: str) -> type:
    """The class that defines an attribute of `kind`."""
    return next(base for base in kind.__mro__ if name in vars(base))


class Cache:
    """A set of at most `capacity` of `units` units.

    Args:
        units: size of the group.
        capacity: units that it can hold.
        eviction: picks the units that leave.
        admission: how units enter; None: the eviction rule's own admission.
        pinned: bool ``[units]``: units that are cached permanently.
        warm: bool ``[units]``: further units that are cached when a sequence begins.
        where: place of the cache, for messages.

    Attributes:
        view: bool ``[units]``, read-only: units that are cached now.

    Raises:
        SettingError: the eviction cannot bypass, or more units are pinned or warm than the cache holds.
    """

    def __init__(
        self,
        units: int,
        capacity: int,
        eviction: Eviction,
        *,
        admission: Admission | None = None,
        pinned: np.ndarray | None = None,
        warm: np.ndarray | None = None,
        where: str = "",
    ) -> None:
        self.units = units
        self.capacity = min(capacity, units) if eviction.caches else 0
        self._eviction, self._who = eviction, f"eviction {type(eviction).__name__}"
        self._ranks = type(eviction).stay is Eviction.stay
        self._bypass = (admission or eviction.admission) == "bypass"
        self._pinned, self._warm = pinned, warm
        self._check(where)
        self._room = self.capacity - (0 if pinned is None else int(np.count_nonzero(pinned)))
        self._state: Any = None
        self._space: compiled.Workspace | None = None  # of the compiled scan
        self._token = 0
        self._occupied = 0
        self._cached = np.zeros(units, bool)  # without the pinned ones
        self._all = self._cached if pinned is None else pinned.copy()
        self.view = kernels.read_only(self._all)

    def start(self, future: np.ndarray | None = None) -> None:
        """Begin a sequence with an empty or warm cache.

        Args:
            future: bool ``[tokens, units]``: masks of the sequence, for rules that need the future.
        """
        self._cached[:] = False
        self._token = self._occupied = 0
        self._state = call(self._who, self._eviction.start, self.units, self._room, future)
        if self._warm is not None:
            self._cached |= self._warm
            self._occupied = int(np.count_nonzero(self._cached))
            initial = kernels.read_only(self._warm.copy())
            call(self._who, self._eviction.warm, self._state, initial)
        self._show()

    def step(self, mask: np.ndarray) -> tuple[int, int]:
        """Serve one token's mask, bool ``[units]``, and return (requests, hits) in units."""
        needed = int(np.count_nonzero(mask))
        if self._pinned is None:
            return needed, self._serve(mask, needed)
        others = mask & ~self._pinned
        requests = int(np.count_nonzero(others))
        hits = self._serve(others, requests)
        self._show()
        return needed, needed - requests + hits

    @property
    def rank_update(self) -> RankUpdate | None:
        """How the compiled scan updates the rank of this cache; None if it cannot serve it."""
        plain = self._pinned is None and not self._bypass
        if self.capacity == 0:
            return "count"  # nothing is cached, so the rank is not used
        return rank_update(type(self._eviction)) if plain and self._ranks else None

    def serve(
        self, values: np.ndarray, uncached: np.ndarray, k: int, before: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Decide and serve many tokens with the compiled scan; the result is that of `step` token by token.

        Args:
            values: float32 ``[tokens, units]``: scores of cached units; or float16, whose magnitudes are the scores.
            uncached: float32 ``[tokens]``, at least 0: factor on the scores of units that are not cached.
            k: units of each mask.
            before: bool ``[tokens, units]``: output, the cached units before each token.

        Returns:
            Masks, bool ``[tokens, units]``, valid until the next call, and hits, int32 ``[tokens]``.
        """
        update = self.rank_update
        assert update is not None
        rank = self._state if self.capacity else np.zeros(self.units, np.int32)
        if self._space is None:
            self._space = compiled.Workspace(self.units)
        masks, hits = compiled.serve(
            values, uncached, k, self.capacity, update, self._cached, rank, self._token, self._space, before
        )
        if self.capacity:
            self._token += len(values)
            self._occupied = int(np.count_nonzero(self._cached))
        return masks, hits

    def _serve(self, mask: np.ndarray, needed: int) -> int:
        """Serve units that are not pinned, and return the number of hits."""
        if self._room == 0:
            return 0
        there = mask & self._cached
        hits = int(np.count_nonzero(there))
        admitted = mask ^ there
        if needed > self._room and not self._bypass:
            admitted = kernels.first_k(admitted, self._room - hits)
        use = Use(self._token, kernels.read_only(mask) if mask.flags.writeable else mask, kernels.read_only(admitted))
        call(self._who, self._eviction.use, self._state, use)
        self._token += 1
        if self._bypass:
            self._take_best(admitted, self._occupied + needed - hits)
            return hits
        idle, room = self._occupied - hits, max(self._room - needed, 0)
        stays = self._cached
        if idle > room:
            stays = there | self._stay(self._cached & ~mask, room)
        np.logical_or(stays, admitted, out=self._cached)
        self._occupied = min(self._room, needed + min(idle, room))
        return hits

    def _take_best(self, newcomers: np.ndarray, present: int) -> None:
        """Bypass: keep the best-ranked of the `present` units, cached or needed, that fit."""
        stays = self._cached | newcomers
        if present > self._room and self._ranks:
            order = np.concatenate([np.flatnonzero(self._cached), np.flatnonzero(newcomers)])  # ties go to the first
            best = kernels.top_k(self._rank()[order], self._room)
            stays[order[~best]] = False
        elif present > self._room:
            stays = self._stay(stays, self._room)
        self._cached[:] = stays
        self._occupied = min(present, self._room)

    def _show(self) -> None:
        if self._pinned is not None:
            np.logical_or(self._cached, self._pinned, out=self._all)

    def _check(self, where: str) -> None:
        """Refuse a bypass that the eviction cannot do, and initial units that do not fit."""
        if self._bypass and not self._ranks and self._eviction.admission != "bypass":
            raise SettingError(
                f"--admission bypass: {self._who} admits whatever is needed and ranks no newcomer; leave the option "
                "out, or choose a rule that ranks, such as lfu"
            )
        pinned = np.zeros(self.units, bool) if self._pinned is None else self._pinned
        if self._warm is not None:
            self._warm = self._warm & ~pinned
        warm = 0 if self._warm is None else int(np.count_nonzero(self._warm))
        total = int(np.count_nonzero(pinned))
        if not self._eviction.caches and total + warm:
            raise SettingError(
                f"{where}{self._who} keeps nothing, so nothing can be there from the start; "
                "--eviction static keeps a fixed set"
            )
        if total + warm > self.capacity:
            besides = f" and {warm} more are there from the start" if warm else ""
            raise SettingError(
                f"{where}{total} units are pinned{besides}, but the cache holds {self.capacity}; "
                "give more with --dram, or name fewer"
            )

    def _stay(self, candidates: np.ndarray, count: int) -> np.ndarray:
        if self._ranks:
            return kernels.stay(self._rank(), candidates, count) if count else np.zeros(self.units, bool)
        candidates = kernels.read_only(candidates)
        kept = call(self._who, self._eviction.stay, self._state, candidates, count)
        valid = isinstance(kept, np.ndarray) and kept.dtype == bool and kept.shape == candidates.shape
        if not valid or np.count_nonzero(kept) != count or np.any(kept & ~candidates):
            raise ContractError(f"{self._who}: stay() must return a mask of exactly {count} of the candidates")
        return kept

    def _rank(self) -> np.ndarray:
        rank = call(self._who, self._eviction.rank, self._state)
        if not isinstance(rank, np.ndarray) or rank.dtype.kind not in "fiub" or rank.shape != (self.units,):
            description = f"{rank.dtype} of shape {rank.shape}" if isinstance(rank, np.ndarray) else type(rank).__name__
            raise ContractError(f"{self._who}: rank() returned {description}, needs numbers of shape ({self.units},)")
        if rank.dtype.kind == "f" and np.isnan(rank.max()):
            raise ContractError(f"{self._who}: rank() returned NaN for unit {int(np.flatnonzero(np.isnan(rank))[0])}")
        return rank

"""The DRAM cache of one group of one layer: which units are there. No time and no bytes in it.

The rules that make it exact: hits are counted before the token's own update; the mask is admitted first, then those who
are not in it leave by the eviction's rank; a mask larger than the capacity keeps its hits and then its lowest-index
misses; the cache is empty at the start of each sequence.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hwsim import kernels
from hwsim.errors import ContractError, HwsimError, one_line
from hwsim.evictions import Eviction, Use


class Cache:
    """A set of at most `capacity` of `units` units.

    Attributes:
        view: bool ``[units]``, read-only: what is in it now.
    """

    def __init__(self, units: int, capacity: int, eviction: Eviction) -> None:
        self.units = units
        self.capacity = min(capacity, units) if eviction.caches else 0
        self._eviction = eviction
        self._state: Any = None
        self._token = 0
        self._occupied = 0
        self._cached = np.zeros(units, bool)
        self.view = kernels.read_only(self._cached)

    def start(self, future: np.ndarray | None = None) -> None:
        """A sequence begins: forget everything. `future`, bool ``[tokens, units]``, for rules that need it."""
        self._cached[:] = False
        self._token = self._occupied = 0
        self._state = self._ask(lambda: self._eviction.start(self.units, self.capacity, future))

    def step(self, mask: np.ndarray) -> tuple[int, int]:
        """Serve one token's mask, bool ``[units]``: (how many units it asks for, how many were there)."""
        needed = int(np.count_nonzero(mask))
        if self.capacity == 0:
            return needed, 0
        there = mask & self._cached
        hits = int(np.count_nonzero(there))
        if needed > self.capacity:
            admitted = kernels.first_k(mask ^ there, self.capacity - hits)
            stays = there
        else:
            admitted = mask ^ there
            stays = self._cached
        use = Use(self._token, kernels.read_only(mask) if mask.flags.writeable else mask, kernels.read_only(admitted))
        self._ask(lambda: self._eviction.use(self._state, use))
        idle, room = self._occupied - hits, self.capacity - needed
        if needed <= self.capacity and idle > room:
            stays = there | self._stay(self._cached & ~mask, room)
        np.logical_or(stays, admitted, out=self._cached)
        self._occupied = min(self.capacity, needed + min(idle, max(room, 0)))
        self._token += 1
        return needed, hits

    def _stay(self, candidates: np.ndarray, count: int) -> np.ndarray:
        if type(self._eviction).stay is Eviction.stay:
            return kernels.stay(self._rank(), candidates, count)
        candidates = kernels.read_only(candidates)
        kept = self._ask(lambda: self._eviction.stay(self._state, candidates, count))
        ours = isinstance(kept, np.ndarray) and kept.dtype == bool and kept.shape == candidates.shape
        if not ours or np.count_nonzero(kept) != count or np.any(kept & ~candidates):
            raise ContractError(f"{self._who}: stay() must return a mask of exactly {count} of the candidates")
        return kept

    def _rank(self) -> np.ndarray:
        rank = self._ask(lambda: self._eviction.rank(self._state))
        if not isinstance(rank, np.ndarray) or rank.dtype.kind not in "fiub" or rank.shape != (self.units,):
            found = f"{rank.dtype} of shape {rank.shape}" if isinstance(rank, np.ndarray) else type(rank).__name__
            raise ContractError(f"{self._who}: rank() returned {found}, needs numbers of shape ({self.units},)")
        if rank.dtype.kind == "f" and np.isnan(rank.max()):
            raise ContractError(f"{self._who}: rank() returned NaN for unit {int(np.flatnonzero(np.isnan(rank))[0])}")
        return rank

    def _ask(self, call: Any) -> Any:
        """Call the eviction; what it raises becomes one line that names it."""
        try:
            return call()
        except HwsimError:
            raise
        except (Exception, SystemExit) as error:
            raise ContractError(f"{self._who}: raised {type(error).__name__}: {one_line(error)}") from error

    @property
    def _who(self) -> str:
        return f"eviction {type(self._eviction).__name__}"

"""Belady's rule (1966): the bound that no rule without foresight passes, on fixed masks with the same admission."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hwsim.errors import PluginError
from hwsim.evictions import Eviction, RankUpdate, Use

_NEVER = np.iinfo(np.int32).max
_BLOCK = 1024  # units


@dataclass
class _Future:
    """Tokens at which units are needed: the uses of a unit are ``uses[at[unit]:end[unit]]``, rising."""

    uses: np.ndarray  # int32 [all uses]
    at: np.ndarray  # int64 [units], the next use that has not been served
    end: np.ndarray  # int64 [units]
    rank: np.ndarray  # int32 [units], minus the token of the next use


class Belady(Eviction):
    """Who is needed again furthest in the future leaves first: the bound on fixed masks, with foresight."""

    needs_future: ClassVar[bool] = True
    rank_update: ClassVar[RankUpdate | None] = "next"

    def start(self, units: int, capacity: int, future: np.ndarray | None) -> _Future:
        """The uses of each unit."""
        if future is None:
            raise PluginError("belady needs the masks of the whole sequence")
        counts = np.count_nonzero(future, axis=0)
        end = np.cumsum(counts)
        # some units at a time: nonzero of all would hold two int64 for each use
        blocks = (future[:, start : start + _BLOCK].T for start in range(0, units, _BLOCK))
        uses = [np.nonzero(np.ascontiguousarray(block))[1].astype(np.int32) for block in blocks]
        state = _Future(np.concatenate(uses), end - counts, end, np.full(units, -_NEVER, np.int32))
        used = np.flatnonzero(counts)
        state.rank[used] = -state.uses[state.at[used]]  # ranks units that are cached from the start, too
        return state

    def use(self, state: _Future, use: Use) -> None:
        """Look up the next use of the units of this mask; other units do not change."""
        served = np.flatnonzero(use.mask)
        state.at[served] += 1
        at, again = state.at[served], state.at[served] < state.end[served]
        following = np.full(served.shape[0], _NEVER, np.int32)
        following[again] = state.uses[at[again]]
        state.rank[served] = -following

    def rank(self, state: _Future) -> np.ndarray:
        """A sooner next use ranks higher."""
        return state.rank

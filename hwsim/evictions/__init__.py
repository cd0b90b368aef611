"""Eviction rules: one file a rule, the file name is the rule's name; this page is their whole contract.

A cache calls `start` for each sequence, then `use` for each token and, when somebody must leave, `stay`. The rule
keeps its counters in the state that `start` returns, never in its fields, which are its parameters.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from hwsim import kernels
from hwsim.errors import PluginError


class Use(NamedTuple):
    """One token's demand on one cache.

    Attributes:
        token: decoded token of the sequence, from 0; where groups share a cache, the number of the use of that cache.
        mask: bool ``[units]``: the needed units.
        admitted: bool ``[units]``: those of them that enter the cache now.
    """

    token: int
    mask: np.ndarray
    admitted: np.ndarray


class Eviction(BaseModel):
    """Base of all eviction rules. Overriding `start`, `use` and `rank` is enough for most.

    Attributes:
        caches: False for a rule that never keeps anything.
        needs_future: True for a rule that `start` must tell all masks of the sequence.
        shares: True for a rule whose ranks compare units of different groups, so that it can serve one cache for all
            of them: it decides by `rank` alone, and takes ``use.token`` for nothing but the order of uses.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    caches: ClassVar[bool] = True
    needs_future: ClassVar[bool] = False
    shares: ClassVar[bool] = False

    def start(self, units: int, capacity: int, future: np.ndarray | None) -> Any:
        """A new sequence begins with an empty cache: return the rule's state.

        Args:
            units: size of the group.
            capacity: units that the cache can hold.
            future: bool ``[tokens, units]``, all masks of the sequence, if the rule `needs_future`.
        """
        return None

    def use(self, state: Any, use: Use) -> None:
        """A token was served: update the state."""

    def rank(self, state: Any) -> np.ndarray:
        """How much each unit is worth keeping, ``[units]``: the lowest leaves first, among equals the higher index."""
        raise PluginError(
            f"{type(self).__name__} must define rank(self, state) or stay(self, state, candidates, count)"
        )

    def stay(self, state: Any, candidates: np.ndarray, count: int) -> np.ndarray:
        """Which `count` of the candidates (in the cache, not needed now) stay: bool ``[units]``."""
        return kernels.stay(self.rank(state), candidates, count)

"""Eviction rules: each file defines one rule, which has the file's name; this module is their whole contract.

A cache calls `start` for each sequence, then `use` for each token and, when units must leave, `stay`. The rule keeps
its counters in the state that `start` returns, never in its fields, which are its parameters.

A token needs a set of units. The cache first admits the whole set; then `stay` chooses among the cached units that are
not in the set. Under bypass no unit is forced into the cache: `stay` chooses among cached and needed units alike.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from hwsim.errors import PluginError
from hwsim.util import kernels

RankUpdate = Literal["last", "count", "first", "next"]
"""How serving a token updates a rank: ``last`` stores the token at which a unit was needed, ``count`` counts the needs,
``first`` stores the token at which the unit was admitted, and ``next`` is minus the token that needs the unit next."""

Admission = Literal["always", "bypass"]
"""Whether a needed unit always enters the cache, or only if the rule ranks it above a cached unit."""


class Use(NamedTuple):
    """One token's demand on one cache.

    Attributes:
        token: decoded token of the sequence, from 0; if groups share a cache, the number of the use of that cache.
        mask: bool ``[units]``: the needed units.
        admitted: bool ``[units]``: needed units that enter the cache now; under bypass all that are not cached.
    """

    token: int
    mask: np.ndarray
    admitted: np.ndarray


class Eviction(BaseModel):
    """Base of all eviction rules. Overriding `start`, `use` and `rank` is enough for most.

    Attributes:
        caches: False for a rule that never keeps any unit.
        needs_future: True for a rule whose `start` needs all masks of the sequence.
        admission: how units enter the cache, unless the user chooses.
        shares: True for a rule whose ranks are comparable between units of different groups, so that one cache can
            serve all groups. Such a rule decides by `rank` alone and admits every needed unit; ``use.token`` then
            counts the uses of that cache, not tokens.
        ages: True for a rule whose ranks change as time passes, also of units that are not needed. A shared cache then
            calls `use` for all of its groups at each use of the cache, with empty masks for those that it does not
            serve, and asks all of them for their ranks.
        rank_update: optional fast path, for a rule whose state is the rank itself, int32 ``[units]``, and whose `use`
            does only one of these updates: set it to the token where a unit was needed (``last``) or admitted
            (``first``), or add one where a unit was needed (``count``). ``next``, for a rule that needs the future: the
            rank is minus the next need, which a cache of experts computes itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    caches: ClassVar[bool] = True
    needs_future: ClassVar[bool] = False
    admission: ClassVar[Admission] = "always"
    shares: ClassVar[bool] = False
    ages: ClassVar[bool] = False
    rank_update: ClassVar[RankUpdate | None] = None

    def start(self, units: int, capacity: int, future: np.ndarray | None) -> Any:
        """The state of the rule at the beginning of a sequence.

        Args:
            units: size of the group.
            capacity: units that the cache can hold, without pinned units, which never appear in a mask.
            future: bool ``[tokens, units]``, all masks of the sequence if the rule `needs_future`, else None.
        """
        return None

    def warm(self, state: Any, cached: np.ndarray) -> None:
        """Begin the sequence with the units of `cached`, bool ``[units]``, in the cache.

        Without this call the cache begins empty.
        """

    def use(self, state: Any, use: Use) -> None:
        """Update the state after a token was served."""

    def rank(self, state: Any) -> np.ndarray:
        """Value of keeping each unit, ``[units]``: the lowest leaves first, of equal units the higher index.

        Under bypass newcomers are ranked, too; of equal units cached ones stay.
        """
        raise PluginError(
            f"{type(self).__name__} must define rank(self, state) or stay(self, state, candidates, count)"
        )

    def stay(self, state: Any, candidates: np.ndarray, count: int) -> np.ndarray:
        """Mask of the `count` candidates that stay, bool ``[units]``; candidates are cached and not needed now.

        A rule that defines this makes the decision itself; `rank` is not called. It is called whenever units must
        leave, also if none may stay. In a rule of ``admission = "bypass"`` the needed units are candidates, too.
        """
        return kernels.stay(self.rank(state), candidates, count)

"""Eviction rules: one file a rule, the file name is the rule's name; this page is their whole contract.

A cache calls `start` for each sequence, then `use` for each token and, when somebody must leave, `stay`. The rule
keeps its counters in the state that `start` returns, never in its fields, which are its parameters.

A token asks for a set of units. The cache admits the whole set first; then `stay` picks among those who are in the
cache and not in the set. Under bypass nobody is forced in: `stay` picks among the cached and the needed alike.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from hwsim.errors import PluginError
from hwsim.util import kernels

RankUpdate = Literal["last", "count", "first"]
"""What serving a token does to a rank: the token at which a unit was last needed, how often it was, or admitted."""

Admission = Literal["always", "bypass"]
"""Whether a needed unit always enters the cache, or only if the rule ranks it above somebody in there."""


class Use(NamedTuple):
    """One token's demand on one cache.

    Attributes:
        token: decoded token of the sequence, from 0; where groups share a cache, the number of the use of that cache.
        mask: bool ``[units]``: the needed units.
        admitted: bool ``[units]``: those of them that enter the cache now; under bypass all that are not in it.
    """

    token: int
    mask: np.ndarray
    admitted: np.ndarray


class Eviction(BaseModel):
    """Base of all eviction rules. Overriding `start`, `use` and `rank` is enough for most.

    Attributes:
        caches: False for a rule that never keeps anything.
        needs_future: True for a rule that `start` must tell all masks of the sequence.
        admission: how units enter the cache, unless the user chooses.
        shares: True for a rule whose ranks compare units of different groups, so that it can serve one cache for all
            of them: it decides by `rank` alone, admits whatever is needed, and takes ``use.token`` for nothing but the
            order of uses.
        rank_update: for speed: the state is the rank, int32 ``[units]``, and `use` does no more than this to it: notes
            the token where a unit was needed (``last``) or admitted (``first``), or adds one where needed (``count``).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    caches: ClassVar[bool] = True
    needs_future: ClassVar[bool] = False
    admission: ClassVar[Admission] = "always"
    shares: ClassVar[bool] = False
    rank_update: ClassVar[RankUpdate | None] = None

    def start(self, units: int, capacity: int, future: np.ndarray | None) -> Any:
        """A new sequence begins: return the rule's state.

        Args:
            units: size of the group.
            capacity: units that the cache can hold; pinned ones are no part of it, and never asked for.
            future: bool ``[tokens, units]``, all masks of the sequence, if the rule `needs_future`.
        """
        return None

    def warm(self, state: Any, cached: np.ndarray) -> None:
        """The sequence begins with the units of `cached`, bool ``[units]``, in the cache; without this: with none."""

    def use(self, state: Any, use: Use) -> None:
        """A token was served: update the state."""

    def rank(self, state: Any) -> np.ndarray:
        """How much each unit is worth keeping, ``[units]``: the lowest leaves first, among equals the higher index.

        Under bypass newcomers are ranked, too; among equals those in the cache stay before them.
        """
        raise PluginError(
            f"{type(self).__name__} must define rank(self, state) or stay(self, state, candidates, count)"
        )

    def stay(self, state: Any, candidates: np.ndarray, count: int) -> np.ndarray:
        """Which `count` of the candidates (in the cache, not needed now) stay: bool ``[units]``.

        A rule that defines this decides by itself; `rank` is not asked. It is called whenever somebody must leave, also
        if nobody may stay. In a rule of ``admission = "bypass"`` the needed units are candidates, too.
        """
        return kernels.stay(self.rank(state), candidates, count)

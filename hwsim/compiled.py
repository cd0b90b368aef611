"""The scan of many tokens as one compiled loop: re-weighting, top-k, hits and cache update. Needs numba, an extra.

It decides exactly what `hwsim.kernels` and `hwsim.cache` decide token by token, to the bit; a test holds it to them.
It serves policies that give the scores of many tokens at once, and evictions whose rank is one number a unit.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np

RankUpdate = Literal["last", "count", "first"]
"""What serving a token does to a rank: the token at which a unit was last needed, how often it was, or admitted."""

_UPDATES: dict[str, int] = {"last": 0, "count": 1, "first": 2}
_SHORT = 32766  # the least and greatest rank that 16 bits hold, with room on both sides
_MANY = 8  # tokens that pay for a copy of the ranks


@cache
def available() -> bool:
    """Whether numba is installed and can be imported: it refuses versions of numpy that it does not know."""
    try:
        import numba  # noqa: F401
    except Exception:
        return False
    return True


class Workspace:
    """Memory that a scan of one group uses again for every block: what is new from the system must be cleared first.

    Args:
        units: of the group.

    Attributes:
        known: of the tokens before, where the searches begin, for the mask and for who stays: the limit, of who stays
            by how much it lies behind the token's number, and how many share a value near it. No answer depends on it.
    """

    def __init__(self, units: int) -> None:
        self.keys, self.ranks, self.wide = np.empty(units, np.int16), np.empty(units, np.int16), np.empty(0, np.int32)
        self.rank = np.empty(units, np.int16)
        self.found, self.scores = np.empty(units, np.int32), np.empty(units, np.float32)
        self.known = np.array([[0, max(1.0, units / 4096)], [1, units / 16]])
        self._masks = np.empty((0, units), bool)

    def masks(self, tokens: int) -> np.ndarray:
        """Room for masks, bool ``[tokens, units]``."""
        if len(self._masks) < tokens:
            self._masks = np.empty((tokens, self._masks.shape[1]), bool)
        return self._masks[:tokens]


def top_k(values: np.ndarray, k: int) -> np.ndarray:
    """Masks of the `k` best scores of each token: float32 ``[tokens, units]``, no NaN -> bool ``[tokens, units]``."""
    units = values.shape[1]
    ones = np.ones(len(values), np.float32)
    return serve(values, ones, k, 0, "count", np.zeros(units, bool), np.zeros(units, np.int32), 0)[0]


def serve(
    values: np.ndarray, uncached: np.ndarray, k: int, capacity: int, update: RankUpdate, cached: np.ndarray,
    rank: np.ndarray, token: int, space: Workspace | None = None, before: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Decide the masks of some tokens, each after the one before it went through the cache.

    Args:
        values: float32 ``[tokens, units]``, no NaN: the score of what is cached.
        uncached: float32 ``[tokens]``: times this it is the score of what is not; no NaN may come of it.
        k: units of each mask, at least 1.
        capacity: of the cache; 0: nothing is kept.
        update: of `rank`.
        cached: bool ``[units]``: what is in the cache; changed.
        rank: int32 ``[units]``: who stays; changed.
        token: number of the first of the tokens in its sequence.
        space: to work in; the masks lie in it.
        before: bool ``[tokens, units]``, for what was in the cache before each token.

    Returns:
        Masks, bool ``[tokens, units]``, and hits, int32 ``[tokens]``.
    """
    from hwsim.compiled_loops import loop

    tokens, units = values.shape
    space = space or Workspace(units)
    masks, hits = space.masks(tokens), np.zeros(tokens, np.int32)
    values = np.require(values, requirements=["C", "W"])  # others would be compiled anew
    kept = np.empty((0, units), np.uint8) if before is None else before.view(np.uint8)
    less = _short(rank, update, cached, token, tokens) if capacity and tokens >= _MANY else None
    used: np.ndarray = space.rank
    work: np.ndarray = space.ranks
    if capacity and less is None:
        if not len(space.wide):
            space.wide = np.empty(units, np.int32)
        used, work = rank, space.wide
    elif less is not None:
        np.clip(rank - less, -_SHORT, _SHORT, out=used, casting="unsafe")
    bounds = np.iinfo(used.dtype)
    loop(
        values, uncached, min(k, units), capacity, _UPDATES[update], cached.view(np.uint8), used, token - (less or 0),
        masks.view(np.uint8), hits, kept, space.keys, space.found, space.scores, work, space.known,
        (int(bounds.min), int(bounds.max)),
    )  # fmt: skip
    if less is not None:
        np.add(used, less, out=rank, dtype=np.int32)
    return masks, hits


def _short(rank: np.ndarray, update: RankUpdate, cached: np.ndarray, token: int, tokens: int) -> int | None:
    """What ranks must be less by for 16 bits to hold them, of which more are compared at a time; None: they are too far
    apart."""
    if update == "count":
        less = int(rank.min()) + _SHORT
        return less if int(rank.max()) + tokens - less <= _SHORT else None
    less = token + tokens - _SHORT
    # who is not cached has no rank but the next one
    return less if int(rank.min(where=cached, initial=less)) >= less - _SHORT else None

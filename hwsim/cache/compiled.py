"""The scan of many tokens as one compiled loop: re-weighting, top-k, hits and cache update. Needs numba, an extra.

It decides exactly what `hwsim.util.kernels` and `hwsim.cache.cache` decide token by token, to the bit; a
test holds it to them.
It serves policies that give the scores of many tokens at once, and evictions whose rank is one number a unit.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from hwsim.evictions import RankUpdate

_UPDATES: dict[str, int] = {"last": 0, "count": 1, "first": 2}
_TOP = {np.dtype(np.int16): 2**15 - 1, np.dtype(np.int32): 2**31 - 1}
"""Above all ranks; those of units that can be in a cache begin at 1."""
_MANY = 8  # tokens that pay for a look at how far apart ranks are


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
            by how much it lies behind the token's number, how many share a value near it, and by how much it grows a
            token. No answer depends on it.
    """

    def __init__(self, units: int) -> None:
        self.keys, self.held = np.empty(units, np.int16), np.empty(units, np.int16)
        self.found, self.scores = np.empty(units + 1, np.int64), np.empty(units, np.float32)
        self.known = np.array([[0, max(1.0, units / 4096), 0], [1, units / 16, 1]])
        self._ranks: dict[type, tuple[np.ndarray, np.ndarray]] = {}
        self._masks = np.empty((0, units), bool)

    def masks(self, tokens: int) -> np.ndarray:
        """Room for masks, bool ``[tokens, units]``."""
        if len(self._masks) < tokens:
            self._masks = np.empty((tokens, self._masks.shape[1]), bool)
        return self._masks[:tokens]

    def ranks(self, kind: type) -> tuple[np.ndarray, np.ndarray]:
        """Room for ranks, twice ``[units]`` of a type."""
        if kind not in self._ranks:
            self._ranks[kind] = np.empty(len(self.keys), kind), np.empty(len(self.keys), kind)
        return self._ranks[kind]


def top_k(values: np.ndarray, k: int) -> np.ndarray:
    """Masks of the `k` best scores of each token.

    Args:
        values: float32 ``[tokens, units]``, no NaN; or finite float16, of which the magnitudes are the scores.
        k: units of each mask, at least 1.

    Returns:
        bool ``[tokens, units]``.
    """
    units = values.shape[1]
    ones = np.ones(len(values), np.float32)
    return serve(values, ones, k, 0, "count", np.zeros(units, bool), np.zeros(units, np.int32), 0)[0]


def serve(
    values: np.ndarray, uncached: np.ndarray, k: int, capacity: int, update: RankUpdate, cached: np.ndarray,
    rank: np.ndarray, token: int, space: Workspace | None = None, before: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Decide the masks of some tokens, each after the one before it went through the cache.

    Args:
        values: float32 ``[tokens, units]``, no NaN: the score of what is cached; or finite float16, of which the
            magnitudes are the scores.
        uncached: float32 ``[tokens]``, from 0: times this it is the score of what is not; no NaN may come of it.
        k: units of each mask, at least 1.
        capacity: of the cache; 0: nothing is kept.
        update: of `rank`.
        cached: bool ``[units]``: what is in the cache; changed.
        rank: int32 ``[units]``, from -1: who stays; changed.
        token: number of the first of the tokens in its sequence.
        space: to work in; the masks lie in it.
        before: bool ``[tokens, units]``, for what was in the cache before each token.

    Returns:
        Masks, bool ``[tokens, units]``, and hits, int32 ``[tokens]``.
    """
    from hwsim.cache.compiled_loops import loop

    tokens, units = values.shape
    space = space or Workspace(units)
    masks, hits = space.masks(tokens), np.zeros(tokens, np.int32)
    whole, half = np.empty((0, 0), np.float32), np.empty((0, 0), np.int16)
    shown = _Shown(np.ascontiguousarray(values))
    if values.dtype == np.float16:
        half = np.asarray(shown).view(np.int16)
    else:
        whole = np.asarray(shown)
    kept = np.empty((0, units), np.uint8) if before is None else before.view(np.uint8)
    less = _short(rank, update, cached, token, tokens) if capacity and tokens >= _MANY else None
    used, idle = space.ranks(np.int32 if less is None else np.int16)
    less, top = -2 if less is None else less, _TOP[used.dtype]
    if capacity:
        near = rank - less
        np.minimum(near, top - 1, out=near)
        np.maximum(near, 1, out=used, casting="unsafe")
    loop(
        whole, half, uncached, min(k, units), capacity, _UPDATES[update], cached.view(np.uint8), used, token - less,
        masks.view(np.uint8), hits, kept, space.held, space.keys, space.found, space.scores, idle, space.known, top,
    )  # fmt: skip
    if capacity:
        np.add(used, less, out=rank, dtype=np.int32)
    return masks, hits


class _Shown:
    """The memory of an array, read-only or not, as one that may be written: numba would compile for both kinds, and
    finds its code for a read-only one a hundred times slower. Nobody writes there."""

    def __init__(self, array: np.ndarray) -> None:
        interface = array.__array_interface__
        self.array, self.__array_interface__ = array, interface | {"data": (interface["data"][0], False)}


def _short(rank: np.ndarray, update: RankUpdate, cached: np.ndarray, token: int, tokens: int) -> int | None:
    """What ranks must be less by for 16 bits to hold them, of which more are compared at a time; None: they are too far
    apart."""
    most = _TOP[np.dtype(np.int16)] - 1
    if tokens > most - 2:
        return None
    if update == "count":
        less = int(rank.min()) - 1
        return less if int(rank.max()) + tokens - less <= most else None
    less = token + tokens - most
    # who is not cached has no rank but the next one
    return less if int(np.where(cached, rank, less + 1).min()) > less else None

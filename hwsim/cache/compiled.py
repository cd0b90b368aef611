"""The scan of many tokens as one compiled loop: re-weighting, top-k, hits and cache update. Needs the extra numba.

Its results are bit-identical to those of `hwsim.util.kernels` and `hwsim.cache.cache` token by token; a test compares
both. It serves policies that give the scores of many tokens at once, and eviction rules with one rank for each unit.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from hwsim.evictions import RankUpdate

_UPDATES: dict[str, int] = {"last": 0, "count": 1, "first": 2}
_TOP = {np.dtype(np.int16): 2**15 - 1, np.dtype(np.int32): 2**31 - 1}
"""A value above all ranks, by dtype; ranks of units that can be in a cache begin at 1."""
_MANY = 8  # tokens from which on it pays to try ranks of 16 bits


@cache
def available() -> bool:
    """Whether numba can be imported; it may be missing, or refuse the installed version of numpy."""
    try:
        import numba  # noqa: F401
    except Exception:
        return False
    return True


class Workspace:
    """Memory that a scan of one group reuses for every block, because the system must clear new memory first.

    Args:
        units: units of the group.

    Attributes:
        known: start values of the two searches, learned from earlier tokens: a row for the mask and a row for the
            units that stay cached. Each row holds the limit (in the second row: how far it is behind the token's
            number), how many units share a value near it, and by how much it grows with each token. The results do not
            depend on it.
    """

    def __init__(self, units: int) -> None:
        self.keys, self.held = np.empty(units, np.int16), np.empty(units, np.int16)
        self.found, self.scores = np.empty(units + 1, np.int64), np.empty(units, np.float32)
        self.known = np.array([[0, max(1.0, units / 4096), 0], [1, units / 16, 1]])
        self._ranks: dict[type, tuple[np.ndarray, np.ndarray]] = {}
        self._masks = np.empty((0, units), bool)

    def masks(self, tokens: int) -> np.ndarray:
        """Memory for masks, bool ``[tokens, units]``."""
        if len(self._masks) < tokens:
            self._masks = np.empty((tokens, self._masks.shape[1]), bool)
        return self._masks[:tokens]

    def ranks(self, kind: type) -> tuple[np.ndarray, np.ndarray]:
        """Memory for ranks: two arrays ``[units]`` of a dtype."""
        if kind not in self._ranks:
            self._ranks[kind] = np.empty(len(self.keys), kind), np.empty(len(self.keys), kind)
        return self._ranks[kind]


def top_k(values: np.ndarray, k: int) -> np.ndarray:
    """Masks of the `k` best scores of each token.

    Args:
        values: float32 ``[tokens, units]`` without NaN; or finite float16, whose magnitudes are the scores.
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
    """Decide the masks of consecutive tokens and update the cache after each.

    Args:
        values: float32 ``[tokens, units]`` without NaN: scores of cached units; or finite float16, whose magnitudes are
            the scores.
        uncached: float32 ``[tokens]``, at least 0: factor on the scores of units that are not cached; the product must
            not be NaN.
        k: units of each mask, at least 1.
        capacity: units that the cache holds; 0: nothing is cached.
        update: how a token changes `rank`.
        cached: bool ``[units]``: cached units; changed in place.
        rank: int32 ``[units]``, at least -1: rank of each unit; changed in place.
        token: number of the first token in its sequence.
        space: working memory, which also holds the returned masks.
        before: bool ``[tokens, units]``: output, the cached units before each token.

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
    """The memory of an array as a writable array, although nothing writes to it.

    Otherwise numba would compile a second version for read-only arrays, whose lookup is a hundred times slower.
    """

    def __init__(self, array: np.ndarray) -> None:
        interface = array.__array_interface__
        self.array, self.__array_interface__ = array, interface | {"data": (interface["data"][0], False)}


def _short(rank: np.ndarray, update: RankUpdate, cached: np.ndarray, token: int, tokens: int) -> int | None:
    """The number to subtract from ranks so that 16 bits hold them; None if they are too far apart.

    With 16 bits, one instruction compares more ranks.
    """
    most = _TOP[np.dtype(np.int16)] - 1
    if tokens > most - 2:
        return None
    if update == "count":
        less = int(rank.min()) - 1
        return less if int(rank.max()) + tokens - less <= most else None
    less = token + tokens - most
    # units that are not cached get a new rank when they enter
    return less if int(np.where(cached, rank, less + 1).min()) > less else None

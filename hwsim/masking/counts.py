"""What tokens ask of caches: units, hits, and the bytes that they come to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hwsim.cache.cache import Cache
from hwsim.memory.groups import GroupPlan, Place, Plans


@dataclass(frozen=True)
class Counts:
    """What every decoded token asked of every cache.

    Attributes:
        requests: int32 ``[tokens, layers, slots]``: units asked for.
        hits: int32 ``[tokens, layers, slots]``: those that were in the cache.
        last_requests: uint8 ``[tokens, layers, slots]``: whether the last unit of the group, which may be smaller than
            the others, was among those asked for; None where all units of each group have the same size.
        last_hits: the same of the hits.
    """

    requests: np.ndarray
    hits: np.ndarray
    last_requests: np.ndarray | None = None
    last_hits: np.ndarray | None = None

    @classmethod
    def none(cls, tokens: int, plans: Plans) -> Counts:
        """Nothing asked for yet."""
        shape = (tokens, plans.layers, plans.slots)
        short = any(plan.short for plan in plans)
        last_requests, last_hits = (np.zeros(shape, np.uint8) if short else None for _ in range(2))
        return cls(np.zeros(shape, np.int32), np.zeros(shape, np.int32), last_requests, last_hits)

    @classmethod
    def joined(cls, parts: list[Counts]) -> Counts:
        """One after the other."""
        requests, hits = ([getattr(part, name) for part in parts] for name in ("requests", "hits"))
        last_requests = [part.last_requests for part in parts if part.last_requests is not None]
        last_hits = [part.last_hits for part in parts if part.last_hits is not None]
        last = [np.concatenate(arrays) if arrays else None for arrays in (last_requests, last_hits)]
        return cls(np.concatenate(requests), np.concatenate(hits), *last)

    @property
    def tokens(self) -> int:
        """Decoded tokens."""
        return len(self.requests)

    def part(self, rows: slice) -> Counts:
        """That of some tokens in a row; it shares memory with the whole."""
        last = [None if array is None else array[rows] for array in (self.last_requests, self.last_hits)]
        return Counts(self.requests[rows], self.hits[rows], *last)

    def put(self, place: Place, token: int, served: Served) -> None:
        """Write down what the decoded token `token`, and those after it, asked of one cache."""
        at = slice(token, token + len(served.masks)), place.layer, place.slot
        self.requests[at], self.hits[at] = served.requests, served.hits
        if self.last_requests is not None and self.last_hits is not None:
            self.last_requests[at], self.last_hits[at] = served.last_requested, served.last_hit

    def hit_bytes(self, plans: Plans) -> np.ndarray:
        """Bytes that were in the caches: int64 ``[tokens, layers, slots]``."""
        return self._bytes(self.hits, self.last_hits, plans)

    def miss_bytes(self, plans: Plans) -> np.ndarray:
        """Bytes that were not: int64 ``[tokens, layers, slots]``."""
        return self._bytes(self.requests - self.hits, self.last_misses, plans)

    def indices(self, plans: Plans) -> np.ndarray:
        """Indices of the groups' axes that were asked for: int64 ``[tokens, layers, slots]``."""
        block, short = plans.table(lambda plan: plan.block), plans.table(lambda plan: plan.short)
        return _weighed(self.requests, self.last_requests, block, short)

    @property
    def misses(self) -> np.ndarray:
        """Units asked for that were not there: int64 ``[tokens, layers, slots]``."""
        return (self.requests - self.hits).astype(np.int64)

    @property
    def last_misses(self) -> np.ndarray | None:
        """Whether the last unit was asked for and was not there: uint8 ``[tokens, layers, slots]``."""
        if self.last_requests is None or self.last_hits is None:
            return None
        return self.last_requests - self.last_hits

    @staticmethod
    def _bytes(units: np.ndarray, last: np.ndarray | None, plans: Plans) -> np.ndarray:
        less = plans.table(lambda plan: plan.unit_bytes - plan.last_bytes if plan.short else 0)
        return _weighed(units, last, plans.table(lambda plan: plan.unit_bytes), less)


class Served(NamedTuple):
    """What one token, or several in a row, asked of one cache.

    Attributes:
        masks: bool ``[tokens, indices]``: what they need, valid until the next ones.
        requests: units that each asks for, or all of them alike.
        hits: of each: those that were cached.
        last_requested: whether the group's last unit, where it is smaller than the others, is asked for.
        last_hit: whether it was cached, too.
        before: bool ``[tokens, units]``: what was cached before each; None: no observer wants to know.
        blocks: bool ``[tokens, units]``: the masks in units, where these are blocks of indices.
    """

    masks: np.ndarray
    requests: np.ndarray | int
    hits: np.ndarray | int
    last_requested: bool = False
    last_hit: bool = False
    before: np.ndarray | None = None
    blocks: np.ndarray | None = None

    @property
    def units(self) -> np.ndarray:
        """The masks in units: bool ``[tokens, units]``."""
        return self.masks if self.blocks is None else self.blocks


def _weighed(counts: np.ndarray, last: np.ndarray | None, unit: np.ndarray, less: np.ndarray) -> np.ndarray:
    """Counts of units times what a unit weighs, int64 ``[layers, slots]``; the last one weighs less."""
    weight = counts * unit
    return weight if last is None else weight - last * less


def serve(cache: Cache, plan: GroupPlan, mask: np.ndarray) -> Served:
    """Let one mask of units, bool ``[units]``, go through a cache."""
    before = cache.view.copy()
    requests, hits = cache.step(mask)
    last = plan.short > 0 and bool(mask[-1])
    return Served(mask[None], requests, hits, last, last and bool(before[-1]), before[None])

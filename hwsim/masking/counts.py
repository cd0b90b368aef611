"""What tokens ask of caches: units, hits, and the bytes that they come to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hwsim.cache.cache import Cache
from hwsim.masking.observers import Seen, Watching
from hwsim.memory.placement import GroupPlan


@dataclass(frozen=True)
class Demand:
    """What every decoded token asked of every cache.

    Attributes:
        requests: int32 ``[tokens, layers, groups]``: units asked for.
        hits: int32 ``[tokens, layers, groups]``: those that were in the cache.
        last_requests: uint8 ``[tokens, layers, groups]``: whether the last unit of the group, which may be smaller than
            the others, was among those asked for; None where all units of each group have the same size.
        last_hits: the same of the hits.
        seen: what else was looked at; None: nothing.
    """

    requests: np.ndarray
    hits: np.ndarray
    last_requests: np.ndarray | None = None
    last_hits: np.ndarray | None = None
    seen: Seen | None = None

    @classmethod
    def none(cls, tokens: int, layers: int, plans: tuple[GroupPlan, ...], watching: Watching | None = None) -> Demand:
        """Nothing asked for yet."""
        shape = (tokens, layers, len(plans))
        short = any(plan.short for plan in plans)
        last, last_hits = (np.zeros(shape, np.uint8) if short else None for _ in range(2))
        seen = Seen.nothing(tokens, layers, plans, watching) if watching and plans else None
        return cls(np.zeros(shape, np.int32), np.zeros(shape, np.int32), last, last_hits, seen)

    @classmethod
    def joined(cls, parts: list[Demand]) -> Demand:
        """One after the other."""
        requests, hits = ([getattr(part, name) for part in parts] for name in ("requests", "hits"))
        last_requests = [part.last_requests for part in parts if part.last_requests is not None]
        last_hits = [part.last_hits for part in parts if part.last_hits is not None]
        last, found = (np.concatenate(each) if each else None for each in (last_requests, last_hits))
        return cls(np.concatenate(requests), np.concatenate(hits), last, found)

    def part(self, rows: slice) -> Demand:
        """That of some tokens in a row; it shares memory with the whole."""
        last, found = (None if each is None else each[rows] for each in (self.last_requests, self.last_hits))
        seen = None if self.seen is None else self.seen.part(rows)
        return Demand(self.requests[rows], self.hits[rows], last, found, seen)

    def put(self, row: int, layer: int, index: int, served: Served) -> None:
        """Write down what the token `row`, and those after it, asked of one cache."""
        rows = slice(row, row + len(served.masks))
        self.requests[rows, layer, index], self.hits[rows, layer, index] = served.requests, served.hits
        if self.last_requests is not None and self.last_hits is not None:
            self.last_requests[rows, layer, index] = served.last_requested
            self.last_hits[rows, layer, index] = served.last_hit
        if self.seen is not None:
            assert served.before is not None
            self.seen.see(row, layer, index, served.masks if served.asked is None else served.asked, served.before)

    def hit_bytes(self, plans: tuple[GroupPlan, ...]) -> np.ndarray:
        """Bytes that were in the caches: int64 ``[tokens, layers, groups]``."""
        less = [plan.unit_bytes - plan.last_bytes if plan.short else 0 for plan in plans]
        return _weighed(self.hits, self.last_hits, [plan.unit_bytes for plan in plans], less)

    def miss_bytes(self, plans: tuple[GroupPlan, ...]) -> np.ndarray:
        """Bytes that were not: int64 ``[tokens, layers, groups]``."""
        less = [plan.unit_bytes - plan.last_bytes if plan.short else 0 for plan in plans]
        units = [plan.unit_bytes for plan in plans]
        return _weighed(self.requests - self.hits, self.last_misses, units, less)

    def indices(self, plans: tuple[GroupPlan, ...]) -> np.ndarray:
        """Indices of the groups' axes that were asked for: int64 ``[tokens, layers, groups]``."""
        return _weighed(
            self.requests, self.last_requests, [plan.block for plan in plans], [plan.short for plan in plans]
        )

    @property
    def last_misses(self) -> np.ndarray | None:
        """Whether the last unit was asked for and was not there: uint8 ``[tokens, layers, groups]``."""
        if self.last_requests is None or self.last_hits is None:
            return None
        return self.last_requests - self.last_hits


class Served(NamedTuple):
    """What one token, or several in a row, asked of one cache.

    Attributes:
        masks: bool ``[tokens, units]``, or of indices: what they need, valid until the next ones.
        requests: units that each asks for, or all of them alike.
        hits: of each: those that were cached.
        last_requested: whether the group's last unit, where it is smaller than the others, is asked for.
        last_hit: whether it was cached, too.
        before: bool ``[tokens, units]``: what was cached before each; None: nobody wanted to know.
        asked: bool ``[tokens, units]``: the masks in units, where `masks` are of indices.
    """

    masks: np.ndarray
    requests: np.ndarray | int
    hits: np.ndarray | int
    last_requested: bool = False
    last_hit: bool = False
    before: np.ndarray | None = None
    asked: np.ndarray | None = None


def _weighed(counts: np.ndarray, last: np.ndarray | None, unit: list[int], less: list[int]) -> np.ndarray:
    """Counts of units times what a unit weighs; the last one weighs less."""
    weight = counts * np.array(unit, np.int64)
    return weight if last is None else weight - last * np.array(less, np.int64)


def serve(cache: Cache, plan: GroupPlan, mask: np.ndarray) -> Served:
    """Let one mask of units, bool ``[units]``, go through a cache."""
    short = plan.short > 0
    before = cache.view.copy()
    requests, hits = cache.step(mask)
    last = short and bool(mask[-1])
    return Served(mask[None], requests, hits, last, last and bool(before[-1]), before[None])

"""Counts of units that tokens request from caches, of their hits, and of their bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hwsim.cache.cache import Cache
from hwsim.cache.experts import ExpertPart
from hwsim.memory.groups import GroupPlan, Place, Plans


@dataclass(frozen=True)
class Counts:
    """Requests and hits of every decoded token in every cache.

    Where a step has several members, the first axis are the steps, and a unit counts once in each.

    Attributes:
        requests: int32 ``[tokens, layers, slots]``: units requested.
        hits: int32 ``[tokens, layers, slots]``: requested units that were cached.
        last_requests: uint8 ``[tokens, layers, slots]``: whether the last unit of the group, which may be smaller than
            the others, was requested; None if all units of each group have the same size.
        last_hits: the same for the hits.
        used: int64 ``[steps, layers, slots]``: units requested, summed over the members of each step; None: each step
            has one member.
        last_used: int64 ``[steps, layers, slots]``: members that requested the last unit, if `last_requests` is given.
        prompt: the counts of the prompts' steps, if prompts went through the caches.
    """

    requests: np.ndarray
    hits: np.ndarray
    last_requests: np.ndarray | None = None
    last_hits: np.ndarray | None = None
    used: np.ndarray | None = None
    last_used: np.ndarray | None = None
    prompt: Counts | None = None

    @classmethod
    def none(cls, tokens: int, plans: Plans) -> Counts:
        """Counts without any request."""
        shape = (tokens, plans.layers, plans.slots)
        short = any(plan.short for plan in plans)
        last_requests, last_hits = (np.zeros(shape, np.uint8) if short else None for _ in range(2))
        return cls(np.zeros(shape, np.int32), np.zeros(shape, np.int32), last_requests, last_hits)

    @classmethod
    def joined(cls, parts: list[Counts]) -> Counts:
        """Concatenate counts along the tokens."""

        def joined(name: str) -> np.ndarray | None:
            arrays = [array for part in parts if (array := getattr(part, name)) is not None]
            return np.concatenate(arrays) if arrays else None

        requests, hits = (np.concatenate([getattr(part, name) for part in parts]) for name in ("requests", "hits"))
        prompts = [part.prompt for part in parts if part.prompt is not None]
        prompt = cls.joined(prompts) if prompts else None
        return cls(
            requests, hits, joined("last_requests"), joined("last_hits"), joined("used"), joined("last_used"), prompt
        )  # fmt: skip

    @property
    def tokens(self) -> int:
        """Decoded tokens."""
        return len(self.requests)

    def part(self, rows: slice | np.ndarray) -> Counts:
        """The counts of some tokens; those of consecutive ones (a slice) share memory with the whole."""
        return Counts(
            self.requests[rows], self.hits[rows], _at(self.last_requests, rows), _at(self.last_hits, rows),
            _at(self.used, rows), _at(self.last_used, rows),
        )  # fmt: skip

    def put(self, place: Place, token: int, served: Served) -> None:
        """Enter the counts of one cache for the decoded tokens from `token` on."""
        at = slice(token, token + len(served.masks)), place.layer, place.slot
        self.requests[at], self.hits[at] = served.requests, served.hits
        if self.last_requests is not None and self.last_hits is not None:
            self.last_requests[at], self.last_hits[at] = served.last_requested, served.last_hit

    def hit_bytes(self, plans: Plans) -> np.ndarray:
        """Bytes of the hits: int64 ``[tokens, layers, slots]``."""
        return self._bytes(self.hits, self.last_hits, plans)

    def miss_bytes(self, plans: Plans) -> np.ndarray:
        """Bytes of the misses: int64 ``[tokens, layers, slots]``."""
        return self._bytes(self.requests - self.hits, self.last_misses, plans)

    def indices(self, plans: Plans) -> np.ndarray:
        """Requested indices of the groups' axes, by every member of a step: int64 ``[tokens, layers, slots]``."""
        block, short = plans.table(lambda plan: plan.block), plans.table(lambda plan: plan.short)
        units, last = (self.requests, self.last_requests) if self.used is None else (self.used, self.last_used)
        return _weighed(units, last, block, short)

    @property
    def misses(self) -> np.ndarray:
        """Requested units that were not cached: int64 ``[tokens, layers, slots]``."""
        return (self.requests - self.hits).astype(np.int64)

    @property
    def last_misses(self) -> np.ndarray | None:
        """Whether the last unit was requested and not cached: uint8 ``[tokens, layers, slots]``, or None."""
        if self.last_requests is None or self.last_hits is None:
            return None
        return self.last_requests - self.last_hits

    @staticmethod
    def _bytes(units: np.ndarray, last: np.ndarray | None, plans: Plans) -> np.ndarray:
        less = plans.table(lambda plan: plan.unit_bytes - plan.last_bytes if plan.short else 0)
        return _weighed(units, last, plans.table(lambda plan: plan.unit_bytes), less)


class Served(NamedTuple):
    """Requests of one token or of consecutive tokens to one cache.

    Attributes:
        masks: bool ``[tokens, indices]``: the masks, valid until the next ones.
        requests: requested units of each token, or one number for all.
        hits: requested units of each token that were cached.
        last_requested: whether the group's last unit, if it is smaller than the others, was requested.
        last_hit: whether it was also cached.
        before: bool ``[tokens, units]``: cached units before each token; None if no observer needs them.
        blocks: bool ``[tokens, units]``: the masks in units, if units are blocks of indices.
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


def _at(array: np.ndarray | None, rows: slice | np.ndarray) -> np.ndarray | None:
    return None if array is None else array[rows]


def _weighed(counts: np.ndarray, last: np.ndarray | None, unit: np.ndarray, less: np.ndarray) -> np.ndarray:
    """Counts times the weight of a unit, int64 ``[layers, slots]``; the last unit weighs `less` less."""
    weight = counts * unit
    return weight if last is None else weight - last * less


def serve(cache: Cache, plan: GroupPlan, mask: np.ndarray, order: np.ndarray | None = None) -> Served:
    """Serve one mask of units, bool ``[units]``, from a cache.

    Args:
        cache: of the group.
        plan: the group.
        mask: bool ``[units]``.
        order: int64, the model's own choice of experts by falling rank, for a cache of experts.
    """
    before = cache.view.copy()
    requests, hits = cache.step(mask) if not isinstance(cache, ExpertPart) else cache.step(mask, order)
    last = plan.short > 0 and bool(mask[-1])
    return Served(mask[None], requests, hits, last, last and bool(before[-1]), before[None])


def mask_of(units: np.ndarray, plan: GroupPlan) -> np.ndarray:
    """The mask of some units, bool ``[units]``: given as a mask, or for experts by their numbers, int64."""
    if not plan.routed:
        return units
    mask = np.zeros(plan.units, bool)
    mask[units] = True
    return mask


def serve_units(cache: Cache, plan: GroupPlan, units: np.ndarray) -> Served:
    """Serve what a step needs from a cache.

    Args:
        cache: of the group.
        plan: the group.
        units: experts in the order of their use, int64, each once; of other groups the mask, bool ``[units]``.
    """
    return serve(cache, plan, mask_of(units, plan), units if plan.routed else None)

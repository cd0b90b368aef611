"""Reads of Flash for the misses of a group: neighbours are merged, holes read through, pages read whole.

The units of a group lie in Flash in the order of its axis, or of a layout, each matrix on its own; a bundle keeps all
slices of a unit together. Reads and bytes are counted exactly, token by token; `hwsim.device` computes their time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hwsim.device.flash_times import FlashTimes, holes
from hwsim.device.profile import Flash
from hwsim.errors import SettingError
from hwsim.masking.counts import Served
from hwsim.masking.observers import Observer
from hwsim.memory.groups import GroupPlan, Place, Plans

_TOGETHER = 16  # consecutive tokens whose reads are counted at once: with fewer, the cost of calls dominates


@dataclass(frozen=True)
class ReadSetup:
    """How units lie in Flash, and how they are read.

    Attributes:
        bundle: whether all slices of a unit lie in one piece and are one read.
        packed: whether units lie side by side without gaps, so that a read may touch pages of its neighbours; otherwise
            each slice begins at a page of its own.
        merge: bytes of the largest read that merges neighbours; None: each unit is read on its own.
        gap: bytes of the largest hole that is read through; None: the fastest for Flash, batch by batch.

    Raises:
        SettingError: `gap` without `merge`, or a number out of bounds.
    """

    bundle: bool = False
    packed: bool = False
    merge: int | None = None
    gap: int | None = 0

    def __post_init__(self) -> None:
        """Refuse settings that are checked nowhere else."""
        if self.merge is not None and self.merge < 1:
            raise SettingError(f"--merge {self.merge}: must be bytes of the largest read, such as 256KiB")
        if self.merge is None and self.gap != 0:
            raise SettingError("--gap: holes are read through where neighbours are merged; give --merge, too")

    @property
    def plain(self) -> bool:
        """Whether each unit is read on its own, so that counts of units are enough."""
        return self.merge is None and not self.packed

    def slices(self, plan: GroupPlan) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Bytes of the pieces in which a unit lies in Flash, and of the pieces of the last unit."""
        if self.bundle:
            return (plan.unit_bytes,), (plan.last_bytes,)
        return plan.slice_bytes, plan.last_slice_bytes


class Reader:
    """Counts the reads of one group.

    Args:
        plan: the group.
        setup: how its units lie in Flash.
        page: bytes of a page of Flash.
        gaps: bytes of the largest hole that is read through. If there are several, each token takes the fastest; ties
            are broken by the smallest.
        times: times of Flash, which decide what is fastest.
    """

    def __init__(
        self, plan: GroupPlan, setup: ReadSetup, page: int, gaps: Sequence[int] = (0,), times: FlashTimes | None = None
    ) -> None:
        self._plan, self._page = plan, page
        self._slices, self._last = setup.slices(plan)
        self._strides = [size if setup.packed else -(-size // page) * page for size in self._slices]
        largest = max(self._strides)
        self._most = 1 if setup.merge is None else max(1, setup.merge // largest)
        # packed reads with less than a page between them touch the same or neighbouring pages: one read costs less
        least = page - 1 if setup.packed else 0
        holes = [0 if setup.merge is None else max(gap, least) // largest for gap in gaps]
        self._gaps, self._times = sorted(set(holes)), times

    def places(self, misses: np.ndarray) -> np.ndarray:
        """The misses in the order in which units lie in Flash: bool ``[tokens, units]``."""
        plan = self._plan
        return (
            misses if plan.order is None or plan.block > 1 else misses[:, plan.order]
        )  # blocks already have this order

    def runs(self, misses: np.ndarray, gap: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The reads of misses, bool ``[tokens, units]`` as they lie in Flash.

        Misses whose holes are small enough form a chain. From its first unit on, a chain is cut into pieces of as many
        units as a read may have, and each piece is read from its first miss to its last.

        Args:
            misses: bool ``[tokens, units]``.
            gap: largest hole in units; None: the smallest of those that are tried.

        Returns:
            Token, first unit and last unit of each read, int64 ``[reads]`` each.
        """
        gap = self._gaps[0] if gap is None else gap
        token, unit = np.nonzero(misses)
        if not len(unit):
            return token, unit, unit
        begins = np.ones(len(unit), bool)
        begins[1:] = (np.diff(token) != 0) | (np.diff(unit) > gap + 1)
        chain = np.cumsum(begins) - 1
        piece = (unit - unit[begins][chain]) // self._most
        begins[1:] |= np.diff(piece) != 0
        first = np.flatnonzero(begins)
        last = np.append(first[1:], len(unit)) - 1
        return token[first], unit[first], unit[last]

    def count(self, misses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Number and bytes (whole pages) of the reads of misses, bool ``[tokens, units]``: int64 ``[tokens]`` each."""
        lying = self.places(misses)
        if self._times is None or len(self._gaps) == 1:
            return self._count(lying, self._gaps[0])
        # all gaps in one call, because with few tokens the cost of calls dominates
        counts = [self._count(lying, gap) for gap in self._gaps]
        reads, size = (np.stack(column) for column in zip(*counts, strict=True))
        best, token = self._times.alike(reads, size).argmin(axis=0), np.arange(len(lying))
        return reads[best, token], size[best, token]

    def _count(self, lying: np.ndarray, gap: int) -> tuple[np.ndarray, np.ndarray]:
        token, first, last = self.runs(lying, gap)
        size = np.zeros(len(token), np.int64)
        for stride, whole, short in zip(self._strides, self._slices, self._last, strict=True):
            ends = last * stride + np.where(last == self._plan.units - 1, short, whole)
            size += -(-ends // self._page) * self._page - first * stride // self._page * self._page
        tokens = len(lying)
        reads = np.bincount(token, minlength=tokens) * len(self._slices)
        return reads, np.bincount(token, size, tokens).astype(np.int64)


class ReadCounts(Observer):
    """Counts the Flash reads of a run whose units are not read one by one.

    Attributes:
        reads: int64 ``[tokens, layers, slots]``: number of reads.
        size: int64 ``[tokens, layers, slots]``: bytes of the reads, in whole pages.

    Args:
        tokens: decoded tokens of the run.
        plans: the groups.
        setup: how units lie in Flash and are read.
        flash: Flash of the device.
        sparse: bytes of all matrices that masks cut, over which reads spread.
    """

    sees_cache: ClassVar[bool] = True
    any_order: ClassVar[bool] = True

    def __init__(self, tokens: int, plans: Plans, setup: ReadSetup, flash: Flash, sparse: int) -> None:
        shape = (tokens, plans.layers, plans.slots)
        self._reads, self._size = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        gaps, times = holes(flash) if setup.gap is None else [setup.gap], FlashTimes(flash, sparse)
        self._readers = {
            (place.layer, place.slot): Reader(place.plan, setup, flash.page_size or 1, gaps, times)
            for place in plans.places()
        }
        self._waiting: dict[tuple[int, int], tuple[int, list[np.ndarray]]] = {}  # first token, misses

    @property
    def reads(self) -> np.ndarray:
        """Number of reads."""
        self._count_all()
        return self._reads

    @property
    def size(self) -> np.ndarray:
        """Bytes of the reads."""
        self._count_all()
        return self._size

    def masks(self, place: Place, token: int, served: Served) -> None:
        """Called when one cache has served consecutive tokens."""
        assert served.before is not None
        misses, key = served.units & ~served.before, (place.layer, place.slot)
        first, waiting = self._waiting.get(key, (token, []))
        if token != first + sum(map(len, waiting)):  # not consecutive: count the waiting block first
            self._count(*key)
            first, waiting = token, []
        waiting.append(misses)
        self._waiting[key] = first, waiting
        if token + len(misses) - first >= _TOGETHER:
            self._count(*key)

    def _count(self, layer: int, slot: int) -> None:
        first, waiting = self._waiting.pop((layer, slot))
        misses = np.concatenate(waiting)
        at = slice(first, first + len(misses)), layer, slot
        self._reads[at], self._size[at] = self._readers[layer, slot].count(misses)

    def _count_all(self) -> None:
        for key in list(self._waiting):
            self._count(*key)

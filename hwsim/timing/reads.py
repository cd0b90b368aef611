"""Which reads of Flash the misses of a group become: neighbours in one, holes read through, whole pages.

The units of a group lie in Flash in the order of its axis, or of a layout, each matrix on its own; a bundle keeps all
slices of a unit together. What is read is counted exactly, token by token; how long it takes is another matter
(`hwsim.devices`).
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

_TOGETHER = 16  # tokens in a row whose reads are counted at once: of few, the cost of counting would be that of calls


@dataclass(frozen=True)
class ReadSetup:
    """How units lie in Flash, and how they are read.

    Attributes:
        bundle: all slices of a unit lie in one piece and are one read.
        packed: units lie side by side without gaps, so that a read touches the pages of its neighbours, too; else each
            slice begins at a page of its own.
        merge: bytes of the largest read that neighbours are put together to; None: each is read on its own.
        gap: bytes of the largest hole that is read through; None: whatever takes Flash least, batch by batch.

    Raises:
        SettingError: holes without merging, or a number out of bounds.
    """

    bundle: bool = False
    packed: bool = False
    merge: int | None = None
    gap: int | None = 0

    def __post_init__(self) -> None:
        """Refuse what nothing else would notice."""
        if self.merge is not None and self.merge < 1:
            raise SettingError(f"--merge {self.merge}: must be bytes of the largest read, such as 256KiB")
        if self.merge is None and self.gap != 0:
            raise SettingError("--gap: holes are read through where neighbours are merged; give --merge, too")

    @property
    def plain(self) -> bool:
        """Whether each unit is read on its own, so that counts of units are all that must be known."""
        return self.merge is None and not self.packed

    def slices(self, plan: GroupPlan) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Bytes of the pieces in which a unit lies in Flash, and in which the last one does."""
        if self.bundle:
            return (plan.unit_bytes,), (plan.last_bytes,)
        return plan.slice_bytes, plan.last_slice_bytes


class Reader:
    """Counts the reads of one group.

    Args:
        plan: the group.
        setup: how its units lie.
        page: bytes of a page of Flash.
        gaps: bytes of the largest hole that is read through; of several, each token's misses take the one that is
            fastest, the smallest among equals.
        times: of Flash, which says what is fastest.
    """

    def __init__(
        self, plan: GroupPlan, setup: ReadSetup, page: int, gaps: Sequence[int] = (0,), times: FlashTimes | None = None
    ) -> None:
        self._plan, self._page = plan, page
        self._slices, self._last = setup.slices(plan)
        self._strides = [size if setup.packed else -(-size // page) * page for size in self._slices]
        largest = max(self._strides)
        self._most = 1 if setup.merge is None else max(1, setup.merge // largest)
        # packed reads with less than a page between them touch the same page, or neighbours: as one they cost less
        least = page - 1 if setup.packed else 0
        holes = [0 if setup.merge is None else max(gap, least) // largest for gap in gaps]
        self._gaps, self._times = sorted(set(holes)), times

    def places(self, misses: np.ndarray) -> np.ndarray:
        """Misses of units in the order in which they lie in Flash: bool ``[tokens, units]``."""
        plan = self._plan
        return misses if plan.order is None or plan.block > 1 else misses[:, plan.order]  # blocks are in that order

    def runs(self, misses: np.ndarray, gap: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Reads of misses, bool ``[tokens, units]`` as they lie: token, first and last unit of each, int64.

        `gap` is the largest hole, in units; None: the smallest that is tried. Misses whose holes are small enough make
        a chain; from its first unit on it is cut into pieces of so many units as a read may have, and each is read from
        its first miss to its last.
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
        """Reads and bytes, in whole pages, of misses, bool ``[tokens, units]``: int64 ``[tokens]`` each."""
        lying = self.places(misses)
        if self._times is None or len(self._gaps) == 1:
            return self._count(lying, self._gaps[0])
        # all sizes in one question: of few tokens, the cost of a call would count
        tried = [self._count(lying, gap) for gap in self._gaps]
        reads, size = (np.stack(column) for column in zip(*tried, strict=True))
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
    """Counts the reads of Flash of a run whose units are not read one by one.

    Attributes:
        reads: int64 ``[tokens, layers, slots]``: how many.
        size: int64 ``[tokens, layers, slots]``: their bytes, in whole pages.

    Args:
        tokens: decoded tokens of the run.
        plans: the groups.
        setup: how their units lie, and are read.
        flash: of the device.
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
        """How many reads."""
        self._count_all()
        return self._reads

    @property
    def size(self) -> np.ndarray:
        """Bytes of the reads."""
        self._count_all()
        return self._size

    def masks(self, place: Place, token: int, served: Served) -> None:
        """Some tokens in a row asked one cache."""
        assert served.before is not None
        misses, key = served.units & ~served.before, (place.layer, place.slot)
        first, waiting = self._waiting.get(key, (token, []))
        if token != first + sum(map(len, waiting)):  # elsewhere: what waits is a block of its own
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

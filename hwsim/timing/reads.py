"""Which reads of Flash the misses of a group become: neighbours in one, holes read through, whole pages.

The units of a group lie in Flash in the order of its axis, or of a layout, each matrix on its own; a bundle keeps all
slices of a unit together. What is read is counted exactly, token by token; how long it takes is another matter
(`hwsim.devices`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hwsim.device.flash_times import FlashTimes
from hwsim.errors import SettingError
from hwsim.memory.groups import GroupPlan
from hwsim.memory.neuron_order import AXIS


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

    def places(self, misses: np.ndarray, layer: int) -> np.ndarray:
        """Misses of units in the order in which they lie in Flash: bool ``[tokens, units]``."""
        plan = self._plan
        if plan.layout is None or plan.block > 1 or plan.group.axis != AXIS:
            return misses  # blocks are in that order already
        return misses[:, plan.layout.orders[layer]]

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

    def count(self, misses: np.ndarray, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Reads and bytes, in whole pages, of misses, bool ``[tokens, units]``: int64 ``[tokens]`` each."""
        lying = self.places(misses, layer)
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

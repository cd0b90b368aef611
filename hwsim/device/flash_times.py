"""How long Flash takes for a batch of reads: the misses of one group in one token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from hwsim.device.profile import Flash

Reads = tuple[Any, Any]
"""How many reads, and bytes of each: numbers or arrays of one shape."""


class FlashTimes:
    """Seconds of batches of reads, many batches at once.

    A batch begins at once and is waited for as a whole. Of n reads with d outstanding at most all but the last 1 to d
    go at the rate of depth d. Those last ones take a request's time beside the others and then, one after the other,
    their times in the server: the last is done when all have been served. A simulation of each request agrees within
    some percent. Where the rate is flat, a batch takes the latency once, or once for each d reads, and then its bytes.

    Args:
        flash: the profile's section.
        span: bytes that the reads are scattered over.
    """

    def __init__(self, flash: Flash, span: float = 0.0) -> None:
        self._flash = flash
        self._share = flash.spread.share(span) if flash.spread and span else 1.0

    def seconds(self, parts: Sequence[Reads]) -> Any:
        """Of batches whose reads are of several sizes, each a part: float64, of the shape of the parts' numbers."""
        flash = self._flash
        counts = [np.asarray(count, float) for count, _ in parts]
        total = np.sum(counts, axis=0)
        size = np.sum([count * np.asarray(each, float) for count, (_, each) in zip(counts, parts, strict=True)], axis=0)
        if not flash.by_request:
            latency, depth = flash.latency or 0.0, flash.queue_depth
            rounds = np.ceil(total / depth) if depth else np.minimum(total, 1.0)
            return np.where(total > 0, np.maximum(latency + size / flash.read_bandwidth, rounds * latency), 0.0)
        depth = flash.queue_depth or 1
        last = np.mod(total - 1, depth) + 1
        full = alone = served = np.zeros(total.shape)
        for count, (_, size) in zip(counts, parts, strict=True):
            asked = np.maximum(np.asarray(size, float), 1.0)  # of a batch without reads it is 0
            slower = np.ones(asked.shape)
            if flash.spread and self._share < 1:
                slower = np.where(asked <= flash.spread.below, 1 / self._share, 1.0)
            beside, after = flash.times(asked)
            full = full + count * slower * asked / flash.bandwidth(asked, depth)
            alone, served = alone + count * slower * beside, served + count * slower * after
        share = np.divide(last, total, out=np.zeros_like(total), where=total > 0)
        mean = np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)
        return np.where(total > 0, full * (1.0 - share) + alone * mean + served * share, 0.0)

    def alike(self, count: np.ndarray, size: np.ndarray) -> Any:
        """Of batches of so many reads and bytes in all, float64 of their shape: each read is of their mean size."""
        return self.seconds([(count, np.divide(size, count, out=np.zeros(count.shape), where=count > 0))])


def read_sizes(flash: Flash, slice_bytes: tuple[int, ...]) -> list[int]:
    """Bytes that Flash reads for slices of the given bytes: each is rounded up to whole pages."""
    page = flash.page_size or 1
    return [-(-size // page) * page for size in slice_bytes]


def flash_seconds(flash: Flash) -> Callable[..., float]:
    """How long Flash takes to read `count` units whose slices have the given bytes; each slice is a read of its own.

    A read is rounded up to whole pages. Where one of the units has smaller slices, they are the third argument.
    """
    times = FlashTimes(flash)

    @cache
    def seconds(count: int, slice_bytes: tuple[int, ...], last: tuple[int, ...] = ()) -> float:
        if count == 0:
            return 0.0
        full = count - 1 if last else count
        reads = [(full, size) for size in read_sizes(flash, slice_bytes)]
        return float(times.seconds(reads + [(1, size) for size in read_sizes(flash, last)]))

    return seconds


def stream_seconds(flash: Flash, size: float) -> float:
    """How long Flash takes to read `size` bytes in one piece: reads of the best size, as deep a queue as it has."""
    if size == 0:
        return 0.0
    return (0.0 if flash.by_request else flash.latency or 0.0) + size / flash.best()


def holes(flash: Flash) -> list[int]:
    """Sizes of holes that may be worth reading through, bytes: none, 1, 2, 4, ... pages, and the largest.

    The largest takes as long at the best rate as one more read of the smallest size. A longer one never pays; whether a
    shorter one does depends on how large the reads become by it, so on the batch.
    """
    if flash.by_request:
        smallest = min(flash.table.read) if flash.table else 1
        depth = flash.queue_depth or 1
        largest = int(smallest / float(flash.bandwidth(smallest, depth)) * flash.best())
    elif flash.latency and flash.queue_depth:
        largest = int(flash.latency / flash.queue_depth * flash.read_bandwidth)
    else:
        largest = 0
    step, found = flash.page_size or 4096, [0]
    while step < largest:
        found.append(step)
        step *= 2
    return [*found, largest] if largest else found

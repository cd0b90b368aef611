"""Times of Flash for batches of reads; a batch is the misses of one group in one token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from hwsim.device.profile import Flash

Reads = tuple[Any, Any]
"""Number of reads, and bytes of each: numbers or arrays of one shape."""


class FlashTimes:
    """Seconds of batches of reads, for many batches at once.

    A batch is issued at once and ends with its last read. Take n reads of which at most d are outstanding:

    - All but the last 1 to d reads run at the rate of depth d.
    - The last ones take a request's time in parallel with others once and then, one after the other, their times in the
      server. The batch ends when the server has finished all of them.
    - If the rate is flat, a batch takes the latency once and then the time of its bytes, but at least the latency for
      each d reads.

    A simulation of every request agrees within some percent.

    Args:
        flash: the profile's section.
        span: bytes that the reads are scattered over.
    """

    def __init__(self, flash: Flash, span: float = 0.0) -> None:
        self._flash = flash
        self._share = flash.spread.share(span) if flash.spread and span else 1.0

    def seconds(self, parts: Sequence[Reads]) -> Any:
        """Seconds of batches whose reads have several sizes; each size is a part: float64 of the parts' shape."""
        flash = self._flash
        counts = [np.asarray(count, float) for count, _ in parts]
        total = np.sum(counts, axis=0)
        size = np.sum(
            [count * np.asarray(read_size, float) for count, (_, read_size) in zip(counts, parts, strict=True)], axis=0
        )
        if not flash.by_request:
            latency, depth = flash.latency or 0.0, flash.queue_depth
            rounds = np.ceil(total / depth) if depth else np.minimum(total, 1.0)
            return np.where(total > 0, np.maximum(latency + size / flash.read_bandwidth, rounds * latency), 0.0)
        depth = flash.queue_depth or 1
        last = np.mod(total - 1, depth) + 1
        full = alone = served = np.zeros(total.shape)
        for count, (_, size) in zip(counts, parts, strict=True):
            read_bytes = np.maximum(np.asarray(size, float), 1.0)  # the size is 0 in a batch without reads
            slower = np.ones(read_bytes.shape)
            if flash.spread and self._share < 1:
                slower = np.where(read_bytes <= flash.spread.below, 1 / self._share, 1.0)
            parallel, service = flash.times(read_bytes)
            full = full + count * slower * read_bytes / flash.bandwidth(read_bytes, depth)
            alone, served = alone + count * slower * parallel, served + count * slower * service
        share = np.divide(last, total, out=np.zeros_like(total), where=total > 0)
        mean = np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)
        return np.where(total > 0, full * (1.0 - share) + alone * mean + served * share, 0.0)

    def alike(self, count: np.ndarray, size: np.ndarray) -> Any:
        """Seconds of batches of `count` reads of equal size, `size` bytes in all: float64 of their shape."""
        return self.seconds([(count, np.divide(size, count, out=np.zeros(count.shape), where=count > 0))])


def read_sizes(flash: Flash, slice_bytes: tuple[int, ...]) -> list[int]:
    """Bytes that Flash reads for slices of the given bytes, each rounded up to whole pages."""
    page = flash.page_size or 1
    return [-(-size // page) * page for size in slice_bytes]


def flash_seconds(flash: Flash) -> Callable[..., float]:
    """A function that returns the seconds to read some units, each slice of a unit in a read of its own.

    Its arguments are the number of units, the bytes of a unit's slices, and optionally those of a last unit that has
    smaller slices. Reads are rounded up to whole pages.
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
    """Seconds to read `size` bytes in one stream: reads of the best size at the profile's queue depth."""
    if size == 0:
        return 0.0
    return (0.0 if flash.by_request else flash.latency or 0.0) + size / flash.best()


def holes(flash: Flash) -> list[int]:
    """Sizes of holes that may be worth reading through, in bytes: 0, 1, 2, 4, ... pages, and the largest.

    Reading the largest hole at the best rate takes as long as one more read of the smallest size, so a longer hole
    never pays. Whether a shorter hole pays depends on the size of the reads that result, so on the batch.
    """
    if flash.by_request:
        smallest = min(flash.table.read) if flash.table else 1
        depth = flash.queue_depth or 1
        largest = int(smallest / float(flash.bandwidth(smallest, depth)) * flash.best())
    elif flash.latency and flash.queue_depth:
        largest = int(flash.latency / flash.queue_depth * flash.read_bandwidth)
    else:
        largest = 0
    step, sizes = flash.page_size or 4096, [0]
    while step < largest:
        sizes.append(step)
        step *= 2
    return [*sizes, largest] if largest else sizes

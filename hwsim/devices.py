"""Flash, DRAM and compute in SimPy: each serves one request at a time; and how long a request takes on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from functools import cache
from typing import Any

import simpy

from hwsim.profile import Flash, Profile


class Device:
    """Something that serves requests one after the other, in the order in which they come.

    Of such a server all that a request must know is when the one before it is done, so that a service is one event of
    SimPy; with a `simpy.Resource` it was three.

    Attributes:
        busy: seconds for which it has worked.
        requests: how many it has served.
    """

    def __init__(self, env: simpy.Environment, name: str) -> None:
        self.name, self.busy, self.requests = name, 0.0, 0
        self._env = env
        self._free = 0.0  # when all that came before is done

    def serve(self, seconds: float) -> Generator[simpy.Event, Any, None]:
        """Wait for a turn, then work for `seconds`."""
        now = self._env.now
        delay = max(self._free - now, 0.0) + seconds
        self._free = now + delay
        yield self._env.timeout(delay)
        self.busy += seconds
        self.requests += 1


def read_sizes(flash: Flash, slice_bytes: tuple[int, ...]) -> list[int]:
    """Bytes that Flash reads for slices of the given bytes: each is rounded up to whole pages."""
    page = flash.page_size or 1
    return [-(-size // page) * page for size in slice_bytes]


def flash_seconds(flash: Flash) -> Callable[..., float]:
    """How long Flash takes to read `count` units whose slices have the given bytes; each slice is a read of its own.

    A read is rounded up to whole pages. With a measured table the rate follows from the size of a read and the number
    outstanding, which is the profile's queue depth or, for few reads, their number. Without one it is flat, after the
    latency, which is paid once for all; a queue depth beside it bounds how many reads share one latency. Where one of
    the units has smaller slices, they are the third argument.
    """

    @cache
    def seconds(count: int, slice_bytes: tuple[int, ...], last: tuple[int, ...] = ()) -> float:
        if count == 0:
            return 0.0
        sizes, lasts = read_sizes(flash, slice_bytes), read_sizes(flash, last)
        full = count - 1 if last else count
        if flash.table is None:
            latency, depth = flash.latency or 0.0, flash.queue_depth or math.inf
            rounds = math.ceil(count * len(sizes) / depth)
            return max(latency + (full * sum(sizes) + sum(lasts)) / flash.read_bandwidth, rounds * latency)
        outstanding = min(flash.queue_depth or 1, count * len(sizes))
        reads = [(full, size) for size in sizes] + [(1, size) for size in lasts]
        return sum(number * size / flash.table.bandwidth(size, outstanding) for number, size in reads)

    return seconds


def stream_seconds(flash: Flash, size: int) -> float:
    """How long Flash takes to read `size` bytes in one piece: reads of the best size, as deep a queue as it has."""
    if size == 0:
        return 0.0
    if flash.table is None:
        return (flash.latency or 0.0) + size / flash.read_bandwidth
    return size / flash.table.best(flash.queue_depth or 1)


def compute_seconds(profile: Profile, operations: float, kernels: int = 1) -> float:
    """How long the arithmetic takes: `operations` at the profile's rate, and the fixed cost of each kernel."""
    if profile.compute is None:
        return 0.0
    rate, overhead = profile.compute.rate, profile.compute.overhead
    return (operations / rate if rate else 0.0) + kernels * (overhead or 0.0)

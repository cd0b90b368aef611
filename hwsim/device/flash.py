"""Flash in a profile: a flat rate, and what is known beyond it: a measured table, or a queue with a few parameters."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from hwsim.device.section import Section, inherited
from hwsim.errors import UnitError
from hwsim.util.units import Rate, Size, Time, parse


def _request_sizes(value: Any) -> Any:
    if not isinstance(value, dict):
        raise ValueError("must map request sizes to rows of bandwidths, such as '4 KiB: [43.4, 86.4]'")
    rows: dict[int, Any] = {}
    for text, row in value.items():
        try:
            size = int(parse(text, "size"))
        except UnitError as error:  # pydantic gives a ValueError the field's path
            raise ValueError(str(error)) from error
        if size in rows:
            raise ValueError(f"{size} B is given twice")
        rows[size] = row
    return rows


Depth = Annotated[int, Field(gt=0, le=2**16, strict=True)]
_Bandwidth = Annotated[float, Field(gt=0, le=1e18, allow_inf_nan=False)]


def network(alone: np.ndarray, served: np.ndarray, depth: Any) -> np.ndarray:
    """Requests a second of a closed network, by exact mean-value analysis.

    Args:
        alone: seconds of a request beside the others.
        served: and in the one server, on average; exponentially spread.
        depth: requests outstanding, rounded down.
    """
    alone, served, depth = np.broadcast_arrays(alone, served, np.asarray(depth, float))
    waiting, found = np.zeros(alone.shape), np.zeros(alone.shape)
    for number in range(1, int(depth.max(initial=1)) + 1):
        response = served * (1.0 + waiting)
        rate = number / (alone + response)
        waiting = rate * response
        found = np.where(depth >= number, rate, found)
    return found


class FlashTable(Section):
    """Measured random-read bandwidth over request size and queue depth, interpolated in log space."""

    unit: Rate = Field(description="what the numbers count, such as 'MB/s': written as '1 MB/s' or 'MB/s'")
    queue_depth: tuple[Depth, ...] = Field(min_length=1)
    read: Annotated[dict[int, tuple[_Bandwidth, ...]], BeforeValidator(_request_sizes)]

    @model_validator(mode="before")
    @classmethod
    def _bare_unit(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("unit"), str) and not data["unit"][:1].isdigit():
            return data | {"unit": f"1 {data['unit']}"}
        return data

    @model_validator(mode="after")
    def _check(self) -> FlashTable:
        if list(self.queue_depth) != sorted(set(self.queue_depth)):
            raise ValueError(f"queue_depth {list(self.queue_depth)} must rise")
        if not self.read or list(self.read) != sorted(self.read) or min(self.read) < 1:
            raise ValueError(f"read: request sizes must rise, from at least 1 B{_falls(self.read)}")
        for size, row in self.read.items():
            if len(row) != len(self.queue_depth):
                raise ValueError(f"read: {size} B has {len(row)} bandwidths, queue_depth has {len(self.queue_depth)}")
        return self

    def bandwidth(self, request_bytes: Any, queue_depth: Any) -> Any:
        """Bytes a second when requests of `request_bytes` are read at `queue_depth`: numbers, or arrays of them.

        Between the points linear in log-log space. A request smaller than the smallest measured one takes as long as
        that one, and fewer requests outstanding than the fewest measured as long as those: the device is bound by
        commands there. Beyond the largest request or queue depth nothing is gained.
        """
        size, depth = np.broadcast_arrays(np.asarray(request_bytes, float), np.asarray(queue_depth, float))
        sizes, depths = np.array(list(self.read), float), np.array(self.queue_depth, float)
        rates = np.array(list(self.read.values()))
        low, high, part = _bracket(sizes, size)
        left, right, share = _bracket(depths, depth)
        log = np.log(rates)
        value = (1 - part) * ((1 - share) * log[low, left] + share * log[low, right])
        value += part * ((1 - share) * log[high, left] + share * log[high, right])
        found = np.exp(value)
        exact = (part == 0) & (share == 0)  # a measured point is returned as it was measured
        found = np.where(exact, rates[low, left], found)
        found = found * np.minimum(size / sizes[0], 1.0) * np.minimum(depth / depths[0], 1.0) * self.unit
        return float(found) if found.ndim == 0 else found

    def times(self, request_bytes: Any) -> tuple[np.ndarray, np.ndarray]:
        """Seconds that a request spends beside the others, and in the server, as `FlashQueue` has them.

        At each measured size the two follow from the rates at the smallest and at the greatest depth: they are those of
        the closed network that has both. Between sizes they are linear in log-log space.
        """
        sizes = np.array(list(self.read), float)
        alone, served = self._split
        size = np.asarray(request_bytes, float)
        low, high, part = _bracket(sizes, size)
        beyond = np.maximum(size / sizes[-1], 1.0)  # larger ones gain nothing
        whole = np.exp((1 - part) * np.log(alone + served)[low] + part * np.log(alone + served)[high])
        share = (served / (alone + served))[low] * (1 - part) + (served / (alone + served))[high] * part
        return whole * (1 - share) * beyond, whole * share * beyond

    @cached_property
    def _split(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each measured size: seconds beside the others, and in the server."""
        rates = np.array(list(self.read.values())) * self.unit
        sizes, deepest = np.array(list(self.read), float), self.queue_depth[-1]
        one = self.queue_depth[0] * sizes / rates[:, 0]  # a request at the smallest depth, or alone
        low, high = np.zeros(len(sizes)), one.copy()
        for _ in range(80):
            middle = (low + high) / 2
            slower = network(one - middle, middle, deepest) * sizes < rates[:, -1]
            low, high = np.where(slower, low, middle), np.where(slower, middle, high)
        return one - low, low

    def best(self, queue_depth: float) -> float:
        """Bytes a second of the request size that is read fastest at `queue_depth`: for reads of any size one likes."""
        return max(self.bandwidth(size, queue_depth) for size in self.read)


def _bracket(points: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The neighbours of `at` among rising `points` and the weight of the upper one, linear in the logarithm."""
    at = np.clip(at, points[0], points[-1])
    low = np.clip(np.searchsorted(points, at, side="right") - 1, 0, len(points) - 1)
    high = np.minimum(low + 1, len(points) - 1)
    span = np.log(points[high] / points[low])
    part = np.divide(np.log(at / points[low]), span, out=np.zeros_like(at), where=span > 0)
    return low, high, part


def _falls(sizes: Iterable[int]) -> str:
    """The first that is not more than the one before it, for messages."""
    there = list(sizes)
    return next((f"; {later} B comes after {one} B" for one, later in pairwise(there) if later <= one), "")


class FlashQueue(Section):
    """Flash as a queue: requests spend some time side by side, then one after the other in one server.

    Each of the requests outstanding spends ``latency + per_kib x KiB^exponent`` on its own, beside the others, and then
    ``command + bytes / bandwidth`` in a server that takes one at a time, in exponentially spread times. Throughput is
    that of the closed network, by exact mean-value analysis (Reiser and Lavenberg 1980). At a depth of 1 a request
    takes the sum of all; at great depth the server alone decides.
    """

    latency: Time = Field(description="of a request, beside the others, s")
    per_kib: Time = Field(description="of its KiB, to the power of exponent, beside the others, s")
    command: Time = Field(description="of a request in the server, s")
    bandwidth: Rate = Field(description="of the server, bytes a second")
    exponent: float = Field(1.0, gt=0, le=1, description="less than 1 where large requests are split over channels")

    def times(self, request_bytes: Any) -> tuple[np.ndarray, np.ndarray]:
        """Seconds beside the others, and in the server, of requests of so many bytes."""
        size = np.asarray(request_bytes, float)
        return (
            self.latency + self.per_kib * (size / 1024) ** self.exponent,
            self.command + size / self.bandwidth,
        )

    def bandwidth_at(self, request_bytes: Any, queue_depth: Any) -> Any:
        """Bytes a second with so many requests outstanding: numbers, or arrays of them; depths are rounded down."""
        size, depth = np.broadcast_arrays(np.asarray(request_bytes, float), np.asarray(queue_depth, float))
        found = network(*self.times(size), depth) * size
        return float(found) if found.ndim == 0 else found


class Thermal(Section):
    """What heat takes: once Flash has worked for so long, it is slower."""

    after: Time = Field(description="seconds of work from which on it is slow")
    factor: float = Field(gt=0, le=1, description="what is left of its rate")


class Spread(Section):
    """What it costs that small reads are scattered: a controller keeps the map of a part of Flash at hand."""

    below: Size = Field(description="bytes of the largest request that it concerns")
    rate: Annotated[dict[int, float], BeforeValidator(_request_sizes)] = Field(
        description="share of the rate that is left, by the bytes that reads are scattered over"
    )

    @model_validator(mode="after")
    def _check(self) -> Spread:
        if not self.rate or list(self.rate) != sorted(self.rate):
            raise ValueError(f"rate: the bytes that reads are scattered over must rise{_falls(self.rate)}")
        if not all(0 < share <= 1 for share in self.rate.values()):
            raise ValueError("rate: shares must be more than 0 and at most 1")
        return self

    def share(self, span: float) -> float:
        """What is left of the rate of small reads that are scattered over `span` bytes; constant beyond the ends."""
        spans, shares = np.array(list(self.rate), float), np.array(list(self.rate.values()))
        low, high, part = _bracket(spans, np.array([max(span, 1.0)]))
        return float(np.exp((1 - part) * np.log(shares[low]) + part * np.log(shares[high]))[0])


class Flash(Section):
    """Flash: a flat read bandwidth that every model uses, and what is known beyond it for the event engine."""

    read_bandwidth: Rate = Field(description="flat read bandwidth, bytes a second")
    latency: Time | None = Field(None, description="from issuing a batch of reads to its first byte, s")
    queue_depth: Depth | None = Field(None, description="reads outstanding at once")
    page_size: Size | None = Field(None, description="a read is rounded up to whole pages, bytes")
    table: FlashTable | None = None
    queue: FlashQueue | None = None
    thermal: Thermal | None = None
    spread: Spread | None = None

    @model_validator(mode="after")
    def _check(self) -> Flash:
        what = [name for name in ("table", "queue") if getattr(self, name) is not None]
        if len(what) == 2:
            raise ValueError("table and queue both say how fast reads of a size are; give one of the two")
        if what and self.latency is not None:
            where = "a measured table" if what == ["table"] else "the queue"
            raise ValueError(f"latency is part of {where}; give one of the two")
        if what and self.queue_depth is None:
            raise ValueError(f"queue_depth is needed beside a {what[0]}: how many reads the decoder keeps outstanding")
        return self

    @property
    def by_request(self) -> bool:
        """Whether its rate depends on the size of a read and on how many are outstanding."""
        return self.table is not None or self.queue is not None

    def bandwidth(self, request_bytes: Any, queue_depth: Any) -> Any:
        """Bytes a second of reads of a size at a queue depth, where the rate depends on them; else the flat one."""
        if self.table is not None:
            return self.table.bandwidth(request_bytes, queue_depth)
        if self.queue is not None:
            return self.queue.bandwidth_at(request_bytes, queue_depth)
        return np.broadcast_to(self.read_bandwidth, np.broadcast(request_bytes, queue_depth).shape)

    def times(self, request_bytes: Any) -> tuple[np.ndarray, np.ndarray]:
        """Seconds of requests beside the others, and in the server, where the rate depends on their size."""
        known = self.table or self.queue
        assert known is not None
        return known.times(request_bytes)

    def best(self) -> float:
        """Bytes a second of reads of any size one likes, as deep a queue as it has."""
        if self.table is not None:
            return self.table.best(self.queue_depth or 1)
        if self.queue is not None:
            return float(self.queue.bandwidth_at(2**22, self.queue_depth or 1))
        return self.read_bandwidth

    def with_sources(self) -> Flash:
        """Its parts name their source: their own, or this section's."""
        update = {
            name: inherited(part, self)
            for name in ("table", "queue", "thermal", "spread")
            if (part := getattr(self, name)) is not None
        }
        return self.model_copy(update=update) if update else self

"""Flash in a profile: a flat rate, and optionally a measured table or a queue model with a few parameters."""

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
        alone: seconds that a request spends in parallel with other requests.
        served: mean seconds that it spends in the single server; these times are exponentially distributed.
        depth: outstanding requests, rounded down.

    Returns:
        float64 of the arguments' common shape.
    """
    alone, served, depth = np.broadcast_arrays(alone, served, np.asarray(depth, float))
    waiting, result = np.zeros(alone.shape), np.zeros(alone.shape)
    for number in range(1, int(depth.max(initial=1)) + 1):
        response = served * (1.0 + waiting)
        rate = number / (alone + response)
        waiting = rate * response
        result = np.where(depth >= number, rate, result)
    return result


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
        """Bytes a second when requests of `request_bytes` are read at `queue_depth`; both are numbers or arrays.

        The rate is interpolated linearly in log-log space. A request smaller than the smallest measured one takes as
        long as that one. A queue shallower than the shallowest measured one takes as long, too, as the device is bound
        by commands there. Beyond the largest request or queue depth the rate is constant.
        """
        size, depth = np.broadcast_arrays(np.asarray(request_bytes, float), np.asarray(queue_depth, float))
        sizes, depths = np.array(list(self.read), float), np.array(self.queue_depth, float)
        rates = np.array(list(self.read.values()))
        low, high, part = _bracket(sizes, size)
        left, right, share = _bracket(depths, depth)
        log = np.log(rates)
        value = (1 - part) * ((1 - share) * log[low, left] + share * log[low, right])
        value += part * ((1 - share) * log[high, left] + share * log[high, right])
        speed = np.exp(value)
        exact = (part == 0) & (share == 0)  # a measured point is returned as it was measured
        speed = np.where(exact, rates[low, left], speed)
        speed = speed * np.minimum(size / sizes[0], 1.0) * np.minimum(depth / depths[0], 1.0) * self.unit
        return float(speed) if speed.ndim == 0 else speed

    def times(self, request_bytes: Any) -> tuple[np.ndarray, np.ndarray]:
        """Seconds that a request spends in parallel with others, and in the server, as in `FlashQueue`.

        At each measured size the two times are those of the closed network that has the measured rates at the smallest
        and at the greatest depth. Between sizes they are interpolated in log-log space.
        """
        sizes = np.array(list(self.read), float)
        alone, served = self._split
        size = np.asarray(request_bytes, float)
        low, high, part = _bracket(sizes, size)
        beyond = np.maximum(size / sizes[-1], 1.0)  # the rate of larger requests is constant
        whole = np.exp((1 - part) * np.log(alone + served)[low] + part * np.log(alone + served)[high])
        share = (served / (alone + served))[low] * (1 - part) + (served / (alone + served))[high] * part
        return whole * (1 - share) * beyond, whole * share * beyond

    @cached_property
    def _split(self) -> tuple[np.ndarray, np.ndarray]:
        """Seconds in parallel with other requests, and in the server: float64 ``[sizes]`` each."""
        rates = np.array(list(self.read.values())) * self.unit
        sizes, deepest = np.array(list(self.read), float), self.queue_depth[-1]
        total = self.queue_depth[0] * sizes / rates[:, 0]  # seconds of a request at the smallest depth
        low, high = np.zeros(len(sizes)), total.copy()
        for _ in range(80):
            middle = (low + high) / 2
            slower = network(total - middle, middle, deepest) * sizes < rates[:, -1]
            low, high = np.where(slower, low, middle), np.where(slower, middle, high)
        return total - low, low

    def best(self, queue_depth: float) -> float:
        """Highest rate at `queue_depth` over all measured request sizes, bytes a second."""
        return max(self.bandwidth(size, queue_depth) for size in self.read)


def _bracket(points: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The neighbours of `at` among rising `points`, as indices, and the weight of the upper one in the logarithm."""
    at = np.clip(at, points[0], points[-1])
    low = np.clip(np.searchsorted(points, at, side="right") - 1, 0, len(points) - 1)
    high = np.minimum(low + 1, len(points) - 1)
    span = np.log(points[high] / points[low])
    part = np.divide(np.log(at / points[low]), span, out=np.zeros_like(at), where=span > 0)
    return low, high, part


def _falls(sizes: Iterable[int]) -> str:
    """The first size that does not exceed the one before it, as text for messages; empty if all rise."""
    values = list(sizes)
    return next((f"; {size} B comes after {previous} B" for previous, size in pairwise(values) if size <= previous), "")


class FlashQueue(Section):
    """Flash as a queue: requests spend some time in parallel, then one after the other in a single server.

    Each outstanding request spends ``latency + per_kib x KiB^exponent`` in parallel with the others. Then it spends
    ``command + bytes / bandwidth`` in a server that takes one request at a time; these times are exponentially
    distributed. Throughput is that of the closed network, by exact mean-value analysis (Reiser and Lavenberg 1980). At
    a depth of 1 a request takes the sum of both times; at great depth the server alone limits the rate.
    """

    latency: Time = Field(description="of a request, beside the others, s")
    per_kib: Time = Field(description="of its KiB, to the power of exponent, beside the others, s")
    command: Time = Field(description="of a request in the server, s")
    bandwidth: Rate = Field(description="of the server, bytes a second")
    exponent: float = Field(1.0, gt=0, le=1, description="less than 1 where large requests are split over channels")

    def times(self, request_bytes: Any) -> tuple[np.ndarray, np.ndarray]:
        """Seconds of a request in parallel with others, and in the server, by its bytes: float64 of their shape."""
        size = np.asarray(request_bytes, float)
        return (
            self.latency + self.per_kib * (size / 1024) ** self.exponent,
            self.command + size / self.bandwidth,
        )

    def bandwidth_at(self, request_bytes: Any, queue_depth: Any) -> Any:
        """Bytes a second at a queue depth, which is rounded down; the arguments are numbers or arrays."""
        size, depth = np.broadcast_arrays(np.asarray(request_bytes, float), np.asarray(queue_depth, float))
        speed = network(*self.times(size), depth) * size
        return float(speed) if speed.ndim == 0 else speed


class Thermal(Section):
    """Thermal throttling: Flash is slower after some time of work."""

    after: Time = Field(description="seconds of work from which on it is slow")
    factor: float = Field(gt=0, le=1, description="what is left of its rate")


class Spread(Section):
    """Cost of scattered small reads: a controller caches the address map of only a part of Flash."""

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
        """Share of their rate that small reads keep when scattered over `span` bytes; constant beyond the ends."""
        spans, shares = np.array(list(self.rate), float), np.array(list(self.rate.values()))
        low, high, part = _bracket(spans, np.array([max(span, 1.0)]))
        return float(np.exp((1 - part) * np.log(shares[low]) + part * np.log(shares[high]))[0])


class Flash(Section):
    """Flash: a flat read bandwidth that every time model uses, and details for the event engine."""

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
        models = [name for name in ("table", "queue") if getattr(self, name) is not None]
        if len(models) == 2:
            raise ValueError("table and queue both say how fast reads of a size are; give one of the two")
        if models and self.latency is not None:
            owner = "a measured table" if models == ["table"] else "the queue"
            raise ValueError(f"latency is part of {owner}; give one of the two")
        if models and self.queue_depth is None:
            raise ValueError(
                f"queue_depth is needed beside a {models[0]}: how many reads the decoder keeps outstanding"
            )
        return self

    @property
    def by_request(self) -> bool:
        """Whether the rate depends on the size of a read and on the number of outstanding reads."""
        return self.table is not None or self.queue is not None

    def bandwidth(self, request_bytes: Any, queue_depth: Any) -> Any:
        """Bytes a second of reads by size and queue depth; the flat rate if the profile has no more."""
        if self.table is not None:
            return self.table.bandwidth(request_bytes, queue_depth)
        if self.queue is not None:
            return self.queue.bandwidth_at(request_bytes, queue_depth)
        return np.broadcast_to(self.read_bandwidth, np.broadcast(request_bytes, queue_depth).shape)

    def times(self, request_bytes: Any) -> tuple[np.ndarray, np.ndarray]:
        """Seconds of requests in parallel with others, and in the server; only if the rate depends on their size."""
        model = self.table or self.queue
        assert model is not None
        return model.times(request_bytes)

    def best(self) -> float:
        """Bytes a second of reads of the best size, at the profile's queue depth."""
        if self.table is not None:
            return self.table.best(self.queue_depth or 1)
        if self.queue is not None:
            return float(self.queue.bandwidth_at(2**22, self.queue_depth or 1))
        return self.read_bandwidth

    def with_sources(self) -> Flash:
        """The section with a source and confidence in each part: the part's own, or this section's."""
        update = {
            name: inherited(part, self)
            for name in ("table", "queue", "thermal", "spread")
            if (part := getattr(self, name)) is not None
        }
        return self.model_copy(update=update) if update else self

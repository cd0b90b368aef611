"""The engine for decodes in which nothing overlaps: running sums over many tokens at once.

In an overlap mode that is `in_order`, and without fills, a device is asked only after the one before it is done, so no
event can come between two others. The engine's clock is then the running sum of all services in their order, and so is
every account. The sums here run in the same order, so that results are bit-identical to those of SimPy; a test compares
both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from hwsim.device.profile import Thermal
from hwsim.timing.times import Busy, Times, Timing
from hwsim.timing.work import Work

_BLOCK = 2**16  # services that are summed together; an array of them has 0.5 MiB


def blocks(tokens: int, layers: int, groups: int) -> Iterator[slice]:
    """Slices of tokens whose work is summed together, so that memory does not grow with the number of tokens."""
    step = max(1, _BLOCK // (3 * (layers + 1) + 4 * layers * groups))
    for first in range(0, tokens, step):
        yield slice(first, min(first + step, tokens))


def run_in_order(
    works: Iterable[Work], *, thermal: Thermal | None = None, progress: Callable[[int], None] | None = None
) -> Timing:
    """Simulate a decode whose devices never work at the same time: no overlap and no fills.

    Args:
        works: work of consecutive blocks of tokens; all have the same layers and groups.
        thermal: thermal throttling of Flash.
        progress: callback, receives the number of tokens done.
    """
    accounts = _Accounts(thermal)
    for load in works:
        accounts.add(load)
        if progress:
            progress(accounts.tokens)
    return accounts.timing()


class _Accounts:
    """The clock, the busy time of each device, and the accounts."""

    def __init__(self, thermal: Thermal | None) -> None:
        self._clock, self._flash = _Sum(), _Flash(thermal)
        self._dram, self._compute, self._resident, self._kv_cache, self._streamed = (_Sum() for _ in range(5))
        self._masked: dict[str, _Sum] = {}
        self._token_s: list[np.ndarray] = []
        self.tokens = self._services = 0

    def add(self, load: Work) -> None:
        """Add the work of the next tokens."""
        tokens, layers, groups = load.tokens, load.layers, load.groups
        # order of services: in each layer the three for what no mask cuts, then for each group the selection, the hits,
        # the misses and the arithmetic; the LM head has no groups
        kv = np.zeros((tokens, layers + 1))
        kv[:, :layers] = load.kv_cache
        pinned, after = load.resident + kv, load.on_hits + load.on_misses
        flash = self._flash.read(_beside(np.broadcast_to(load.streamed, kv.shape), load.flash))
        order = np.zeros((tokens, layers + 1, 3 + 4 * groups))
        order[:, :, 0], order[:, :, 1], order[:, :, 2] = pinned, flash[:, :, 0], load.unmasked
        for part, seconds in enumerate((load.selection, load.dram, flash[:, :layers, 1:], after), 3):
            order[:, :layers, part::4] = seconds
        self._services += int(np.count_nonzero(order))
        ends = self._clock.run(order).reshape(tokens, -1)[:, -1]
        self._token_s.append(np.diff(ends, prepend=self._clock.before))
        self.tokens += tokens
        self._dram.run(_beside(pinned, load.dram))
        arithmetic = np.zeros((tokens, layers + 1, 1 + 2 * groups))
        arithmetic[:, :, 0] = load.unmasked
        arithmetic[:, :layers, 1::2], arithmetic[:, :layers, 2::2] = load.selection, after
        self._compute.run(arithmetic)
        self._resident.run(np.stack([pinned, -kv], axis=-1))  # one request for both, but separate accounts
        self._kv_cache.run(kv)
        self._streamed.run(flash[:, :, 0])
        for label, place in _places(load).items():
            reads = np.stack([load.dram[:, place], flash[:, :layers, 1:][:, place]], axis=-1)
            self._masked.setdefault(label, _Sum()).run(reads)

    def timing(self) -> Timing:
        """The timing of all tokens so far."""
        compute, masked = self._compute.value, {label: account.value for label, account in self._masked.items()}
        times = Times(
            total=self._clock.value, resident=self._resident.value, kv_cache=self._kv_cache.value,
            streamed=self._streamed.value, compute=compute, masked=masked,
        )  # fmt: skip
        busy = Busy(flash=self._flash.worked.value, dram=self._dram.value, compute=compute)
        return Timing(token_s=np.concatenate(self._token_s), times=times, events=self._services, busy=busy)


def _places(load: Work) -> dict[str, np.ndarray]:
    """The groups of each part of the model: bool ``[layers, groups]`` by label."""
    places: dict[str, np.ndarray] = {}
    for layer, labels in enumerate(load.parts):
        for group, label in enumerate(labels):
            places.setdefault(label, np.zeros((load.layers, load.groups), bool))[layer, group] = True
    return places


def _beside(first: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Join what no mask cuts, ``[tokens, layers + 1]``, and the groups, ``[tokens, layers, groups]``, by layer.

    Returns:
        ``[tokens, layers + 1, 1 + groups]``; zeros for groups of the LM head.
    """
    merged = np.zeros((*first.shape, 1 + others.shape[2]))
    merged[:, :, 0], merged[:, :-1, 1:] = first, others
    return merged


class _Sum:
    """A running sum in float64 that is rounded after each part, as a clock is."""

    def __init__(self) -> None:
        self.value = self.before = 0.0

    def run(self, parts: np.ndarray) -> np.ndarray:
        """Add parts of any shape in their order and return the value after each, 1-D. `before` keeps the old value."""
        self.before = self.value
        sums: np.ndarray = np.add.accumulate(np.concatenate(([self.value], parts.ravel())))[1:]
        if sums.size:
            self.value = float(sums[-1])
        return sums


class _Flash:
    """Working time of Flash; once Flash is hot, everything takes longer."""

    def __init__(self, thermal: Thermal | None) -> None:
        self._thermal, self.worked = thermal, _Sum()

    def read(self, seconds: np.ndarray) -> np.ndarray:
        """Seconds of reads with thermal throttling, from their seconds without it: any shape, in their order."""
        hot, flat = self._thermal, seconds.ravel()
        if hot is not None:
            before = np.add.accumulate(np.concatenate(([self.worked.value], flat)))[:-1]  # without throttling
            late = before >= hot.after
            if late.any():
                first = int(np.argmax(late))
                flat = np.concatenate((flat[:first], flat[first:] / hot.factor))
        self.worked.run(flat)
        return flat.reshape(seconds.shape)

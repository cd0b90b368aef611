"""The engine where nothing can interleave: a clock that only adds up, many tokens at once.

In an overlap mode that is `in_order`, and without fills, each device is asked after the one before it is done, so that
no event can come between two others. The engine's clock is then the running sum of all services in their order, and so
is every account. Sums run in that order here, too, so that results are bit-identical to those of SimPy; a test compares
both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from hwsim.device.profile import Thermal
from hwsim.timing.times import Busy, Times, Timing
from hwsim.timing.work import Work

_BLOCK = 2**16  # services that are looked at together, 0.5 MiB for each number of them


def blocks(tokens: int, layers: int, groups: int) -> Iterator[slice]:
    """Tokens whose work is looked at together, so that memory does not grow with their number."""
    step = max(1, _BLOCK // (3 * (layers + 1) + 4 * layers * groups))
    for first in range(0, tokens, step):
        yield slice(first, min(first + step, tokens))


def run_in_order(
    works: Iterable[Work], *, thermal: Thermal | None = None, progress: Callable[[int], None] | None = None
) -> Timing:
    """Simulate a decode whose devices never work at the same time: no overlap, and no fills, which Flash reads beside.

    Args:
        works: what its tokens ask of each device, some tokens after the other; all have the same layers and groups.
        thermal: how Flash is slowed when it has worked for long.
        progress: is called with the number of tokens done.
    """
    accounts = _Accounts(thermal)
    for load in works:
        accounts.add(load)
        if progress:
            progress(accounts.tokens)
    return accounts.timing()


class _Accounts:
    """The clock, how long each device worked, and where the time goes."""

    def __init__(self, thermal: Thermal | None) -> None:
        self._clock, self._flash = _Sum(), _Flash(thermal)
        self._dram, self._compute, self._resident, self._kv_cache, self._streamed = (_Sum() for _ in range(5))
        self._masked: dict[str, _Sum] = {}
        self._token_s: list[np.ndarray] = []
        self.tokens = self._services = 0

    def add(self, load: Work) -> None:
        """The work of the next tokens."""
        tokens, layers, groups = load.tokens, load.layers, load.groups
        # of each layer what no mask cuts, then of each group the selection, the hits, the misses, the arithmetic; the
        # LM head has no groups
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
        self._resident.run(np.stack([pinned, -kv], axis=-1))  # one request for both, and an account for each
        self._kv_cache.run(kv)
        self._streamed.run(flash[:, :, 0])
        for label, place in _places(load).items():
            reads = np.stack([load.dram[:, place], flash[:, :layers, 1:][:, place]], axis=-1)
            self._masked.setdefault(label, _Sum()).run(reads)

    def timing(self) -> Timing:
        """Of all tokens so far."""
        compute, masked = self._compute.value, {label: account.value for label, account in self._masked.items()}
        times = Times(
            total=self._clock.value, resident=self._resident.value, kv_cache=self._kv_cache.value,
            streamed=self._streamed.value, compute=compute, masked=masked,
        )  # fmt: skip
        busy = Busy(flash=self._flash.worked.value, dram=self._dram.value, compute=compute)
        return Timing(token_s=np.concatenate(self._token_s), times=times, events=self._services, busy=busy)


def _places(load: Work) -> dict[str, np.ndarray]:
    """The groups of each part: bool ``[layers, groups]`` by label."""
    places: dict[str, np.ndarray] = {}
    for layer, labels in enumerate(load.parts):
        for group, label in enumerate(labels):
            places.setdefault(label, np.zeros((load.layers, load.groups), bool))[layer, group] = True
    return places


def _beside(first: np.ndarray, others: np.ndarray) -> np.ndarray:
    """What no mask cuts, ``[tokens, layers + 1]``, and then in each layer its groups, ``[tokens, layers, groups]``."""
    found = np.zeros((*first.shape, 1 + others.shape[2]))
    found[:, :, 0], found[:, :-1, 1:] = first, others
    return found


class _Sum:
    """A sum in the order in which its parts come: float64, rounded after each, as a clock is."""

    def __init__(self) -> None:
        self.value = self.before = 0.0

    def run(self, parts: np.ndarray) -> np.ndarray:
        """Add parts of any shape in their order: the value after each, 1-D. `before` is what it was."""
        self.before = self.value
        found: np.ndarray = np.add.accumulate(np.concatenate(([self.value], parts.ravel())))[1:]
        if found.size:
            self.value = float(found[-1])
        return found


class _Flash:
    """How long Flash has worked; once it is hot, everything takes longer."""

    def __init__(self, thermal: Thermal | None) -> None:
        self._thermal, self.worked = thermal, _Sum()

    def read(self, asked: np.ndarray) -> np.ndarray:
        """How long reads take that would take so long if it were cold: any shape, in their order."""
        hot, flat = self._thermal, asked.ravel()
        if hot is not None:
            before = np.add.accumulate(np.concatenate(([self.worked.value], flat)))[:-1]  # if it were cold to the end
            late = before >= hot.after
            if late.any():
                first = int(np.argmax(late))
                flat = np.concatenate((flat[:first], flat[first:] / hot.factor))
        self.worked.run(flat)
        return flat.reshape(asked.shape)

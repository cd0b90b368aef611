"""The engine where nothing can interleave: a clock that only adds up, many tokens at once.

With ``overlap="none"`` each device is asked after the one before it is done, so that no event can come between two
others. The engine's clock is then the running sum of all services in their order, and so is every account. Sums run in
that order here, too, so that results are those of SimPy to the bit; a test holds both together.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hwsim.loads import Load
from hwsim.metrics import Busy, Times, Timing
from hwsim.profile import Thermal

_BLOCK = 2**18  # services that are looked at together, 2 MiB for each number of them


def applies(load: Load, overlap: str) -> bool:
    """Whether nothing can interleave; fills are written while Flash reads on."""
    return overlap == "none" and not load.fills.any()


def run_in_order(
    load: Load, *, thermal: Thermal | None = None, progress: Callable[[int], None] | None = None
) -> Timing:
    """Simulate a decode whose devices never work at the same time.

    Args:
        load: what it asks of each device, no fills.
        thermal: what heat makes of Flash.
        progress: is called with the number of tokens done.
    """
    clock, flash = _Sum(), _Flash(thermal)
    dram, compute, resident, kv_cache, streamed, work = (_Sum() for _ in range(6))
    masked = {kind: _Sum() for kind in ("mlp", "attention")}
    layers, groups = load.layers, len(load.kinds)
    token_s, services = np.empty(load.tokens), 0
    step = max(1, _BLOCK // (3 * (layers + 1) + 3 * layers * groups))
    for first in range(0, load.tokens, step):
        block = slice(first, min(first + step, load.tokens))
        tokens = block.stop - first
        # of each layer what no mask cuts, then of each group the selection, the hits, the misses, the arithmetic; the
        # LM head has no groups
        kv = np.zeros((tokens, layers + 1))
        kv[:, :layers] = load.kv_cache[block, None]
        pinned = load.resident + kv
        unmasked = load.unmasked[block]
        chosen, hits = load.selection[block], load.dram[block]
        after = load.on_hits[block] + load.on_misses[block]
        every = flash.read(_beside(np.broadcast_to(load.streamed, kv.shape), load.flash[block]))
        order = np.zeros((tokens, layers + 1, 3 + 4 * groups))
        order[:, :, 0], order[:, :, 1], order[:, :, 2] = pinned, every[:, :, 0], unmasked
        for part, seconds in enumerate((chosen, hits, every[:, :layers, 1:], after), 3):
            order[:, :layers, part::4] = seconds
        services += int(np.count_nonzero(order))
        ends = clock.run(order).reshape(tokens, -1)[:, -1]
        token_s[block] = np.diff(ends, prepend=clock.before)
        dram.add(_beside(pinned, hits))
        arithmetic = np.zeros((tokens, layers + 1, 1 + 2 * groups))
        arithmetic[:, :, 0] = unmasked
        arithmetic[:, :layers, 1::2], arithmetic[:, :layers, 2::2] = chosen, after
        compute.add(arithmetic)
        work.add(arithmetic)
        resident.add(np.stack([pinned, -kv], axis=-1))  # one request for both, and an account for each
        kv_cache.add(kv)
        streamed.add(every[:, :, 0])
        for kind, account in masked.items():
            mine = [index for index, each in enumerate(load.kinds) if each == kind]
            account.add(np.stack([hits[..., mine], every[:, :layers, 1:][..., mine]], axis=-1))
        if progress:
            progress(block.stop)
    times = Times(
        total=clock.value, resident=resident.value, kv_cache=kv_cache.value, streamed=streamed.value,
        mlp=masked["mlp"].value, attention=masked["attention"].value, compute=work.value,
    )  # fmt: skip
    return Timing(
        token_s=token_s, times=times, events=services,
        busy=Busy(flash=flash.worked.value, dram=dram.value, compute=compute.value), guessed=None,
    )  # fmt: skip


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
        """The value after each of the parts, 1-D; `before` is what it was."""
        self.before = self.value
        found: np.ndarray = np.add.accumulate(np.concatenate(([self.value], parts.ravel())))[1:]
        if found.size:
            self.value = float(found[-1])
        return found

    def add(self, parts: np.ndarray) -> None:
        """Add parts of any shape, in their order."""
        self.run(parts)


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
        self.worked.add(flat)
        return flat.reshape(asked.shape)

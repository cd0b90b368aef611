"""The discrete-event engine: a decoder process that asks Flash, DRAM and compute for what each token needs.

One request for each (token, layer, group, device). The masks and hits are decided beforehand, because they do not
depend on time; the engine turns them into time.

What may happen at once is the ``overlap``: ``none``: nothing; ``group``: Flash and DRAM of one group; ``pipeline``:
also arithmetic on hits while misses arrive, and what the next layer surely needs (pinned and streamed weights, KV
entries) is read while Flash and DRAM have nothing else to do; ``prefetch``: also what it is guessed to need.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, NamedTuple, Protocol

import numpy as np
import simpy

from hwsim.device.profile import Thermal
from hwsim.simulation.metrics import Busy, Times, Timing
from hwsim.timing.server import Device
from hwsim.timing.work import Load

_Steps = Generator[simpy.Event, Any, None]


class Recorder(Protocol):
    """Is told what happened when: for a timeline."""

    def begin(
        self, demand: Any, placement: Any, profile: Any, settings: Any, starts: frozenset[int], about: dict[str, Any]
    ) -> None:
        """A decode begins."""

    def slice(self, track: str, what: str, at: tuple[int, int, int], start: float, seconds: float) -> None:
        """A device worked for something of (token, layer, group); group -1: what no mask cuts.

        Track ``decoder``: it was at a layer, or with layer -1 at a token.
        """

    def ahead(self, device: str, what: str, at: tuple[int, int, int], start: float, end: float, share: float) -> None:
        """Something was read in idle time between two moments, to a share."""


class _Where(NamedTuple):
    token: int
    layer: int
    group: int = -1


class Recorders:
    """Several recorders as one."""

    def __init__(self, recorders: list[Recorder]) -> None:
        self._recorders = recorders

    def begin(
        self, demand: Any, placement: Any, profile: Any, settings: Any, starts: frozenset[int], about: dict[str, Any]
    ) -> None:
        """Told to all."""
        for each in self._recorders:
            each.begin(demand, placement, profile, settings, starts, about)

    def slice(self, track: str, what: str, at: tuple[int, int, int], start: float, seconds: float) -> None:
        """Told to all."""
        for each in self._recorders:
            each.slice(track, what, at, start, seconds)

    def ahead(self, device: str, what: str, at: tuple[int, int, int], start: float, end: float, share: float) -> None:
        """Told to all."""
        for each in self._recorders:
            each.ahead(device, what, at, start, end, share)


def _is_guess(key: _Where) -> bool:
    return key.group >= 0


class _Ahead:
    """Work of a device that nobody waits for yet: done in its idle time, first come, first served, guesses last."""

    def __init__(self, device: Device, env: simpy.Environment) -> None:
        self._device, self._env, self.name = device, env, device.name
        self._left: dict[_Where, float] = {}
        self._whole: dict[_Where, float] = {}
        self._posted: dict[_Where, float] = {}
        self._since, self._busy = 0.0, 0.0
        self.worked = 0.0

    def _catch_up(self) -> None:
        idle = self._device.idle(self._since, self._busy)
        self._since, self._busy = self._env.now, self._device.busy
        for key in sorted(self._left, key=_is_guess) if idle > 0 else ():
            left = self._left[key]
            done = min(left, idle)
            self._left[key] = left - done
            self.worked += done
            idle -= done

    def post(self, key: _Where, seconds: float) -> None:
        """Work that will be wanted."""
        self._catch_up()
        if seconds > 0:
            self._left[key] = self._whole[key] = seconds
            self._posted[key] = self._env.now

    def posted(self, key: _Where) -> float | None:
        """When it was; None: it was not."""
        return self._posted.get(key)

    def claim(self, key: _Where) -> float:
        """It is wanted now: the share of it that is done; the rest is given up here."""
        self._catch_up()
        left = self._left.pop(key, None)
        self._posted.pop(key, None)
        return 0.0 if left is None else 1.0 - left / self._whole.pop(key)

    def forget(self) -> None:
        """Nothing of it will be wanted."""
        self._catch_up()
        for each in (self._left, self._whole, self._posted):
            each.clear()


class Decoder:
    """Decodes token after token."""

    def __init__(
        self, load: Load, *, overlap: str, thermal: Thermal | None = None, recorder: Recorder | None = None
    ) -> None:
        self.env = simpy.Environment()
        self.flash, self.dram, self.unit = (Device(self.env, name) for name in ("flash", "dram", "compute"))
        self._load, self._thermal, self._recorder = load, thermal, recorder
        self._group = overlap != "none"
        self._pipeline = overlap in ("pipeline", "prefetch")
        self._flash_ahead, self._dram_ahead = _Ahead(self.flash, self.env), _Ahead(self.dram, self.env)
        self.spent = dict.fromkeys(("resident", "kv_cache", "streamed", "mlp", "attention", "compute"), 0.0)
        self.token_s: list[float] = []
        self._ahead = load.ahead if overlap == "prefetch" else None
        self.guessed = None if self._ahead is None else np.zeros(self._ahead.shape)  # share that was read in time

    def run(self, progress: Callable[[int], None] | None) -> _Steps:
        """The decoder process."""
        load = self._load
        layers, kinds = load.layers, list(enumerate(load.kinds))
        self._resident, self._streamed = load.resident.tolist(), load.streamed.tolist()
        self._kv = load.kv_cache.tolist()
        for token in range(load.tokens):
            if token in load.starts:
                self._flash_ahead.forget()
                self._dram_ahead.forget()
            start = self.env.now
            unmasked = load.unmasked[token].tolist()
            rows = [
                each[token].tolist()
                for each in (load.selection, load.dram, load.flash, load.fills, load.on_hits, load.on_misses)
            ]
            for layer in range(layers + 1):
                began = self.env.now
                yield from self._read_unmasked(_Where(token, layer), unmasked[layer])
                if self._pipeline and (after := self._after(token, layer)):
                    self._guess(after)
                for group, kind in kinds if layer < layers else ():
                    work = [each[layer][group] for each in rows]
                    yield from self._read_group(_Where(token, layer, group), kind, *work)
                if self._recorder:
                    self._recorder.slice("decoder", "layer", (token, layer, -1), began, self.env.now - began)
            self.token_s.append(self.env.now - start)
            if self._recorder:
                self._recorder.slice("decoder", "token", (token, -1, -1), start, self.env.now - start)
            if progress:
                progress(token + 1)

    def busy(self) -> Busy:
        """How long each device worked, also for what was read ahead."""
        flash, dram = self.flash.busy + self._flash_ahead.worked, self.dram.busy + self._dram_ahead.worked
        return Busy(flash=flash, dram=dram, compute=self.unit.busy)

    def _read_unmasked(self, at: _Where, arithmetic: float) -> _Steps:
        """What no mask cuts: pinned weights and KV entries from DRAM, streamed weights from Flash, arithmetic."""
        layer = at.layer
        kv = self._kv[at.token] if layer < self._load.layers else 0.0
        resident, streamed = self._resident[layer], self._streamed[layer]
        if not self._pipeline:
            yield from self._serve("resident", self.dram, at, resident + kv)
            self.spent["resident"] -= kv  # one request for both, and an account for each
            self.spent["kv_cache"] += kv
            yield from self._serve("streamed", self.flash, at, streamed)
            yield from self._serve("compute", self.unit, at, arithmetic)
            return
        wanted = 1.0 - self._claim(self._dram_ahead, at, "weights")
        sure = 1.0 - self._claim(self._flash_ahead, at, "streamed weights")
        resident, kv, streamed = resident * wanted, kv * wanted, streamed * sure
        if after := self._after(at.token, layer):
            self._look_ahead(after)
        took = yield from self._together(
            at, ("resident", self.dram, resident + kv), ("streamed", self.flash, streamed),
            ("compute", self.unit, arithmetic),
        )  # fmt: skip
        dram, flash, _ = took
        self._spend("resident", dram * resident / (resident + kv) if dram else 0.0)
        self._spend("kv_cache", dram * kv / (resident + kv) if dram else 0.0)
        self._spend("streamed", max(flash - dram, 0.0))
        self._spend("compute", max(took) - max(flash, dram))

    def _after(self, token: int, layer: int) -> _Where | None:
        """The layer that comes next, if any does in this sequence."""
        load = self._load
        if layer < load.layers:
            return _Where(token, layer + 1)
        last = token + 1 == load.tokens or token + 1 in load.starts
        return None if last else _Where(token + 1, 0)

    def _look_ahead(self, at: _Where) -> None:
        """Read in idle time what a layer surely needs."""
        kv = self._kv[at.token] if at.layer < self._load.layers else 0.0
        self._dram_ahead.post(at, self._resident[at.layer] + kv)
        self._flash_ahead.post(at, self._streamed[at.layer])

    def _guess(self, at: _Where) -> None:
        """Read in idle time what a layer is guessed to need."""
        if self._ahead is not None and at.layer < self._load.layers:
            for group, seconds in enumerate(self._ahead[at.token, at.layer].tolist()):
                self._flash_ahead.post(at._replace(group=group), seconds)

    def _read_group(
        self, at: _Where, kind: str, selection: float, dram: float, flash: float, fills: float,
        on_hits: float, on_misses: float,
    ) -> _Steps:  # fmt: skip
        """One group: choose its mask, read hits from DRAM and misses from Flash, compute."""
        yield from self._serve("compute", self.unit, at, selection)
        if self.guessed is not None and self._load.left is not None:
            share = self._claim(self._flash_ahead, at, "guess")
            self.guessed[tuple(at)] = share
            flash += share * (float(self._load.left[tuple(at)]) - flash)
        if not self._group:
            yield from self._serve(kind, self.dram, at, dram)
            if not fills:
                yield from self._serve(kind, self.flash, at, flash)
            else:
                took = yield from self._together(at, (kind, self.flash, flash), (kind, self.dram, fills))
                self._spend(kind, max(took))
                yield from self._serve(kind, self.dram, at, fills)
            yield from self._serve("compute", self.unit, at, on_hits + on_misses)
            return
        beside = on_hits if self._pipeline else 0.0
        took = yield from self._together(
            at, (kind, self.flash, flash), (kind, self.dram, dram + fills), ("compute", self.unit, beside)
        )
        read = max(took[:2])
        self._spend(kind, read)
        self._spend("compute", max(took[2] - read, 0.0))
        if self._pipeline:
            took = yield from self._together(at, (kind, self.dram, fills), ("compute", self.unit, on_misses))
            self._spend(kind, took[0])
            self._spend("compute", max(took[1] - took[0], 0.0))
            return
        yield from self._serve(kind, self.dram, at, fills)
        yield from self._serve("compute", self.unit, at, on_hits + on_misses)

    def _claim(self, ahead: _Ahead, at: _Where, what: str) -> float:
        """Of what was read ahead for something, the share that is there."""
        posted, share = ahead.posted(at), ahead.claim(at)
        if self._recorder and posted is not None:
            self._recorder.ahead(ahead.name, what, at, posted, self.env.now, share)
        return share

    def _serve(self, what: str, device: Device, at: _Where, seconds: float) -> _Steps:
        """One device works, all others wait."""
        if seconds > 0:
            seconds = self._slowed(device, seconds)
            if self._recorder:
                self._recorder.slice(device.name, what, at, self.env.now, seconds)
            self._spend(what, seconds)
            yield from device.serve(seconds)

    def _together(self, at: _Where, *parts: tuple[str, Device, float]) -> Generator[simpy.Event, Any, list[float]]:
        """Several devices work at once; how long each took, all of them waited for."""
        took = []
        for what, device, asked in parts:
            if asked <= 0:
                took.append(0.0)
                continue
            seconds = self._slowed(device, asked)
            if self._recorder:
                self._recorder.slice(device.name, what, at, self.env.now, seconds)
            took.append(device.wait(seconds))
        if any(took):
            yield self.env.timeout(max(took))
        return took

    def _slowed(self, device: Device, seconds: float) -> float:
        """What heat makes of it: Flash that has worked for long is slower."""
        hot = self._thermal
        if hot is None or device is not self.flash or device.busy + self._flash_ahead.worked < hot.after:
            return seconds
        return seconds / hot.factor

    def _spend(self, what: str, seconds: float) -> None:
        self.spent[what] += seconds


def run_events(
    load: Load,
    *,
    overlap: str,
    thermal: Thermal | None = None,
    recorder: Recorder | None = None,
    progress: Callable[[int], None] | None = None,
) -> Timing:
    """Simulate a decode.

    Args:
        load: what it asks of each device.
        overlap: what may happen at once.
        thermal: what heat makes of Flash.
        recorder: is told what happened when.
        progress: is called with the number of tokens done.
    """
    decoder = Decoder(load, overlap=overlap, thermal=thermal, recorder=recorder)
    decoder.env.process(decoder.run(progress))
    decoder.env.run()
    return Timing(
        token_s=np.array(decoder.token_s),
        times=Times(total=decoder.env.now, **decoder.spent),
        events=sum(device.requests for device in (decoder.flash, decoder.dram, decoder.unit)),
        busy=decoder.busy(),
        guessed=decoder.guessed,
    )

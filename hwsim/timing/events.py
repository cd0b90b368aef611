"""The discrete-event engine: a decoder process that requests the work of each token from Flash, DRAM and compute.

There is one request for each (token, layer, group, device). Masks and hits are decided beforehand, because they do not
depend on time; the engine computes how long they take. An overlap mode, a class of `hwsim.timing.overlap`, decides what
may happen at once; the engine has what all modes share: devices, thermal throttling, accounts and observers.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any

import numpy as np
import simpy

from hwsim.device.profile import Thermal
from hwsim.timing.moments import MomentObserver
from hwsim.timing.overlap import Overlap, find
from hwsim.timing.server import Device, Steps
from hwsim.timing.steps import At, GroupWork, LayerWork
from hwsim.timing.times import Account, Accounts, Busy, Timing
from hwsim.timing.work import Work


class Decoder:
    """Decodes token after token; gives overlap modes access to devices, work and services.

    Args:
        load: work of the decode for each device.
        mode: what may happen at once.
        thermal: thermal throttling of Flash.
        observers: receive every service.

    Attributes:
        env: SimPy's clock.
        flash, dram, compute: the devices.
        spent: accounts of where the time goes.
        token_s: time of each token so far.
    """

    def __init__(
        self,
        load: Work,
        mode: type[Overlap],
        *,
        thermal: Thermal | None = None,
        observers: Iterable[MomentObserver] = (),
    ) -> None:
        self.env = simpy.Environment()
        self.load, self._thermal, self._observers = load, thermal, tuple(observers)
        self.flash, self.dram, self.compute = (Device(self.env, name) for name in ("flash", "dram", "compute"))
        self.spent = Accounts(part for parts in load.parts for part in parts)
        self.token_s: list[float] = []
        self._resident, self._streamed = load.resident.tolist(), load.streamed.tolist()
        self._mode = mode(self)

    def run(self, progress: Callable[[int], None] | None = None) -> Steps:
        """The decoder process."""
        load, mode, masked, compute = self.load, self._mode, self.spent.masked, self.spent.compute
        layers = load.layers
        for token in range(load.tokens):
            if token in load.starts:
                for device in (self.flash, self.dram, self.compute):
                    device.ahead.forget()
            start = self.env.now
            rows = [
                seconds[token].tolist()
                for seconds in (load.selection, load.dram, load.flash, load.fills, load.on_hits, load.on_misses)
            ]
            for layer in range(layers + 1):
                began = self.env.now
                at = At(token, layer)
                yield from mode.read_layer(at, self.layer_work(at))
                for group, part in enumerate(load.parts[layer] if layer < layers else ()):
                    at = At(token, layer, group)
                    work = GroupWork(masked[part], *[row[layer][group] for row in rows])
                    yield from self.serve(compute, self.compute, at, work.selection)
                    yield from mode.read_group(at, work)
                for observer in self._observers:
                    observer.slice("decoder", "layer", (token, layer, -1), began, self.env.now - began)
            self.token_s.append(self.env.now - start)
            for observer in self._observers:
                observer.slice("decoder", "token", (token, -1, -1), start, self.env.now - start)
            if progress:
                progress(token + 1)

    def timing(self) -> Timing:
        """The timing of the decode, once the process has ended."""
        return Timing(
            token_s=np.array(self.token_s),
            times=self.spent.times(self.env.now),
            busy=Busy(flash=self.flash.worked, dram=self.dram.worked, compute=self.compute.worked),
            events=sum(device.requests for device in (self.flash, self.dram, self.compute)),
            guessed=self._mode.guessed,
        )

    def layer_work(self, at: At) -> LayerWork:
        """The work of a layer outside its groups."""
        token, layer, load = at.token, at.layer, self.load
        return LayerWork(
            resident=self._resident[layer],
            kv_cache=load.kv_cache.item(token, layer) if layer < load.layers else 0.0,
            streamed=self._streamed[token if len(self._streamed) > 1 else 0][layer],
            arithmetic=load.unmasked.item(token, layer),
        )

    def after(self, at: At) -> At | None:
        """The step of the next layer; None at the end of a sequence."""
        load, token = self.load, at.token
        if at.layer < load.layers:
            return At(token, at.layer + 1)
        last = token + 1 == load.tokens or token + 1 in load.starts
        return None if last else At(token + 1, 0)

    def serve(self, account: Account, device: Device, at: At, seconds: float) -> Steps:
        """Let one device work while all others wait; the time goes to an account."""
        if seconds > 0:
            seconds = self._start(account, device, at, seconds)
            account.seconds += seconds
            yield from device.serve(seconds)

    def together(self, at: At, *requests: tuple[Account, Device, float]) -> Generator[simpy.Event, Any, list[float]]:
        """Let several devices work at once, and wait for all of them.

        Returns:
            The seconds of each. The caller decides to which account the time goes.
        """
        durations = []
        for account, device, seconds in requests:
            durations.append(device.wait(self._start(account, device, at, seconds)) if seconds > 0 else 0.0)
        if any(durations):
            yield self.env.timeout(max(durations))
        return durations

    def claim(self, device: Device, at: At, what: str) -> float:
        """Return the share of the posted reads for a step that a device has done ahead; the rest is dropped."""
        posted, share = device.ahead.posted(at), device.ahead.claim(at)
        if posted is not None:
            for observer in self._observers:
                observer.ahead(device.name, what, at, posted, self.env.now, share)
        return share

    def _start(self, account: Account, device: Device, at: At, seconds: float) -> float:
        """Return the seconds of a service that begins now, with thermal throttling, and inform the observers."""
        hot = self._thermal
        if hot is not None and device is self.flash and device.worked >= hot.after:
            seconds /= hot.factor
        for observer in self._observers:
            observer.slice(device.name, account.name, at, self.env.now, seconds)
        return seconds


def run_events(
    load: Work,
    *,
    overlap: str | type[Overlap],
    thermal: Thermal | None = None,
    observers: Iterable[MomentObserver] = (),
    progress: Callable[[int], None] | None = None,
) -> Timing:
    """Simulate a decode.

    Args:
        load: work of the decode for each device.
        overlap: the overlap mode, or its name.
        thermal: thermal throttling of Flash.
        observers: receive all services with their times.
        progress: callback, receives the number of tokens done.

    Raises:
        SettingError: there is no such mode.
    """
    mode = find(overlap) if isinstance(overlap, str) else overlap
    decoder = Decoder(load, mode, thermal=thermal, observers=observers)
    decoder.env.process(decoder.run(progress))
    decoder.env.run()
    return decoder.timing()

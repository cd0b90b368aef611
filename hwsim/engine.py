"""The discrete-event engine: a decoder process that asks Flash and DRAM for what each token needs.

One request for each (token, group, device). The masks and hits are decided beforehand, because they do not depend on
time; the engine turns them into time.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import simpy

from hwsim.bounds import is_mlp, kv_lengths, unmasked_operations
from hwsim.demand import Demand
from hwsim.devices import Device, compute_seconds, flash_seconds, stream_seconds
from hwsim.metrics import Times, Timing
from hwsim.placement import Placement
from hwsim.profile import Profile
from hwsim.trace.header import Sequence

_Steps = Generator[simpy.Event, Any, None]


class Decoder:
    """Decodes token after token; everything of a token happens in order, only Flash and DRAM may overlap in a group."""

    def __init__(self, demand: Demand, placement: Placement, profile: Profile, *, overlap: bool) -> None:
        self.env = simpy.Environment()
        self.flash, self.dram, self.unit = (Device(self.env, name) for name in ("flash", "dram", "compute"))
        self._placement, self._profile, self._overlap = placement, profile, overlap
        groups = placement.groups
        self._misses = (demand.requests - demand.hits).tolist()
        self._hit_bytes, self._indices = demand.hit_bytes(groups).tolist(), demand.indices(groups).tolist()
        last = demand.last_misses
        self._last = np.zeros_like(demand.hits).tolist() if last is None else last.tolist()
        self._flash_seconds = flash_seconds(profile.flash)
        self._dram_bandwidth = profile.dram.bandwidth
        self._streamed_s = stream_seconds(profile.flash, placement.streamed)
        self._kinds = ["mlp" if is_mlp(plan.group.slices) else "attention" for plan in placement.groups]
        self.spent = dict.fromkeys(("resident", "kv_cache", "streamed", "mlp", "attention", "compute"), 0.0)
        self.token_s: list[float] = []

    def run(self, lengths: list[int], progress: Callable[[int], None] | None) -> _Steps:
        """The decoder process: `lengths` are the KV entries that each token reads."""
        pinned, entry = self._placement.pinned_weights, self._placement.kv_entry
        for token, length in enumerate(lengths):
            start = self.env.now
            yield from self._work("resident", self.dram, pinned / self._dram_bandwidth)
            yield from self._work("kv_cache", self.dram, length * entry / self._dram_bandwidth)
            yield from self._work("streamed", self.flash, self._streamed_s)
            unmasked = unmasked_operations(self._placement, length)
            yield from self._compute(unmasked, len(self._misses[token]))
            for layer, misses in enumerate(self._misses[token]):
                for index, plan in enumerate(self._placement.groups):
                    from_dram = self._hit_bytes[token][layer][index] / self._dram_bandwidth
                    last = plan.last_slice_bytes if self._last[token][layer][index] else ()
                    from_flash = self._flash_seconds(misses[index], plan.slice_bytes, last)
                    yield from self._read(self._kinds[index], from_dram, from_flash)
                    yield from self._compute(2.0 * self._indices[token][layer][index] * plan.parameters, 1)
            self.token_s.append(self.env.now - start)
            if progress:
                progress(token + 1)

    def _work(self, what: str, device: Device, seconds: float) -> _Steps:
        if seconds > 0:
            self.spent[what] += seconds
            yield from device.serve(seconds)

    def _read(self, what: str, from_dram: float, from_flash: float) -> _Steps:
        if not self._overlap or from_dram == 0 or from_flash == 0:
            yield from self._work(what, self.dram, from_dram)
            yield from self._work(what, self.flash, from_flash)
            return
        start = self.env.now
        both = [self.env.process(self.dram.serve(from_dram)), self.env.process(self.flash.serve(from_flash))]
        yield self.env.all_of(both)
        self.spent[what] += self.env.now - start

    def _compute(self, operations: float, kernels: int) -> _Steps:
        yield from self._work("compute", self.unit, compute_seconds(self._profile, operations, kernels))


def run_events(
    demand: Demand,
    placement: Placement,
    profile: Profile,
    sequences: list[Sequence],
    *,
    overlap: bool,
    progress: Callable[[int], None] | None = None,
) -> Timing:
    """Simulate the decode of all sequences, one after the other.

    Args:
        demand: requests and hits of every token, layer and group.
        placement: where the bytes lie.
        profile: all that is known of the device.
        sequences: of the trace; they give the KV cache's length.
        overlap: Flash and DRAM work at the same time within a group.
        progress: is called with the number of tokens done.
    """
    decoder = Decoder(demand, placement, profile, overlap=overlap)
    decoder.env.process(decoder.run(kv_lengths(sequences).tolist(), progress))
    decoder.env.run()
    return Timing(
        token_s=np.array(decoder.token_s),
        times=Times(total=decoder.env.now, **decoder.spent),
        events=sum(device.requests for device in (decoder.flash, decoder.dram, decoder.unit)),
    )

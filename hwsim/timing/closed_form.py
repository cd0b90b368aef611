"""Closed forms: the timing model of arXiv 2412.01380, the yardstick for the event engine, and limits of any policy.

Flat bandwidths, no latency, no compute: a token costs its resident bytes / DRAM bandwidth, its streamed bytes / Flash
bandwidth, and for each group of each layer misses / Flash bandwidth + hits / DRAM bandwidth (or the larger of the two).
"""

from __future__ import annotations

import numpy as np

from hwsim.device.compute import compute_seconds
from hwsim.device.flash_times import stream_seconds
from hwsim.device.profile import Profile
from hwsim.masking.counts import Demand
from hwsim.memory.placement import Placement
from hwsim.model.shape import MLP
from hwsim.simulation.metrics import Busy, Times, Timing
from hwsim.trace.header import Sequence


def kv_lengths(sequences: list[Sequence], window: int | None = None) -> np.ndarray:
    """KV entries that each decoded token reads, prompt and itself included, of a window at most: int64 ``[tokens]``."""
    found = np.concatenate([np.arange(sequence.prompt, sequence.tokens, dtype=np.int64) + 1 for sequence in sequences])
    return found if window is None else np.minimum(found, window)


def closed_form(
    demand: Demand, placement: Placement, profile: Profile, sequences: list[Sequence],
    *, overlap: bool, kv_window: int | None = None,
) -> Timing:  # fmt: skip
    """The time of every decoded token.

    Args:
        demand: requests and hits of every token, layer and group.
        placement: where the bytes lie.
        profile: flat bandwidths are used, whatever else it knows.
        sequences: of the trace; they give the KV cache's length.
        overlap: Flash and DRAM work at the same time within a group.
        kv_window: entries that a token reads at most; None: all.
    """
    dram, flash = profile.dram.bandwidth, profile.flash.read_bandwidth
    kv = kv_lengths(sequences, kv_window) * placement.kv_entry / dram
    resident, streamed = placement.pinned_weights / dram, placement.streamed / flash
    from_flash = demand.miss_bytes(placement.groups) / flash
    from_dram = demand.hit_bytes(placement.groups) / dram
    parts = np.maximum(from_flash, from_dram) if overlap else from_flash + from_dram
    by_group = parts.sum(axis=1)
    token_s = resident + kv + streamed + by_group.sum(axis=1)
    tokens, in_mlp = len(token_s), [is_mlp(plan.group.slices) for plan in placement.groups]
    times = Times(
        total=float(token_s.sum()),
        resident=tokens * resident,
        kv_cache=float(kv.sum()),
        streamed=tokens * streamed,
        mlp=float(by_group[:, in_mlp].sum()),
        attention=float(by_group[:, [not inside for inside in in_mlp]].sum()),
        compute=0.0,
    )
    busy = Busy(
        flash=times.streamed + float(from_flash.sum()),
        dram=times.resident + times.kv_cache + float(from_dram.sum()),
        compute=0.0,
    )
    return Timing(token_s=token_s, times=times, busy=busy)


def operations(demand: Demand, placement: Placement, sequences: list[Sequence], kv_window: int | None = None) -> float:
    """Arithmetic operations of the whole decode: two for each weight that is read, and attention over the KV cache."""
    lengths = kv_lengths(sequences, kv_window)
    weights = placement.attention_parameters + placement.unmasked_mlp + placement.predictor_parameters
    weights += placement.adapter.counted if placement.adapter else 0
    unmasked = len(lengths) * (2.0 * weights + 2.0 * float(lengths.mean()) * placement.macs_per_entry)
    parameters = np.array([plan.parameters for plan in placement.groups], np.int64)
    return unmasked + 2.0 * float((demand.indices(placement.groups).sum(axis=(0, 1)) * parameters).sum())


def is_mlp(slices: list[str]) -> bool:
    """Whether a group belongs to the MLP: any of its slices does."""
    return any(name.partition(".")[0] in MLP for name in slices)


def prefill_seconds(
    placement: Placement,
    profile: Profile,
    sequences: list[Sequence],
    *,
    flat: bool = True,
    chunk: int | None = None,
    beside: bool = False,
) -> float | None:
    """Time to first token, mean over the sequences that have a prompt; None if none has.

    The prompt goes through the model in chunks. Each is one dense pass that reads every weight once, pinned ones from
    DRAM and all others from Flash, and the KV entries up to its end from DRAM. Where the profile knows the compute
    rate, there is arithmetic: two operations for each weight and prompt token, attention over the entries before each
    token and its own, and one kernel a layer and chunk. No masks are applied to a prompt.

    Args:
        placement: where the bytes lie.
        profile: the device.
        sequences: of the trace.
        flat: Flash is read at its flat bandwidth, as in the closed form; else as the engine streams weights.
        chunk: tokens of a chunk; None: the whole prompt.
        beside: a chunk's arithmetic is done while weights are read: it takes as long as the longer of both.
    """
    prompts = [sequence.prompt for sequence in sequences if sequence.prompt]
    if not prompts:
        return None
    weights = placement.pinned_weights / profile.dram.bandwidth
    from_flash = placement.streamed + placement.sparse
    weights += from_flash / profile.flash.read_bandwidth if flat else stream_seconds(profile.flash, from_flash)

    def one(prompt: int) -> float:
        total = 0.0
        for start in range(0, prompt, chunk or prompt):
            end = min(start + (chunk or prompt), prompt)
            reading = weights + end * placement.kv_entry / profile.dram.bandwidth
            pairs = (end * (end + 1) - start * (start + 1)) // 2
            count = 2.0 * (end - start) * placement.parameters + 2.0 * pairs * placement.macs_per_entry
            arithmetic = compute_seconds(profile, count, placement.layers)
            total += max(reading, arithmetic) if beside else reading + arithmetic
        return total

    return sum(map(one, prompts)) / len(prompts)


def fastest_token(placement: Placement, profile: Profile, kv_tokens: int = 0) -> float:
    """Seconds of a token whose masks ask for nothing: no policy can be faster on this placement."""
    return (placement.pinned_weights + kv_tokens * placement.kv_entry) / profile.dram.bandwidth + (
        placement.streamed / profile.flash.read_bandwidth
    )


def uniform_hit_rate(capacity: int, units: int) -> float:
    """Hit rate of any rule without foresight when masks are uniform and independent and the cache is full."""
    return capacity / units

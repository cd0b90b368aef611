"""Closed forms: the timing model of arXiv 2412.01380, the reference for the event engine, and limits of any policy.

Bandwidths are flat; there is no latency and no compute. The time of a token is the sum of resident bytes / DRAM
bandwidth, streamed bytes / Flash bandwidth, and for each group of each layer misses / Flash bandwidth + hits / DRAM
bandwidth (or the larger of these two).
"""

from __future__ import annotations

import numpy as np

from hwsim.device.compute import compute_seconds
from hwsim.device.flash_times import stream_seconds
from hwsim.device.profile import Profile
from hwsim.memory.placement import Placement
from hwsim.timing.overlap import ClosedForm
from hwsim.timing.times import Busy, Times, Timing
from hwsim.timing.work import Decode
from hwsim.trace.header import Sequence


def closed_form(decode: Decode, rule: ClosedForm) -> Timing:
    """The time of every decoded token.

    Args:
        decode: the decode; only the flat bandwidths of its device are used.
        rule: whether a group takes the sum of its reads of Flash and DRAM, or the larger of the two.
    """
    counts, where, plans = decode.counts, decode.placement.bytes, decode.placement.plans
    dram, flash = decode.device.dram.bandwidth, decode.device.flash.read_bandwidth
    kv = decode.kv_bytes / dram
    resident = where.pinned / dram
    streamed = (where.streamed + decode.steps.sizes * where.looked_up) / flash
    from_flash, from_dram = counts.miss_bytes(plans) / flash, counts.hit_bytes(plans) / dram
    masked = {"sum": np.add, "larger": np.maximum}[rule](from_flash, from_dram)
    token_s = resident + kv + streamed + masked.sum(axis=1).sum(axis=1)
    times = Times(
        total=float(token_s.sum()),
        resident=len(token_s) * resident,
        kv_cache=float(kv.sum()),
        streamed=len(token_s) * float(streamed[0]) if decode.steps.single else float(streamed.sum()),
        compute=0.0,
        masked=_by_part(decode.placement, masked),
    )
    busy = Busy(
        flash=times.streamed + float(from_flash.sum()),
        dram=times.resident + times.kv_cache + float(from_dram.sum()),
        compute=0.0,
    )
    return Timing(token_s=token_s, times=times, busy=busy)


def _by_part(placement: Placement, seconds: np.ndarray) -> dict[str, float]:
    """Sums of `seconds`, float64 ``[tokens, layers, slots]``, over the groups of each part of the model."""
    labels = [
        {layer[slot].part for layer in placement.plans.by_layer if slot < len(layer)}
        for slot in range(seconds.shape[2])
    ]
    parts = sorted({part for slot in labels for part in slot})
    sums = {}
    for part in parts:
        own = seconds
        if any(part in slot and len(slot) > 1 for slot in labels):  # a slot holds different parts in different layers
            own = seconds * placement.plans.table(lambda plan, part=part: plan.part == part, bool)  # type: ignore[misc]
        sums[part] = float(own.sum(axis=1)[:, [part in slot for slot in labels]].sum())
    return sums


def operations(decode: Decode) -> float:
    """Arithmetic operations of a decode: two for each weight that is read, and attention over the KV cache."""
    placement, parameters, tokens = decode.placement, decode.placement.parameters, decode.members
    weights = sum(parameters.attention) + parameters.lm_head + sum(parameters.mlp) + parameters.predictor
    weights += placement.adapter.counted if placement.adapter else 0
    unmasked = tokens * (2.0 * weights + 2.0 * decode.kv.mean_macs(decode.steps.lengths))
    per_index = placement.plans.table(lambda plan: plan.parameters)
    return unmasked + 2.0 * float((decode.counts.indices(placement.plans).sum(axis=0) * per_index).sum())


def prefill_seconds(
    placement: Placement,
    profile: Profile,
    sequences: list[Sequence],
    *,
    flat: bool = True,
    chunk: int | None = None,
    beside: bool = False,
) -> float | None:
    """Time to first token in seconds, mean over the sequences that have a prompt; None if none has.

    The prompt goes through the model in chunks. Each chunk is one dense pass that reads every weight once, pinned
    weights from DRAM and all others from Flash, and the KV entries up to its end from DRAM. If the profile gives the
    compute rate, arithmetic is added: two operations for each weight and prompt token, attention over the entries that
    each token reads, and one kernel for each layer and chunk. No masks are applied to a prompt.

    Args:
        placement: where the bytes lie.
        profile: the device.
        sequences: sequences of the trace.
        flat: whether Flash is read at its flat bandwidth, as in the closed form; otherwise as the engine streams.
        chunk: tokens of a chunk; None: the whole prompt.
        beside: whether a chunk's arithmetic is done while weights are read, so that the longer of both counts.
    """
    prompts = [sequence.prompt for sequence in sequences if sequence.prompt]
    if not prompts:
        return None
    where, parameters = placement.bytes, placement.parameters
    weights = where.pinned / profile.dram.bandwidth
    from_flash = where.streamed + where.looked_up + where.sparse
    weights += from_flash / profile.flash.read_bandwidth if flat else stream_seconds(profile.flash, from_flash)

    def one(prompt: int) -> float:
        total = 0.0
        for start in range(0, prompt, chunk or prompt):
            end = min(start + (chunk or prompt), prompt)
            entries, pairs = where.kv.chunk(start, end)
            reading = weights + (entries + where.kv.state_traffic) / profile.dram.bandwidth
            count = 2.0 * (end - start) * parameters.total + 2.0 * pairs
            arithmetic = compute_seconds(profile, count, placement.layers)
            total += max(reading, arithmetic) if beside else reading + arithmetic
        return total

    return sum(map(one, prompts)) / len(prompts)


def fastest_token(placement: Placement, profile: Profile, kv_tokens: int = 0) -> float:
    """Seconds of a token with empty masks: no policy can be faster on this placement."""
    where = placement.bytes
    kept = where.pinned + where.kv.reserved(kv_tokens) + where.kv.state_traffic
    return kept / profile.dram.bandwidth + (where.streamed + where.looked_up) / profile.flash.read_bandwidth


def uniform_hit_rate(capacity: int, units: int) -> float:
    """Expected hit rate of any rule without foresight if masks are uniform and independent and the cache is full."""
    return capacity / units

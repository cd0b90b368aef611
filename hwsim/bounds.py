"""Closed forms: the timing model of arXiv 2412.01380, the yardstick for the event engine, and limits of any policy.

Flat bandwidths, no latency, no compute: a token costs its resident bytes / DRAM bandwidth, its streamed bytes / Flash
bandwidth, and for each group of each layer misses / Flash bandwidth + hits / DRAM bandwidth (or the larger of the two).
"""

from __future__ import annotations

import numpy as np

from hwsim.demand import Demand
from hwsim.devices import compute_seconds, stream_seconds
from hwsim.metrics import Times, Timing
from hwsim.model import MLP
from hwsim.placement import Placement
from hwsim.profile import Profile
from hwsim.trace.header import Sequence


def kv_lengths(sequences: list[Sequence]) -> np.ndarray:
    """KV entries that each decoded token reads, prompt and itself included: int64 ``[tokens]``."""
    return np.concatenate([np.arange(sequence.prompt, sequence.tokens, dtype=np.int64) + 1 for sequence in sequences])


def closed_form(
    demand: Demand, placement: Placement, profile: Profile, sequences: list[Sequence], *, overlap: bool
) -> Timing:
    """The time of every decoded token.

    Args:
        demand: requests and hits of every token, layer and group.
        placement: where the bytes lie.
        profile: flat bandwidths are used, whatever else it knows.
        sequences: of the trace; they give the KV cache's length.
        overlap: Flash and DRAM work at the same time within a group.
    """
    dram, flash = profile.dram.bandwidth, profile.flash.read_bandwidth
    kv = kv_lengths(sequences) * placement.kv_entry / dram
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
    return Timing(token_s=token_s, times=times)


def unmasked_operations(placement: Placement, kv_length: float) -> float:
    """Arithmetic operations of one token outside the groups: two for each weight, and attention over the KV cache."""
    weights = placement.attention_parameters + placement.unmasked_mlp + placement.predictor_parameters
    weights += placement.adapter.counted if placement.adapter else 0
    return 2.0 * weights + 2.0 * kv_length * placement.macs_per_entry


def operations(demand: Demand, placement: Placement, sequences: list[Sequence]) -> float:
    """Arithmetic operations of the whole decode."""
    lengths = kv_lengths(sequences)
    unmasked = len(lengths) * unmasked_operations(placement, float(lengths.mean()))
    parameters = np.array([plan.parameters for plan in placement.groups], np.int64)
    return unmasked + 2.0 * float((demand.indices(placement.groups).sum(axis=(0, 1)) * parameters).sum())


def is_mlp(slices: list[str]) -> bool:
    """Whether a group belongs to the MLP: any of its slices does."""
    return any(name.partition(".")[0] in MLP for name in slices)


def prefill_seconds(
    placement: Placement, profile: Profile, sequences: list[Sequence], *, flat: bool = True
) -> float | None:
    """Time to first token, mean over the sequences that have a prompt; None if none has.

    A lower bound: the prompt is one dense pass that reads every weight once, pinned ones from DRAM and all others from
    Flash, and the prompt's KV entries from DRAM. Where the profile knows the compute rate, the arithmetic is added, as
    the engine does: two operations for each weight and prompt token, attention over the entries before each token and
    its own, and one kernel a layer.

    Args:
        flat: Flash is read at its flat bandwidth, as in the closed form; else as the engine streams weights.
    """
    prompts = [sequence.prompt for sequence in sequences if sequence.prompt]
    if not prompts:
        return None
    weights = placement.pinned_weights / profile.dram.bandwidth
    from_flash = placement.streamed + placement.sparse
    weights += from_flash / profile.flash.read_bandwidth if flat else stream_seconds(profile.flash, from_flash)
    return sum(_prefill_seconds(placement, profile, prompt) for prompt in prompts) / len(prompts) + weights


def _prefill_seconds(placement: Placement, profile: Profile, prompt: int) -> float:
    """What depends on the length of the prompt: its KV entries and its arithmetic."""
    pairs = prompt * (prompt + 1) // 2
    operations = 2.0 * prompt * placement.parameters + 2.0 * pairs * placement.macs_per_entry
    return prompt * placement.kv_entry / profile.dram.bandwidth + compute_seconds(profile, operations, placement.layers)


def fastest_token(placement: Placement, profile: Profile, kv_tokens: int = 0) -> float:
    """Seconds of a token whose masks ask for nothing: no policy can be faster on this placement."""
    return (placement.pinned_weights + kv_tokens * placement.kv_entry) / profile.dram.bandwidth + (
        placement.streamed / profile.flash.read_bandwidth
    )


def uniform_hit_rate(capacity: int, units: int) -> float:
    """Hit rate of any rule without foresight when masks are uniform and independent and the cache is full."""
    return capacity / units

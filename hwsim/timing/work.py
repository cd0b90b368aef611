"""What a decode asks of each device, in seconds: the work that the engine plays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hwsim.device.compute import Arithmetic
from hwsim.device.flash_times import FlashTimes, Reads, stream_seconds
from hwsim.device.profile import Flash, Profile
from hwsim.masking.counts import Demand
from hwsim.memory.placement import GroupPlan, Placement
from hwsim.model.shape import Bits
from hwsim.timing.closed_form import is_mlp, kv_lengths
from hwsim.timing.reads import ReadSetup
from hwsim.trace.header import Sequence


@dataclass(frozen=True, eq=False)
class Load:
    """Work of a decode, float64 seconds. After the last layer comes one more step, the LM head.

    Attributes:
        resident: ``[layers + 1]``: of DRAM, for pinned weights.
        streamed: ``[layers + 1]``: of Flash, for weights that do not fit.
        kv_cache: ``[tokens]``: of DRAM, for one layer's entries.
        unmasked: ``[tokens, layers + 1]``: of arithmetic outside the groups.
        selection: ``[tokens, layers, groups]``: of choosing masks and keeping the caches.
        flash: ``[tokens, layers, groups]``: of Flash, for misses.
        dram: ``[tokens, layers, groups]``: of DRAM, for hits.
        fills: ``[tokens, layers, groups]``: of DRAM, for writing what comes from Flash; reading it takes as long again.
        on_hits, on_misses: ``[tokens, layers, groups]``: of arithmetic.
        kinds: of each group: mlp or attention.
        starts: tokens at which a sequence begins.
        ahead: ``[tokens, layers, groups]``: of Flash, for reading a guess ahead; None: nothing is.
        left: ``[tokens, layers, groups]``: of Flash, for misses that the whole guess would leave.
    """

    resident: np.ndarray
    streamed: np.ndarray
    kv_cache: np.ndarray
    unmasked: np.ndarray
    selection: np.ndarray
    flash: np.ndarray
    dram: np.ndarray
    fills: np.ndarray
    on_hits: np.ndarray
    on_misses: np.ndarray
    kinds: tuple[str, ...]
    starts: frozenset[int] = frozenset({0})
    ahead: np.ndarray | None = None
    left: np.ndarray | None = None

    @property
    def tokens(self) -> int:
        """Decoded tokens."""
        return len(self.kv_cache)

    @property
    def layers(self) -> int:
        """Layers, the LM head apart."""
        return len(self.resident) - 1


def make_load(
    demand: Demand, placement: Placement, profile: Profile, sequences: list[Sequence],
    *, bits: Bits | None = None, reads: ReadSetup | None = None, fills: bool = False, kv_window: int | None = None,
    rows: slice | None = None,
) -> Load:  # fmt: skip
    """The work of a decode.

    Args:
        demand: requests and hits of every token, layer and group.
        placement: where the bytes lie.
        profile: the device.
        sequences: of the trace; they give the KV cache's length.
        bits: of weights, where the rate of arithmetic depends on them.
        reads: how units lie in Flash and are read.
        fills: what comes from Flash goes through DRAM.
        kv_window: entries that a token reads at most; None: all.
        rows: only the work of these tokens; None: of all.
    """
    bits, reads = bits or Bits(), reads or ReadSetup()
    plans, dram, arithmetic = placement.groups, profile.dram.bandwidth, Arithmetic(profile.compute)
    lengths = kv_lengths(sequences, kv_window)
    if rows is not None:
        demand, lengths = demand.part(rows), lengths[rows]
    shape = demand.requests.shape
    pinned, streamed = placement.by_layer()
    missed, found = demand.miss_bytes(plans), demand.hit_bytes(plans)
    per_index = np.array([2.0 * plan.parameters * _rate(arithmetic, plan, bits) for plan in plans])
    operations = demand.indices(plans) * per_index
    hit_share = np.divide(demand.hits, demand.requests, out=np.zeros(shape), where=demand.requests > 0)
    on_hits = operations * hit_share
    flash, ahead, left = _flash(demand, plans, FlashTimes(profile.flash, placement.sparse), profile.flash, reads)
    selection = np.zeros(shape)
    if arithmetic.selection or arithmetic.bookkeeping:
        units = np.array([plan.indices for plan in plans], float)
        selection = arithmetic.selection * units + arithmetic.bookkeeping * demand.requests
    return Load(
        resident=np.array(pinned) / dram,
        streamed=np.array([stream_seconds(profile.flash, size) for size in streamed]),
        kv_cache=lengths * (placement.kv_entry / placement.layers / dram),
        unmasked=_unmasked(placement, arithmetic, bits, lengths),
        selection=selection,
        flash=flash,
        dram=found / dram,
        fills=missed / dram if fills else np.zeros(shape),
        on_hits=on_hits + (arithmetic.overhead if len(plans) else 0.0),
        on_misses=operations - on_hits,
        kinds=tuple("mlp" if is_mlp(plan.group.slices) else "attention" for plan in plans),
        starts=sequence_starts(sequences),
        ahead=ahead,
        left=left,
    )


def sequence_starts(sequences: list[Sequence]) -> frozenset[int]:
    """Decoded tokens at which a sequence begins."""
    ends = np.cumsum([0] + [sequence.tokens - sequence.prompt for sequence in sequences])
    return frozenset(ends[:-1].tolist())


def _rate(arithmetic: Arithmetic, plan: GroupPlan, bits: Bits) -> float:
    """Seconds of an operation with the weights of a group."""
    return arithmetic.seconds_per_operation(bits.of(plan.group.slices[0].partition(".")[0]))


def _unmasked(placement: Placement, arithmetic: Arithmetic, bits: Bits, lengths: np.ndarray) -> np.ndarray:
    """Arithmetic outside the groups: two operations for each weight, attention over the KV cache, a kernel a layer."""
    layers, pace = placement.layers, arithmetic.seconds_per_operation
    attention = 2.0 * (placement.attention_parameters - placement.head_parameters) * pace(bits.attention)
    mlp = 2.0 * placement.unmasked_mlp * pace(bits.mlp)
    extra = 2.0 * placement.predictor_parameters * pace(bits.predictor)
    extra += 2.0 * (placement.adapter.counted if placement.adapter else 0) * pace(bits.adapter)
    pairs = 2.0 * placement.macs_per_entry * pace(bits.kv_cache)
    seconds = np.empty((len(lengths), layers + 1))
    seconds[:, :layers] = ((attention + mlp + extra) + lengths[:, None] * pairs) / layers + arithmetic.overhead
    seconds[:, layers] = 2.0 * placement.head_parameters * pace(bits.lm_head)
    return seconds


def _flash(
    demand: Demand, plans: tuple[GroupPlan, ...], times: FlashTimes, flash: Flash, reads: ReadSetup
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Seconds of the misses; of a guess that is read ahead, and of the misses that it would leave."""
    seen = demand.seen
    misses, last = (demand.requests - demand.hits).astype(np.int64), demand.last_misses
    found = np.zeros(misses.shape)
    guess = seen is not None and seen.ahead is not None
    ahead, left = (np.zeros(misses.shape) if guess else None for _ in range(2))
    for index, plan in enumerate(plans):
        at = (slice(None), slice(None), index)
        short = last[at].astype(np.int64) if plan.short and last is not None else None
        if seen is not None and seen.reads is not None and seen.read_bytes is not None:
            count = seen.reads[at]
            size = np.divide(seen.read_bytes[at], count, out=np.zeros(count.shape), where=count > 0)
            found[at] = times.alike(count, seen.read_bytes[at])
            shares = (count, size, misses[at])
        else:
            found[at] = times.seconds(unit_reads(plan, flash, reads, misses[at], short))
            shares = None
        if seen is None or seen.ahead is None or seen.useful is None or ahead is None or left is None:
            continue
        still = misses[at] - seen.useful[at]
        if shares is None:
            ahead[at] = times.seconds(unit_reads(plan, flash, reads, seen.ahead[at]))
            left[at] = times.seconds(unit_reads(plan, flash, reads, still))
        else:  # merged reads: as many of a guess become one read as of the misses
            count, size, missed = shares
            for target, units in ((ahead, seen.ahead[at]), (left, still)):
                share = np.divide(units, missed, out=units.astype(float), where=missed > 0)
                alike = np.where(missed > 0, size, sum(plan.slice_bytes) / len(plan.slice_bytes))
                target[at] = times.seconds([(np.ceil(count * share), alike)])
    return found, ahead, left


def unit_reads(
    plan: GroupPlan, flash: Flash, reads: ReadSetup, units: np.ndarray, short: np.ndarray | None = None
) -> list[Reads]:
    """Reads of units that are read one by one: how many, and bytes of each in whole pages.

    Args:
        plan: their group.
        flash: gives the size of a page.
        reads: how units lie in Flash.
        units: how many.
        short: whether the group's last unit, which is smaller, is among them.
    """
    page = flash.page_size or 1
    slices, lasts = reads.slices(plan)
    full = units if short is None else units - short
    found: list[Reads] = [(full, -(-size // page) * page) for size in slices]
    return found if short is None else found + [(short, -(-size // page) * page) for size in lasts]

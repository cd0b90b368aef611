"""What a decode asks of each device, in seconds: the work that the engine plays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hwsim.device.compute import Arithmetic
from hwsim.device.flash_times import FlashTimes, Reads, stream_seconds
from hwsim.device.profile import Flash, Profile
from hwsim.masking.counts import Counts
from hwsim.masking.guesses import Guesses
from hwsim.memory.groups import GroupPlan
from hwsim.memory.placement import Placement
from hwsim.model.shape import Bits
from hwsim.timing.reads import ReadCounts, ReadSetup
from hwsim.trace.sequences import Sequences


@dataclass(frozen=True, eq=False)
class Decode:
    """Everything that decides how long a decode takes.

    Attributes:
        counts: requests and hits of every token, layer and group.
        placement: where the bytes lie.
        device: the profile, as the run sees it.
        sequences: of the source; they give the KV cache's length.
        bits: of weights, where the rate of arithmetic depends on them.
        setup: how units lie in Flash and are read.
        fills: what comes from Flash goes through DRAM.
        kv_window: entries of the KV cache that a token reads at most; None: all.
        reads: reads that were counted; None: units are read one by one.
        guesses: what would have been read ahead; None: nothing.
    """

    counts: Counts
    placement: Placement
    device: Profile
    sequences: Sequences
    bits: Bits
    setup: ReadSetup
    fills: bool = False
    kv_window: int | None = None
    reads: ReadCounts | None = None
    guesses: Guesses | None = None

    @cached_property
    def kv_lengths(self) -> np.ndarray:
        """KV entries that each decoded token reads: int64 ``[tokens]``."""
        return self.sequences.kv_lengths(self.kv_window)


@dataclass(frozen=True, eq=False)
class Work:
    """Work of a decode, float64 seconds. After the last layer comes one more step, the LM head.

    Layers may have different groups. Arrays have as many groups as the layer that has most; where a layer has fewer,
    the rest is zeros.

    Attributes:
        resident: ``[layers + 1]``: of DRAM, for pinned weights.
        streamed: ``[layers + 1]``: of Flash, for weights that do not fit.
        kv_cache: ``[tokens, layers]``: of DRAM, for a layer's entries.
        unmasked: ``[tokens, layers + 1]``: of arithmetic outside the groups.
        selection: ``[tokens, layers, slots]``: of choosing masks and keeping the caches.
        flash: ``[tokens, layers, slots]``: of Flash, for misses.
        dram: ``[tokens, layers, slots]``: of DRAM, for hits.
        fills: ``[tokens, layers, slots]``: of DRAM, for writing what comes from Flash; reading it takes as long again.
        on_hits, on_misses: ``[tokens, layers, slots]``: of arithmetic.
        parts: ``[layers][slots]``: label of the part of the model that a group belongs to, such as mlp or attention;
            times are added up by it.
        starts: tokens at which a sequence begins.
        ahead: ``[tokens, layers, slots]``: of Flash, for reading a guess ahead; None: nothing is.
        left: ``[tokens, layers, slots]``: of Flash, for misses that the whole guess would leave.
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
    parts: tuple[tuple[str, ...], ...]
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

    @property
    def groups(self) -> int:
        """Groups of the layer that has most."""
        return self.flash.shape[2]


def make_work(decode: Decode, rows: slice | None = None) -> Work:
    """The work of a decode, or of some of its tokens."""
    rows = slice(None) if rows is None else rows
    counts, lengths = decode.counts.part(rows), decode.kv_lengths[rows]
    placement, device = decode.placement, decode.device
    plans, dram, arithmetic = placement.plans, device.dram.bandwidth, Arithmetic(device.compute)
    shape = counts.requests.shape
    pinned, streamed = placement.bytes.by_step()
    missed, cached = counts.miss_bytes(plans), counts.hit_bytes(plans)
    pace = arithmetic.seconds_per_operation
    per_index = plans.table(lambda plan: 2.0 * plan.parameters * pace(plan.bits), float)
    operations = counts.indices(plans) * per_index
    hit_share = np.divide(counts.hits, counts.requests, out=np.zeros(shape), where=counts.requests > 0)
    on_hits = operations * hit_share
    overhead = plans.table(lambda plan: arithmetic.overhead, float)
    flash, ahead, left = _flash(decode, counts, rows)
    selection = np.zeros(shape)
    if arithmetic.selection or arithmetic.bookkeeping:
        units = plans.table(lambda plan: plan.indices, float)
        selection = arithmetic.selection * units + arithmetic.bookkeeping * counts.requests
    return Work(
        resident=np.array(pinned) / dram,
        streamed=np.array([stream_seconds(device.flash, size) for size in streamed]),
        kv_cache=lengths[:, None] * (np.array(placement.bytes.kv_entries) / dram),
        unmasked=_unmasked(placement, arithmetic, decode.bits, lengths),
        selection=selection,
        flash=flash,
        dram=cached / dram,
        fills=missed / dram if decode.fills else np.zeros(shape),
        on_hits=on_hits + overhead,
        on_misses=operations - on_hits,
        parts=tuple(tuple(plan.part for plan in layer) for layer in plans.by_layer),
        starts=decode.sequences.starts,
        ahead=ahead,
        left=left,
    )


def _unmasked(placement: Placement, arithmetic: Arithmetic, bits: Bits, lengths: np.ndarray) -> np.ndarray:
    """Arithmetic outside the groups: two operations for each weight, attention over the KV cache, a kernel a layer.

    A layer's share is that of a model whose layers are all like it, so that it is rounded as the sum over a model is.
    """
    parameters, layers, pace = placement.parameters, placement.layers, arithmetic.seconds_per_operation
    attention, mlp, pairs = (
        2.0 * (layers * np.array(numbers, float)) * pace(width)
        for numbers, width in (
            (parameters.attention, bits.attention),
            (parameters.mlp, bits.mlp),
            (parameters.macs_per_entry, bits.kv_cache),
        )
    )
    extra = 2.0 * parameters.predictor * pace(bits.predictor)
    extra += 2.0 * (placement.adapter.counted if placement.adapter else 0) * pace(bits.adapter)
    seconds = np.empty((len(lengths), layers + 1))
    seconds[:, :layers] = ((attention + mlp + extra) + lengths[:, None] * pairs) / layers + arithmetic.overhead
    seconds[:, layers] = 2.0 * parameters.lm_head * pace(bits.lm_head)
    return seconds


def _flash(decode: Decode, counts: Counts, rows: slice) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Seconds of the misses; of a guess that is read ahead, and of the misses that remain if all of it is read."""
    flash, setup, guesses = decode.device.flash, decode.setup, decode.guesses
    times = FlashTimes(flash, decode.placement.bytes.sparse)
    misses, last = counts.misses, counts.last_misses
    seconds = np.zeros(misses.shape)
    ahead, left = (None if guesses is None else np.zeros(misses.shape) for _ in range(2))
    reads, size = (None, None) if decode.reads is None else (decode.reads.reads[rows], decode.reads.size[rows])
    for plan, at in decode.placement.plans.alike(lambda plan: (plan.name, *setup.slices(plan), plan.slice_bytes)):
        short = last[at].astype(np.int64) if plan.short and last is not None else None
        if reads is not None and size is not None:
            seconds[at] = times.alike(reads[at], size[at])
        else:
            seconds[at] = times.seconds(unit_reads(plan, flash, setup, misses[at], short))
        if guesses is None or ahead is None or left is None:
            continue
        guessed, still = guesses.ahead[rows][at], misses[at] - guesses.useful[rows][at]
        if reads is None or size is None:
            ahead[at] = times.seconds(unit_reads(plan, flash, setup, guessed))
            left[at] = times.seconds(unit_reads(plan, flash, setup, still))
            continue
        # merged reads: as many of a guess become one read as of the misses
        count, missed = reads[at], misses[at]
        mean = np.divide(size[at], count, out=np.zeros(count.shape), where=count > 0)
        for target, units in ((ahead, guessed), (left, still)):
            share = np.divide(units, missed, out=units.astype(float), where=missed > 0)
            alike = np.where(missed > 0, mean, sum(plan.slice_bytes) / len(plan.slice_bytes))
            target[at] = times.seconds([(np.ceil(count * share), alike)])
    return seconds, ahead, left


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
    whole: list[Reads] = [(full, -(-size // page) * page) for size in slices]
    return whole if short is None else whole + [(short, -(-size // page) * page) for size in lasts]

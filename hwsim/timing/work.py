"""The work of a decode for each device, in seconds, which the engine simulates."""

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
from hwsim.memory.kv_cache import KVCache
from hwsim.memory.placement import Placement
from hwsim.model.shape import Bits
from hwsim.timing.reads import ReadCounts, ReadSetup
from hwsim.trace.steps import Steps


@dataclass(frozen=True, eq=False)
class Decode:
    """Everything that decides how long a decode takes.

    Attributes:
        counts: requests and hits of every token, layer and group.
        placement: where the bytes lie.
        device: the effective profile of the run.
        steps: what goes through the model together, which gives the length of the KV cache.
        bits: bits of weights, on which the rate of arithmetic may depend.
        setup: how units lie in Flash and are read.
        fills: whether units from Flash are written to DRAM and read from there.
        reads: counted reads of Flash; None: units are read one by one.
        guesses: predictions of a prefetch rule, or None.
    """

    counts: Counts
    placement: Placement
    device: Profile
    steps: Steps
    bits: Bits
    setup: ReadSetup
    fills: bool = False
    reads: ReadCounts | None = None
    guesses: Guesses | None = None

    @property
    def kv(self) -> KVCache:
        """KV cache and fixed states of a sequence."""
        return self.placement.bytes.kv

    @property
    def members(self) -> int:
        """Members of all steps."""
        return len(self.steps.rows)

    @cached_property
    def kv_bytes(self) -> np.ndarray:
        """Bytes that each step reads from KV caches, and reads and writes of fixed states: int64 ``[steps]``."""
        steps, kv = self.steps, self.kv
        read = steps.sums(kv.read_bytes(steps.lengths)) + steps.sizes * kv.state_traffic
        for step in np.flatnonzero(steps.prompts).tolist():  # a chunk reads each entry once
            members = steps.members(step)
            read[step] = kv.chunk(*_span(steps.lengths[members]))[0] + kv.state_traffic
        return read

    def kv_entries(self, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """KV entries of some steps: int64 ``[steps, layers]`` each.

        Returns:
            Entries that a step reads, those of each member's own sequence, or of a prompt's chunk together; and entries
            that its members multiply.
        """
        steps, kv = self.steps, self.kv
        if steps.single and not steps.prompts.any():
            lengths = kv.lengths(steps.lengths[rows])
            return lengths, lengths
        first, last = range(len(steps))[rows].start, range(len(steps))[rows].stop
        offsets = steps.offsets[first : last + 1]
        pairs = np.add.reduceat(kv.lengths(steps.lengths[offsets[0] : offsets[-1]]), offsets[:-1] - offsets[0], axis=0)
        entries = pairs.copy()
        windows = np.array([np.iinfo(np.int64).max if window is None else window for window in kv.windows])
        for step in np.flatnonzero(steps.prompts[rows]).tolist():
            start, stop = _span(steps.lengths[offsets[step] : offsets[step + 1]])
            entries[step] = stop - np.maximum(0, start + 1 - windows)
        return entries, pairs


def _span(lengths: np.ndarray) -> tuple[int, int]:
    """The tokens of a prompt before a chunk, and up to its end, from the KV entries of its members."""
    return int(lengths[0]) - 1, int(lengths[-1])


@dataclass(frozen=True, eq=False)
class Work:
    """Work of a decode, float64 seconds. After the last layer comes one more step, the LM head.

    Layers may have different groups. Arrays have as many slots as the layer with the most groups; a layer with fewer
    groups has zeros in the other slots.

    Attributes:
        resident: ``[layers + 1]``: DRAM time of pinned weights.
        streamed: ``[tokens or 1, layers + 1]``: Flash time of weights that do not fit into DRAM; one row for all tokens
            alike.
        kv_cache: ``[tokens, layers]``: DRAM time of a layer's KV entries.
        unmasked: ``[tokens, layers + 1]``: time of arithmetic outside the groups.
        selection: ``[tokens, layers, slots]``: time of choosing masks and updating the caches.
        flash: ``[tokens, layers, slots]``: Flash time of misses.
        dram: ``[tokens, layers, slots]``: DRAM time of hits.
        fills: ``[tokens, layers, slots]``: DRAM time of writing what comes from Flash; reading takes the same again.
        on_hits, on_misses: ``[tokens, layers, slots]``: time of arithmetic.
        parts: ``[layers][slots]``: label of the group's part of the model, such as mlp or attention; times are summed
            by label.
        starts: tokens at which a sequence begins.
        ahead: ``[tokens, layers, slots]``: Flash time of reading the prediction ahead; None without prefetch.
        left: ``[tokens, layers, slots]``: Flash time of the misses that remain if the whole prediction is read.
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
        """Layers, without the LM head."""
        return len(self.resident) - 1

    @property
    def groups(self) -> int:
        """Groups of the layer with the most groups."""
        return self.flash.shape[2]


def make_work(decode: Decode, rows: slice | None = None) -> Work:
    """Return the work of a decode, or of some of its tokens (`rows`)."""
    rows = slice(None) if rows is None else rows
    placement, device, kv = decode.placement, decode.device, decode.kv
    counts, (entries, pairs) = decode.counts.part(rows), decode.kv_entries(rows)
    sizes, prompts = None if decode.steps.single else decode.steps.sizes[rows], decode.steps.prompts[rows]
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
        deciding = arithmetic.selection * units
        if sizes is not None:
            deciding = deciding * sizes[:, None, None]
        if prompts.any():  # of a prompt only experts are chosen
            deciding = np.where(prompts[:, None, None] & ~plans.table(lambda plan: plan.routed, bool), 0.0, deciding)
        selection = deciding + arithmetic.bookkeeping * counts.requests
    return Work(
        resident=np.array(pinned) / dram,
        streamed=_streamed(streamed, placement.bytes.looked_up, device, sizes),
        kv_cache=_kv_seconds(kv, entries, dram, None if sizes is None else np.where(prompts, 1, sizes)),
        unmasked=_unmasked(placement, arithmetic, decode.bits, pairs, sizes),
        selection=selection,
        flash=flash,
        dram=cached / dram,
        fills=missed / dram if decode.fills else np.zeros(shape),
        on_hits=on_hits + overhead,
        on_misses=operations - on_hits,
        parts=tuple(tuple(plan.part for plan in layer) for layer in plans.by_layer),
        starts=frozenset(np.flatnonzero(decode.steps.starts).tolist()),
        ahead=ahead,
        left=left,
    )


def _streamed(streamed: list[int], looked_up: int, device: Profile, sizes: np.ndarray | None) -> np.ndarray:
    """Flash seconds of streamed weights, once for each step, and of looked-up rows, for each member.

    Args:
        streamed: bytes by layer, and of the LM head.
        looked_up: bytes of the rows that a member looks up.
        device: the device.
        sizes: members of each step; None: one each.

    Returns:
        ``[steps or 1, layers + 1]``.
    """
    rest = [stream_seconds(device.flash, size) for size in streamed[1:]]
    if sizes is None or not looked_up:
        return np.array([[stream_seconds(device.flash, streamed[0] + looked_up), *rest]])
    seconds = {size: stream_seconds(device.flash, streamed[0] + size * looked_up) for size in set(sizes.tolist())}
    return np.array([[seconds[size], *rest] for size in sizes.tolist()])


def _kv_seconds(kv: KVCache, entries: np.ndarray, dram: float, states: np.ndarray | None) -> np.ndarray:
    """DRAM seconds of KV entries, and of reading and writing the fixed states: ``[steps, layers]``.

    Args:
        kv: the KV cache.
        entries: that each step reads, ``[steps, layers]``.
        dram: bytes per second.
        states: how often each step reads and writes the states, ``[steps]``; None: once.
    """
    seconds: np.ndarray = entries * (np.array(kv.read) / dram)
    if not kv.state:
        return seconds
    traffic = 2 * np.array(kv.states) / dram
    return seconds + (traffic if states is None else states[:, None] * traffic)


def _unmasked(
    placement: Placement, arithmetic: Arithmetic, bits: Bits, lengths: np.ndarray, sizes: np.ndarray | None
) -> np.ndarray:
    """Seconds of arithmetic outside the groups, ``[steps, layers + 1]``.

    Two operations for each weight, attention over the KV cache, and one kernel for each layer. A layer's time is
    computed for a model with all layers like it and divided by their number, so that it is rounded like the sum.

    Args:
        placement: where the bytes lie.
        arithmetic: rates of the device.
        bits: bits of weights.
        lengths: KV entries that the members of each step multiply, ``[steps, layers]``.
        sizes: members of each step; None: one each.
    """
    parameters, layers, pace = placement.parameters, placement.layers, arithmetic.seconds_per_operation
    attention, mlp, pairs = (
        2.0 * (layers * np.array(numbers, float)) * pace(width)
        for numbers, width in (
            (parameters.attention, bits.attention),
            (parameters.mlp, bits.mlp),
            (placement.bytes.kv.macs_per_entry, bits.kv_cache),
        )
    )
    extra = 2.0 * parameters.predictor * pace(bits.predictor)
    extra += 2.0 * (placement.adapter.counted if placement.adapter else 0) * pace(bits.adapter)
    seconds = np.empty((len(lengths), layers + 1))
    each = np.ones(1, np.int64) if sizes is None else sizes
    seconds[:, :layers] = ((attention + mlp + extra) * each[:, None] + lengths * pairs) / layers + arithmetic.overhead
    seconds[:, layers] = 2.0 * parameters.lm_head * pace(bits.lm_head) * each
    return seconds


def _flash(decode: Decode, counts: Counts, rows: slice) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Flash seconds of the misses, of reading the prediction ahead, and of the misses that remain if all is read."""
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
        guessed, remaining = guesses.ahead[rows][at], misses[at] - guesses.useful[rows][at]
        if reads is None or size is None:
            ahead[at] = times.seconds(unit_reads(plan, flash, setup, guessed))
            left[at] = times.seconds(unit_reads(plan, flash, setup, remaining))
            continue
        # merged reads: a read of predicted units is assumed to merge as many units as a read of misses
        count, missed = reads[at], misses[at]
        mean = np.divide(size[at], count, out=np.zeros(count.shape), where=count > 0)
        for target, units in ((ahead, guessed), (left, remaining)):
            share = np.divide(units, missed, out=units.astype(float), where=missed > 0)
            alike = np.where(missed > 0, mean, sum(plan.slice_bytes) / len(plan.slice_bytes))
            target[at] = times.seconds([(np.ceil(count * share), alike)])
    return seconds, ahead, left


def unit_reads(
    plan: GroupPlan, flash: Flash, reads: ReadSetup, units: np.ndarray, short: np.ndarray | None = None
) -> list[Reads]:
    """Reads of units that are read one by one, as (number of reads, bytes of each in whole pages).

    Args:
        plan: group of the units.
        flash: gives the size of a page.
        reads: how units lie in Flash.
        units: number of units.
        short: whether the group's last unit, which is smaller, is among them; None if it is not smaller.
    """
    page = flash.page_size or 1
    slices, lasts = reads.slices(plan)
    full = units if short is None else units - short
    whole: list[Reads] = [(full, -(-size // page) * page) for size in slices]
    return whole if short is None else whole + [(short, -(-size // page) * page) for size in lasts]

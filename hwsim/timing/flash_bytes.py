"""Bytes that Flash reads in a decode: whole pages of misses, streamed weights, and what was read ahead."""

from __future__ import annotations

import numpy as np

from hwsim.device.profile import Flash
from hwsim.masking.counts import Demand
from hwsim.memory.placement import Placement
from hwsim.simulation.metrics import Prefetched, Timing
from hwsim.simulation.settings import Settings
from hwsim.timing.work import unit_reads


def flash_reads(
    demand: Demand, placement: Placement, flash: Flash, settings: Settings, timing: Timing
) -> tuple[int, Prefetched | None]:
    """Bytes that Flash reads, and what of them was read ahead.

    What was read ahead for nothing comes on top of the misses; of what was read ahead in time and needed, nothing is
    read twice. Where only a part of a guess was read in time, its useful units are taken to be spread evenly.

    Args:
        demand: of a decode.
        placement: where the bytes lie.
        flash: gives the size of a page.
        settings: how units lie in Flash.
        timing: what share of each guess was read in time.
    """
    plans, seen = placement.groups, demand.seen
    misses, last = (demand.requests - demand.hits).astype(np.int64), demand.last_misses
    total = len(timing.token_s) * placement.streamed
    guesses = useful = read = wasted = 0.0
    for index, plan in enumerate(plans):
        at = (slice(None), slice(None), index)
        if seen is not None and seen.read_bytes is not None:
            total += int(seen.read_bytes[at].sum())
        else:
            short = last[at].astype(np.int64) if plan.short and last is not None else None
            parts = unit_reads(plan, flash, settings.reads, misses[at], short)
            total += sum(int(np.sum(count, dtype=np.int64)) * int(size) for count, size in parts)
        if seen is not None and seen.ahead is not None and seen.useful is not None and timing.guessed is not None:
            unit = sum(int(size) for _, size in unit_reads(plan, flash, settings.reads, misses[at]))
            in_time, ahead, hit = timing.guessed[at], seen.ahead[at], seen.useful[at]
            guesses += float(ahead.sum())
            useful += float(hit.sum())
            read += float((in_time * ahead).sum()) * unit
            wasted += float((in_time * (ahead - hit)).sum()) * unit
    if settings.prefetch is None or timing.guessed is None:
        return total, None
    missed = int(misses.sum())
    told = Prefetched(
        rule=settings.prefetch[0],
        precision=useful / guesses if guesses else None,
        recall=useful / missed if missed else None,
        read_bytes=round(read),
        wasted_bytes=round(wasted),
    )
    return total + told.wasted_bytes, told

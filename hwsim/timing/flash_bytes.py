"""Bytes that Flash reads in a decode: whole pages of misses, streamed weights, and prefetched units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hwsim.timing.times import Timing
from hwsim.timing.work import Decode, unit_reads


@dataclass(frozen=True)
class PrefetchTotals:
    """Prefetch of a whole decode.

    Attributes:
        precision: share of the predicted units that were needed; None if nothing was predicted.
        recall: share of the misses that were predicted; None if there were no misses.
        read_bytes: bytes that were read ahead in time.
        wasted_bytes: bytes of these that were not needed.
    """

    precision: float | None
    recall: float | None
    read_bytes: int
    wasted_bytes: int


def flash_reads(decode: Decode, timing: Timing) -> tuple[int, PrefetchTotals | None]:
    """Bytes that Flash reads, and the prefetch among them.

    Units that were read ahead but not needed count in addition to the misses; units that were read ahead in time and
    needed are not read again. If only a part of a prediction was read in time, its useful units are assumed to be
    spread evenly.

    Args:
        decode: the decode.
        timing: gives the share of each prediction that was read in time.
    """
    flash, setup, guesses = decode.device.flash, decode.setup, decode.guesses
    misses, last = decode.counts.misses, decode.counts.last_misses
    where = decode.placement.bytes
    total = len(timing.token_s) * where.streamed + decode.members * where.looked_up
    guessed = useful = read = wasted = 0.0
    for plan, at in decode.placement.plans.alike(lambda plan: (plan.name, *setup.slices(plan))):
        if decode.reads is not None:
            total += int(decode.reads.size[at].sum())
        else:
            short = last[at].astype(np.int64) if plan.short and last is not None else None
            parts = unit_reads(plan, flash, setup, misses[at], short)
            total += sum(int(np.sum(count, dtype=np.int64)) * int(size) for count, size in parts)
        if guesses is not None and timing.guessed is not None:
            unit = sum(int(size) for _, size in unit_reads(plan, flash, setup, misses[at]))
            in_time, ahead, hit = timing.guessed[at], guesses.ahead[at], guesses.useful[at]
            guessed += float(ahead.sum())
            useful += float(hit.sum())
            read += float((in_time * ahead).sum()) * unit
            wasted += float((in_time * (ahead - hit)).sum()) * unit
    if guesses is None or timing.guessed is None:
        return total, None
    missed = int(misses.sum())
    ahead_of_need = PrefetchTotals(
        precision=useful / guessed if guessed else None,
        recall=useful / missed if missed else None,
        read_bytes=round(read),
        wasted_bytes=round(wasted),
    )
    return total + ahead_of_need.wasted_bytes, ahead_of_need

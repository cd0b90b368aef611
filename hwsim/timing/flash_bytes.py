"""Bytes that Flash reads in a decode: whole pages of misses, streamed weights, and what was read ahead."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hwsim.timing.times import Timing
from hwsim.timing.work import Decode, unit_reads


@dataclass(frozen=True)
class ReadAhead:
    """What was read ahead, of a whole decode.

    Attributes:
        precision: share of the guessed units that were needed; None: nothing was guessed.
        recall: share of the misses that were guessed; None: nothing was missed.
        read_bytes: read ahead in time.
        wasted_bytes: of those, the bytes that were not needed.
    """

    precision: float | None
    recall: float | None
    read_bytes: int
    wasted_bytes: int


def flash_reads(decode: Decode, timing: Timing) -> tuple[int, ReadAhead | None]:
    """Bytes that Flash reads, and what of them was read ahead.

    What was read ahead for nothing comes on top of the misses; of what was read ahead in time and needed, nothing is
    read twice. Where only a part of a guess was read in time, its useful units are taken to be spread evenly.

    Args:
        decode: what was asked for.
        timing: what share of each guess was read in time.
    """
    flash, setup, guesses = decode.device.flash, decode.setup, decode.guesses
    misses, last = decode.counts.misses, decode.counts.last_misses
    total = len(timing.token_s) * decode.placement.bytes.streamed
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
    ahead_of_need = ReadAhead(
        precision=useful / guessed if guessed else None,
        recall=useful / missed if missed else None,
        read_bytes=round(read),
        wasted_bytes=round(wasted),
    )
    return total + ahead_of_need.wasted_bytes, ahead_of_need

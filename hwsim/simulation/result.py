"""Compute the result of a run from its counts: time, bytes, energy, notes and provenance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from hwsim.device.profile import Profile
from hwsim.masking.counts import Counts
from hwsim.masking.device_flags import FlagCounts
from hwsim.masking.observers import Observer
from hwsim.memory.placement import Placement
from hwsim.model.shape import ModelShape
from hwsim.simulation import metrics
from hwsim.simulation.notes import notes
from hwsim.simulation.prompts import Prompts, read_prompts
from hwsim.simulation.provenance import provenance
from hwsim.simulation.run import Run, Watched
from hwsim.timing.closed_form import operations, prefill_seconds
from hwsim.timing.flash_bytes import PrefetchTotals, flash_reads
from hwsim.timing.moments import Beginning
from hwsim.timing.time_of import time_of
from hwsim.timing.times import Timing
from hwsim.timing.work import Decode


def measure(
    run: Run, counts: Counts, watched: Watched | None = None, observers: Sequence[Observer] = ()
) -> metrics.Result:
    """Compute the result of a run from counts, whether of a replay or a closed loop.

    Args:
        run: the run.
        counts: requests and hits of every decoded step, and of the prompts' steps if those went through the caches.
        watched: optional observations beyond hit counts on which the run's time depends.
        observers: receive the progress, and moments of the event engine.
    """
    settings, watched, steps = run.settings, watched or Watched(), run.steps
    decode = Decode(
        counts, run.placement, run.hardware, steps.part(~steps.prompts), run.bits, settings.reads, settings.fills,
        watched.reads, watched.guesses,
    )  # fmt: skip
    about = {
        "policy": run.names.policy, "device": run.hardware.name, "trace": run.source.origin,
        "model": run.header.model.name,
    }  # fmt: skip
    timing = time_of(
        decode, run.overlap, closed_form=settings.timing == "closed-form", observers=observers,
        beginning=Beginning(decode, settings.caches, about),
    )  # fmt: skip
    return _result(run, decode, timing, read_prompts(run, counts.prompt), watched.flags)


def _result(
    run: Run, decode: Decode, timing: Timing, prompts: Prompts | None, flags: FlagCounts | None
) -> metrics.Result:
    settings, placement, counts, hardware = run.settings, run.placement, decode.counts, run.hardware
    plans, where, tokens = placement.plans, placement.bytes, decode.steps.tokens
    flash, dram = counts.miss_bytes(plans), counts.hit_bytes(plans)
    flash_token = flash.sum(axis=(1, 2)) + where.streamed + decode.steps.sizes * where.looked_up
    dram_token = dram.sum(axis=(1, 2)) + where.pinned + decode.kv_bytes
    requests, hits = int(counts.requests.sum()), int(counts.hits.sum())
    flash_bytes, dram_bytes = int(flash_token.sum()), int(dram_token.sum())
    flash_read, ahead = flash_bytes, None
    if settings.timing == "events":  # the closed form has no pages
        flash_read, ahead = flash_reads(decode, timing)
    prefetched = _prefetched(run, ahead)
    written = int(flash.sum()) if settings.fills else 0
    energy = _energy(hardware, flash_read, dram_bytes + written, written, operations(decode), timing)
    spent = None if energy is None else sum(part for part in energy.model_dump().values() if part)
    compared = None if flags is None else metrics.DeviceFlags(rows=flags.rows, agree=flags.agree)
    return metrics.Result(
        provenance=provenance(run),
        notes=notes(run, counts, prefetched, compared),
        tokens=tokens,
        throughput_tok_s=tokens / timing.times.total,
        latency_s=metrics.latency(timing.token_s),
        ttft_s=_first_token(run, prompts),
        time_s=metrics.Times.of(timing.times),
        unit_requests=requests,
        unit_hits=hits,
        hit_rate=hits / requests if requests else None,
        mlp_density=_density(run.header.model, placement, counts, decode.members),
        flash_bytes=flash_bytes,
        flash_read_bytes=flash_read,
        dram_bytes=dram_bytes,
        resident_bytes=where.reserved + where.pinned,
        kv_cache_bytes=where.kv_reserved,
        state_bytes=where.states,
        looked_up_bytes=where.looked_up,
        streamed_bytes=where.streamed,
        cache_bytes=where.cache if plans else 0,
        budget_bytes=where.budget,
        energy_j=spent,
        energy_by_source_j=energy,
        power_w=None if spent is None else spent / timing.times.total,
        busy_s=metrics.Busy(**asdict(timing.busy)),
        prefetch=prefetched,
        events=timing.events,
        groups=_groups(run, counts, flash, dram),
        prompt=None if prompts is None else prompts.result(plans),
        device_flags=compared,
        steps=None if decode.steps.single else len(decode.steps),
        per_token=_per_token(timing, counts, flash_token, dram_token) if settings.per_token else None,
    )


def _first_token(run: Run, prompts: Prompts | None) -> float | None:
    """Mean time to first token in seconds; None without a prompt."""
    if prompts is not None:
        return prompts.seconds
    settings = run.settings
    return prefill_seconds(
        run.placement,
        run.hardware,
        run.header.sequences,
        flat=settings.timing == "closed-form",
        chunk=settings.prefill_chunk,
        beside=run.overlap.prefill_beside,
    )


def _groups(run: Run, counts: Counts, flash: np.ndarray, dram: np.ndarray) -> list[metrics.GroupResult]:
    """Results of each group of each layer; `flash` and `dram` are bytes, int64 ``[tokens, layers, slots]``."""
    return [
        metrics.GroupResult(
            layer=layer,
            group=plan.name,
            units=plan.units,
            capacity_units=plan.capacity if run.eviction.caches else 0,
            unit_bytes=plan.unit_bytes,
            requests=int(counts.requests[:, layer, slot].sum()),
            hits=int(counts.hits[:, layer, slot].sum()),
            flash_bytes=int(flash[:, layer, slot].sum()),
            dram_bytes=int(dram[:, layer, slot].sum()),
        )
        for layer, slot, plan in run.placement.plans.places()
    ]


def _prefetched(run: Run, ahead: PrefetchTotals | None) -> metrics.Prefetched | None:
    """The prefetch of the run with the name of its rule, or None."""
    prefetch = run.settings.prefetch
    return None if ahead is None or prefetch is None else metrics.Prefetched(rule=prefetch[0], **asdict(ahead))


def _density(model: ModelShape, placement: Placement, counts: Counts, tokens: int) -> float:
    """Share of the MLP's weights that a mean token reads; of bytes, if only those are known."""
    if model.by_bytes:
        sizes = placement.plans.table(lambda plan: plan.unit_bytes)
        return int((counts.indices(placement.plans).sum(axis=0) * sizes).sum()) / (tokens * placement.bytes.sparse)
    per_index = placement.plans.table(lambda plan: plan.mlp_parameters)
    read = int((counts.indices(placement.plans).sum(axis=0) * per_index).sum())
    every_token = sum(placement.parameters.mlp) + placement.parameters.predictor
    every_token += placement.adapter.counted_mlp if placement.adapter else 0
    return (read + tokens * every_token) / (tokens * model.all_mlp_parameters)


def _energy(
    profile: Profile, flash_read: int, dram_read: int, dram_written: int, operations: float, timing: Timing
) -> metrics.EnergyBySource | None:
    if profile.energy is None:
        return None
    energy = profile.energy
    return metrics.EnergyBySource(
        flash=flash_read * energy.flash_read,
        dram_read=dram_read * energy.dram_read,
        dram_write=None if energy.dram_write is None else dram_written * energy.dram_write,
        compute=None if energy.compute is None else operations * energy.compute,
        base=None if energy.base_power is None else timing.times.total * energy.base_power,
    )


def _per_token(timing: Timing, counts: Counts, flash: np.ndarray, dram: np.ndarray) -> list[metrics.TokenResult]:
    requests, hits = counts.requests.sum(axis=(1, 2)), counts.hits.sum(axis=(1, 2))
    columns = (timing.token_s, requests, hits, flash, dram)
    return [
        metrics.TokenResult(latency_s=seconds, requests=requested, hits=hit, flash_bytes=missed, dram_bytes=read)
        for seconds, requested, hit, missed, read in zip(*(column.tolist() for column in columns), strict=True)
    ]

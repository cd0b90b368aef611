"""Demand, placement and device -> the result: time, bytes, energy, and where all of it comes from."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel

import hwsim
from hwsim.cache.unit_sets import UnitSets
from hwsim.device.effective import effective
from hwsim.device.profile import Profile
from hwsim.evictions import Eviction
from hwsim.masking.counts import Demand
from hwsim.memory.placement import Placement
from hwsim.model.shape import ModelShape
from hwsim.policy import Policy
from hwsim.simulation import metrics
from hwsim.simulation.notes import notes, prefetch_notes
from hwsim.simulation.settings import Settings
from hwsim.timing import closed_form as bounds
from hwsim.timing import in_order as inorder
from hwsim.timing.events import Recorder, run_events
from hwsim.timing.flash_bytes import flash_reads
from hwsim.timing.reads import ReadSetup
from hwsim.timing.work import Load, make_load
from hwsim.trace import TraceHeader


class Names(NamedTuple):
    """How a result calls the plug-ins."""

    policy: str
    eviction: str


def measure(
    header: TraceHeader,
    source: dict[str, Any],
    demand: Demand,
    placement: Placement,
    profile: Profile,
    policy: Policy,
    eviction: Eviction,
    settings: Settings,
    names: Names,
    *,
    progress: Callable[[int], None] | None = None,
    recorder: Recorder | None = None,
) -> metrics.Result:
    """Time, bytes and energy of a demand, however it came about.

    Args:
        header: the model and the sequences.
        source: where the signals came from, for the result's provenance.
        demand: requests and hits of every decoded token.
        placement: where the bytes lie.
        progress: is told how many tokens are done.
        recorder: is told what happened when.
    """
    profile = effective(profile, settings)
    if settings.timing == "closed-form":
        timing = bounds.closed_form(
            demand, placement, profile, header.sequences,
            overlap=settings.overlap == "group", kv_window=settings.kv_window,
        )  # fmt: skip
    else:

        def load(rows: slice | None = None) -> Load:
            return make_load(
                demand, placement, profile, header.sequences, rows=rows,
                bits=settings.bits, reads=settings.reads, fills=settings.fills, kv_window=settings.kv_window,
            )  # fmt: skip

        thermal = profile.flash.thermal
        if settings.overlap == "none" and not settings.fills and recorder is None:  # nothing can interleave
            parts = inorder.blocks(header.decoded, placement.layers, len(placement.groups))
            timing = inorder.run_in_order(map(load, parts), thermal=thermal, progress=progress)
            return _result(header, source, profile, policy, settings, placement, demand, timing, eviction, names)
        whole = load()
        if recorder:
            about = {"policy": names.policy, "device": profile.name, "trace": source, "model": header.model.name}
            recorder.begin(demand, placement, profile, settings, whole.starts, about)
        timing = run_events(whole, overlap=settings.overlap, thermal=thermal, recorder=recorder, progress=progress)
    return _result(header, source, profile, policy, settings, placement, demand, timing, eviction, names)


def _result(
    header: TraceHeader, source: dict[str, Any], profile: Profile, policy: Policy, settings: Settings,
    placement: Placement, demand: Demand, timing: metrics.Timing, eviction: Eviction, names: Names,
) -> metrics.Result:  # fmt: skip
    plans = placement.groups
    tokens = header.decoded
    requests, hits = demand.requests, demand.hits
    flash, dram = demand.miss_bytes(plans), demand.hit_bytes(plans)
    kv = bounds.kv_lengths(header.sequences, settings.kv_window) * placement.kv_entry
    flash_token = flash.sum(axis=(1, 2)) + placement.streamed
    dram_token = dram.sum(axis=(1, 2)) + placement.pinned_weights + kv
    groups = [
        metrics.GroupResult(
            layer=layer,
            group=plan.group.name,
            units=plan.units,
            capacity_units=plan.capacity_in(layer) if eviction.caches else 0,
            unit_bytes=plan.unit_bytes,
            requests=int(requests[:, layer, index].sum()),
            hits=int(hits[:, layer, index].sum()),
            flash_bytes=int(flash[:, layer, index].sum()),
            dram_bytes=int(dram[:, layer, index].sum()),
        )
        for layer in range(header.model.num_hidden_layers)
        for index, plan in enumerate(plans)
    ]
    asked, found = int(requests.sum()), int(hits.sum())
    flash_bytes, dram_bytes = int(flash_token.sum()), int(dram_token.sum())
    flash_read, prefetched = flash_bytes, None
    if settings.timing == "events":  # the closed form knows no pages
        flash_read, prefetched = flash_reads(demand, placement, profile.flash, settings, timing)
    written = int(flash.sum()) if settings.fills else 0
    counted = bounds.operations(demand, placement, header.sequences, settings.kv_window)
    energy = _energy(profile, flash_read, dram_bytes + written, written, counted, timing)
    spent = None if energy is None else sum(part for part in energy.model_dump().values() if part)
    return metrics.Result(
        provenance=provenance(header, source, profile, policy, settings, placement, eviction, names),
        notes=notes(
            header.origin,
            placement,
            eviction,
            profile,
            names.policy,
            settings.timing,
            encoding=header.encoding,
            bypass=(settings.caches.admission or eviction.admission) == "bypass",
            reads=settings.reads,
        )
        + prefetch_notes(prefetched, tokens, names.policy),
        tokens=tokens,
        throughput_tok_s=tokens / timing.times.total,
        latency_s=metrics.latency(timing.token_s),
        ttft_s=bounds.prefill_seconds(
            placement,
            profile,
            header.sequences,
            flat=settings.timing == "closed-form",
            chunk=settings.prefill_chunk,
            beside=settings.overlap in ("pipeline", "prefetch"),
        ),
        time_s=timing.times,
        unit_requests=asked,
        unit_hits=found,
        hit_rate=found / asked if asked else None,
        mlp_density=_density(header.model, placement, demand, tokens),
        flash_bytes=flash_bytes,
        flash_read_bytes=flash_read,
        dram_bytes=dram_bytes,
        resident_bytes=placement.kv_reserved + placement.pinned_weights,
        kv_cache_bytes=placement.kv_reserved,
        streamed_bytes=placement.streamed,
        cache_bytes=placement.cache_bytes if plans else 0,
        budget_bytes=placement.budget,
        energy_j=spent,
        energy_by_source_j=energy,
        power_w=None if spent is None else spent / timing.times.total,
        busy_s=timing.busy,
        prefetch=prefetched,
        events=timing.events,
        groups=groups,
        per_token=_per_token(timing, requests, hits, flash_token, dram_token) if settings.per_token else None,
    )


def _density(model: ModelShape, placement: Placement, demand: Demand, tokens: int) -> float:
    per_index = np.array([plan.mlp_parameters for plan in placement.groups], np.int64)
    read = int((demand.indices(placement.groups).sum(axis=(0, 1)) * per_index).sum())
    every_token = placement.unmasked_mlp + placement.predictor_parameters
    every_token += placement.adapter.counted_mlp if placement.adapter else 0
    return (read + tokens * every_token) / (tokens * model.num_hidden_layers * model.mlp_parameters)


def _energy(
    profile: Profile, flash_read: int, dram_read: int, dram_written: int, operations: float, timing: metrics.Timing
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


def _per_token(
    timing: metrics.Timing, requests: np.ndarray, hits: np.ndarray, flash: np.ndarray, dram: np.ndarray
) -> list[metrics.TokenResult]:
    asked, found = requests.sum(axis=(1, 2)), hits.sum(axis=(1, 2))
    rows = zip(timing.token_s.tolist(), asked.tolist(), found.tolist(), flash.tolist(), dram.tolist(), strict=True)
    return [
        metrics.TokenResult(latency_s=seconds, requests=r, hits=h, flash_bytes=f, dram_bytes=d)
        for seconds, r, h, f, d in rows
    ]


def provenance(
    header: TraceHeader, source: dict[str, Any], profile: Profile, policy: Policy, settings: Settings,
    placement: Placement, eviction: Eviction, names: Names,
) -> dict[str, Any]:  # fmt: skip
    """Everything that decides a result, as the result tells it; known before anything is simulated."""
    return {
        "hwsim": hwsim.__version__,
        "trace": source,
        "model": header.model.model_dump(),
        "policy": _plugin(names.policy, policy, type(policy.in_layer(0)))
        | ({"oracle": True} if any(plan.group.oracle for plan in placement.groups) else {}),
        "eviction": _plugin(names.eviction, eviction, type(eviction)),
        **({"adapter": placement.adapter.provenance()} if placement.adapter else {}),
        "device": profile.model_dump(mode="json", exclude_none=True),
        "settings": {
            "dram_budget_bytes": placement.budget,
            "kv_tokens": placement.kv_tokens,
            "bits": settings.bits.model_dump(),
            "timing": settings.timing,
            "overlap": settings.overlap,
            "cache_scope": settings.cache_scope,
            "cache_shares": settings.cache_shares.source if settings.cache_shares else "equal",
            "block": settings.block,
            "layout": settings.neurons.digest if settings.neurons else None,
            "admission": settings.caches.admission or eviction.admission,
            "pinned": _units(settings.caches.pinned, placement),
            "warm": _units(settings.caches.warm, placement),
            **_beyond(settings),
        },
        "seed": settings.seed,
    }


def _beyond(settings: Settings) -> dict[str, Any]:
    """What of the device's finer points was chosen; where nothing was, nothing is told."""
    reads, prefetch = settings.reads, settings.prefetch
    chosen = {
        "reads": None if reads == ReadSetup() else asdict(reads),
        "prefetch": prefetch and _plugin(prefetch[0], prefetch[1], type(prefetch[1])),
        "fills": settings.fills or None,
        "engine": settings.engine,
        "ignore": sorted(settings.ignore) or None,
        "kv_window": settings.kv_window,
        "prefill_chunk": settings.prefill_chunk,
    }
    return {name: value for name, value in chosen.items() if value is not None}


def _units(found: UnitSets | None, placement: Placement) -> dict[str, Any] | None:
    """A file of units in the provenance, with what it names in the caches of all layers."""
    if found is None:
        return None
    sets = [
        (found.of(layer, plan.group.name, plan.units), plan.sizes())
        for layer in range(placement.layers)
        for plan in placement.groups
    ]
    units = sum(int(units.sum()) for units, _ in sets)
    size = sum(int(sizes[units].sum()) for units, sizes in sets)
    return {"name": found.name, "sha256": found.sha256, "units": units, "bytes": size}


def _plugin(name: str, plugin: BaseModel, kind: type) -> dict[str, Any]:
    """A plug-in in the provenance: two of one name are told apart by the file that defines them."""
    try:
        source = hashlib.sha256(Path(inspect.getfile(kind)).read_bytes()).hexdigest()
    except (OSError, TypeError):  # made in a session, without a file
        source = None
    return {"name": name, "sha256": source, "parameters": plugin.model_dump(mode="json")}

"""The provenance of a result: everything that decides it, known before anything is simulated."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import hwsim
from hwsim.cache.unit_sets import UnitSets
from hwsim.memory.placement import Placement
from hwsim.simulation.run import Run
from hwsim.simulation.settings import Settings
from hwsim.timing.reads import ReadSetup
from hwsim.util.option import declared

# options that every result states, in a form of their own and in this order
_ALWAYS: dict[str, Callable[[Run], Any]] = {
    "dram_budget_bytes": lambda run: run.placement.bytes.budget,
    "kv_tokens": lambda run: run.placement.bytes.kv_tokens,
    "bits": lambda run: run.bits.model_dump(),
    "timing": lambda run: run.settings.timing,
    "overlap": lambda run: run.settings.overlap,
    "cache_scope": lambda run: run.settings.cache_scope,
    "cache_shares": lambda run: run.settings.cache_shares.source if run.settings.cache_shares else "equal",
    "block": lambda run: run.settings.block,
    "layout": lambda run: run.settings.layout.digest if run.settings.layout else None,
    "admission": lambda run: run.settings.admission or run.eviction.admission,
    "pinned": lambda run: _units(run.settings.pin, run.placement),
    "warm": lambda run: _units(run.settings.warm, run.placement),
}
_IF_CHOSEN: dict[str, Callable[[Settings], Any]] = {
    "reads": lambda settings: None if settings.reads == ReadSetup() else asdict(settings.reads),
    "prefetch": lambda settings: settings.prefetch and _plugin(*settings.prefetch, type(settings.prefetch[1])),
    "ignore": lambda settings: sorted(settings.ignore) or None,
}
# options that are part of those above, or stated elsewhere in the result
_ELSEWHERE = {
    "dram", "pin", "bundle", "packed", "merge", "gap", "prefetch_parameters", "lora", "lora_merged", "seed",
    "per_token",
}  # fmt: skip


def provenance(run: Run) -> dict[str, Any]:
    """Return the provenance of a run as JSON values: source, model, policy, eviction, device, settings, seed."""
    policy, eviction, placement = run.policy, run.eviction, run.placement
    oracle = any(plan.group.oracle for plan in placement.plans)
    return {
        "hwsim": hwsim.__version__,
        "trace": run.source.origin,
        "model": run.header.model.model_dump(),
        "policy": _plugin(run.names.policy, policy, type(policy.in_layer(0))) | ({"oracle": True} if oracle else {}),
        "eviction": _plugin(run.names.eviction, eviction, type(eviction)),
        **({"adapter": placement.adapter.provenance()} if placement.adapter else {}),
        "device": run.hardware.model_dump(mode="json", exclude_none=True),
        "settings": {name: tell(run) for name, tell in _ALWAYS.items()} | _chosen(run.settings) | _prompts(run),
        "seed": run.settings.seed,
    }


def _chosen(settings: Settings) -> dict[str, Any]:
    """Options that differ from their defaults, by name, except those that every result states."""
    chosen = {}
    for name, option in declared(type(settings)).items():
        if name in _ALWAYS or name in _ELSEWHERE:
            continue
        value = getattr(settings, name)
        chosen[name] = _IF_CHOSEN[name](settings) if name in _IF_CHOSEN else value if value != option.default else None
    reads = _IF_CHOSEN["reads"](settings)
    return {name: value for name, value in {"reads": reads, **chosen}.items() if value is not None}


def _prompts(run: Run) -> dict[str, Any]:
    """How prompts are read, where it is not as every run without experts does by default."""
    if not run.together.prompts and not run.placement.plans.sparse:
        return {}
    return {"prefill": "cached" if run.together.prompts else "dense"}


def _units(units: UnitSets | None, placement: Placement) -> dict[str, Any] | None:
    """A file of units in the provenance, with the number and bytes of its units in all layers."""
    if units is None:
        return None
    sets = [(units.of(plan.layer, plan.name, plan.units), plan.sizes()) for plan in placement.plans]
    count = sum(int(members.sum()) for members, _ in sets)
    size = sum(int(sizes[members].sum()) for members, sizes in sets)
    return {"name": units.name, "sha256": units.sha256, "units": count, "bytes": size}


def _plugin(name: str, plugin: BaseModel, kind: type) -> dict[str, Any]:
    """A plug-in in the provenance; the hash of its file distinguishes plug-ins of the same name."""
    try:
        source = hashlib.sha256(Path(inspect.getfile(kind)).read_bytes()).hexdigest()
    except (OSError, TypeError):  # defined in an interactive session, without a file
        source = None
    return {"name": name, "sha256": source, "parameters": plugin.model_dump(mode="json")}

"""One replay: a trace, a device, a policy and an eviction rule -> a result. The command line calls this."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from pydantic import BaseModel

from hwsim.cache.shared import check_shared
from hwsim.device.effective import effective
from hwsim.device.flash_times import FlashTimes, holes
from hwsim.device.profile import Profile
from hwsim.errors import ContractError, HwsimError, SettingError, one_line
from hwsim.evictions import Eviction
from hwsim.masking.counts import Demand
from hwsim.masking.mask_file import MaskFile
from hwsim.masking.observers import Signals, Watching
from hwsim.masking.scan import CacheListener, MaskListener, check_trace, scan
from hwsim.masking.shared_scan import scan_shared
from hwsim.memory.placement import GroupPlan, Placement, place, plan_groups, plan_layers
from hwsim.memory.shares import Shares, measured
from hwsim.model.lora import read_adapter
from hwsim.model.shape import ModelShape
from hwsim.policy import Policy
from hwsim.simulation import metrics
from hwsim.simulation.result import Names, measure
from hwsim.simulation.settings import Settings, impossible, is_whole, shown
from hwsim.timing.events import Recorder
from hwsim.timing.reads import Reader
from hwsim.timing.work import sequence_starts
from hwsim.trace import Sequence, Trace, TraceHeader
from hwsim.util.units import printable

__all__ = [
    "Names",
    "Settings",
    "check_caches",
    "check_closed",
    "check_parameters",
    "cores",
    "layout",
    "measure",
    "replay",
    "replay_masks",
]

_MOST_PARAMETERS = 10**13  # that a policy may declare: more is a slip of the pen

Progress = Callable[[str, int, int], None]
"""Is told (phase, done, of how many)."""


def replay(
    trace: Trace,
    profile: Profile,
    policy: Policy,
    eviction: Eviction,
    settings: Settings | None = None,
    *,
    policy_name: str = "",
    eviction_name: str = "",
    listener: MaskListener | None = None,
    contents: CacheListener | None = None,
    progress: Progress | None = None,
    threads: int | None = None,
    recorder: Recorder | None = None,
) -> metrics.Result:
    """Replay a trace on a device under a policy.

    Args:
        trace: open trace.
        profile: the device.
        policy: decides the masks.
        eviction: picks who leaves the caches.
        settings: everything else.
        policy_name: how the result calls the policy.
        eviction_name: how the result calls the eviction.
        listener: is told every mask.
        contents: is told what each cache holds at the end.
        progress: is told how far it is.
        threads: that decide masks and count hits; None: as many as there are cores. The result is the same.
        recorder: is told what happened when.

    Raises:
        HwsimError: one of its kinds; the trace lacks a signal, the policy broke its contract, a setting is impossible.
    """
    settings = settings or Settings()
    if threads is not None and not is_whole(threads, 1):
        raise impossible("threads", threads, "a whole number from 1, or None")
    header = trace.header
    check_parameters(policy, f"policy {policy_name or type(policy).__name__}")
    check_parameters(eviction, f"eviction {eviction_name or type(eviction).__name__}")
    if settings.cache_shares and settings.cache_shares.weights is None:
        settings = replace(settings, cache_shares=_traffic(trace, profile, policy, eviction, settings, policy_name))
    placement = layout(header.model, profile, policy, header.longest, settings, policy_name)
    check_caches(placement, eviction, settings)
    check_trace(trace, policy, placement.groups, policy_name)

    def phase(name: str, total: int) -> Callable[[int], None] | None:
        return None if progress is None else lambda done: progress(name, done, total)

    demand = _demand(
        trace, policy, placement, eviction, settings, policy_name, listener, contents,
        phase("masks and hits", header.model.num_hidden_layers), threads or cores(),
        watching(placement, profile, settings, header.sequences, trace),
    )  # fmt: skip
    names = Names(policy_name or type(policy).__name__, eviction_name or type(eviction).__name__)
    origin = {"name": printable(trace.path.name), "hash": trace.hash, "origin": header.origin}
    return measure(
        header, origin, demand, placement, profile, policy, eviction, settings, names,
        progress=phase("time", header.decoded), recorder=recorder,
    )  # fmt: skip


def _demand(
    trace: Trace, policy: Policy, placement: Placement, eviction: Eviction, settings: Settings, name: str,
    listener: MaskListener | None = None, contents: CacheListener | None = None,
    progress: Callable[[int], None] | None = None, threads: int = 1, seen: Watching | None = None,
) -> Demand:  # fmt: skip
    """The scan of a trace, with the caches of a placement."""
    header = trace.header
    if placement.shared:
        return scan_shared(
            trace, header.model, header.sequences, policy, placement.groups, placement.shared, eviction,
            name=name, seed=settings.seed, listener=listener, contents=contents, progress=progress, watching=seen,
        )  # fmt: skip
    return scan(
        trace, header.model, header.sequences, policy, placement.groups, eviction, setup=settings.caches,
        name=name, seed=settings.seed, listener=listener, contents=contents, progress=progress, threads=threads,
        watching=seen,
    )  # fmt: skip


def watching(
    placement: Placement, profile: Profile, settings: Settings, sequences: list[Sequence], source: Signals | None = None
) -> Watching | None:
    """What a run must look at besides counts; None: nothing."""
    reads, prefetch, flash = settings.reads, settings.prefetch, effective(profile, settings).flash
    if reads.plain and prefetch is None:
        return None
    gaps = holes(flash) if reads.gap is None else [reads.gap]
    page, times = flash.page_size or 1, FlashTimes(flash, placement.sparse)
    readers = [] if reads.plain else [Reader(plan, reads, page, gaps, times) for plan in placement.groups]
    ends = np.cumsum([sequence.tokens for sequence in sequences])
    rows = [
        np.arange(end - sequence.tokens + sequence.prompt, end) for end, sequence in zip(ends, sequences, strict=True)
    ]
    rule = prefetch[1] if prefetch else None
    return Watching(readers, rule, source, sequence_starts(sequences), np.concatenate(rows))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _traffic(
    trace: Trace, profile: Profile, policy: Policy, eviction: Eviction, settings: Settings, name: str
) -> Shares | None:
    """What a replay with equal shares reads from Flash, by layer and group; None where no mask cuts anything."""
    header = trace.header
    placement = layout(header.model, profile, policy, header.longest, replace(settings, cache_shares=None), name)
    check_caches(placement, eviction, settings)
    check_trace(trace, policy, placement.groups, name)
    if not placement.groups:
        return None
    demand = _demand(trace, policy, placement, eviction, settings, name)
    missed = demand.miss_bytes(placement.groups).sum(axis=0)
    return measured(missed, [plan.group.name for plan in placement.groups])


def replay_masks(
    masks: MaskFile,
    profile: Profile,
    eviction: Eviction,
    settings: Settings | None = None,
    *,
    eviction_name: str = "",
    contents: CacheListener | None = None,
    progress: Progress | None = None,
    recorder: Recorder | None = None,
) -> metrics.Result:
    """Replay masks that a closed loop has saved: on its device and with its cache the same hits, bytes and times.

    Args:
        masks: open file.
        profile: the device.
        eviction: picks who leaves the caches.
        settings: everything else; the seed plays no part.
        eviction_name: how the result calls the eviction.
        contents: is told what each cache holds at the end.
        progress: is told how far it is.
        recorder: is told what happened when.

    Raises:
        HwsimError: one of its kinds.
    """
    settings = settings or Settings()
    fields = {"origin": "recorded", "model": masks.model, "signals": ["input"], "sequences": masks.sequences}
    header = TraceHeader.model_validate(fields)
    placement = layout(header.model, profile, masks.policy, header.longest, settings, masks.policy.name)
    check_caches(placement, eviction, settings)
    masks.check_adapter(placement.adapter)
    seen = watching(placement, profile, settings, header.sequences)
    demand = masks.demand(placement, eviction, settings.caches, contents, seen)
    source = {"name": printable(masks.path.name), "origin": "saved masks", "provenance": masks.provenance}
    names = Names(masks.policy.name, eviction_name or type(eviction).__name__)

    def tell(done: int) -> None:
        if progress:
            progress("time", done, header.decoded)

    return measure(
        header, source, demand, placement, profile, masks.policy, eviction, settings, names,
        progress=tell, recorder=recorder,
    )  # fmt: skip


def layout(
    model: ModelShape, profile: Profile | None, policy: Policy, longest: int, settings: Settings, name: str = ""
) -> Placement:
    """Where everything lies; `longest` is the length of the longest sequence, `profile` the device.

    Without a device the settings must say how much DRAM there is.

    Raises:
        ContractError: the policy's groups are not possible on this model.
        SettingError: the budget cannot hold the KV cache, or the KV cache cannot hold the sequence; the neurons' order
            is that of another model, or the caches' shares are those of other groups.
    """
    name = name or type(policy).__name__
    if settings.neurons:
        settings.neurons.check(model)
    if settings.cache_shares and settings.cache_shares.weights is None:
        raise SettingError("--cache-shares traffic: is measured by a replay of a trace; give the file of its --json")
    plans = _plans(policy, model, settings, name)
    if settings.kv_window is not None:
        longest = min(longest, settings.kv_window)
    kv_tokens = longest if settings.kv_tokens is None else settings.kv_tokens
    if kv_tokens < longest:
        raise SettingError(f"--kv-tokens {kv_tokens} cannot hold the trace's longest sequence, {longest} tokens")
    budget = profile.dram.budget if settings.dram is None and profile else settings.dram
    if budget is None:
        raise impossible("dram", None, "given where there is no device")
    parameters = _ask("predictor_parameters", lambda: policy.predictor_parameters(model), name)
    if not is_whole(parameters, 0) or parameters > _MOST_PARAMETERS:
        raise ContractError(
            f"policy {name}: predictor_parameters() returned {shown(parameters)}, "
            f"needs a whole number from 0 to 10^{len(str(_MOST_PARAMETERS)) - 1}"
        )
    adapter = read_adapter(settings.lora, model, merged=settings.lora_merged) if settings.lora and plans else None
    return place(
        plans, model, settings.bits, budget, kv_tokens, parameters,
        adapter=adapter, longest=longest, scope=settings.cache_scope, shares=settings.cache_shares,
    )  # fmt: skip


def check_caches(placement: Placement, eviction: Eviction, settings: Settings) -> None:
    """Refuse, before long work, what the caches cannot hold and the eviction cannot do.

    Raises:
        SettingError: the eviction cannot bypass or serve a shared cache; a set of units is missing or of other units,
            or a cache cannot hold its.
    """
    caches = settings.caches
    if placement.shared:
        check_shared(eviction, settings.cache_scope)
        bypass = caches.admission == "bypass"
        for option, chosen in (("--admission bypass", bypass), ("--pin", caches.pinned), ("--warm", caches.warm)):
            if chosen:
                raise SettingError(
                    f"{option}: does not go with --cache-scope {settings.cache_scope}, where groups share a cache; "
                    "leave one of them out"
                )
        return
    for sets in (caches.pinned, caches.warm) if placement.groups else ():
        if sets:
            sets.check(settings.block, settings.neurons.digest if settings.neurons else None)
    for layer in range(placement.layers):
        for plan in placement.groups:
            caches.cache(layer, plan.group.name, plan.units, plan.capacity_in(layer), eviction)


def check_closed(settings: Settings) -> None:
    """Refuse what a running model does not look at.

    Raises:
        SettingError: it is about where misses lie in Flash, or about guesses, which a replay of saved masks looks at;
            or about how many entries of the KV cache are read, which the model itself would have to feel.
    """
    asked = {
        "--packed and --merge": not settings.reads.plain,
        "--overlap prefetch": settings.prefetch is not None,
    }
    if found := [name for name, given in asked.items() if given]:
        raise SettingError(
            f"{found[0]}: is for replays; write the masks with hwsim eval --save-masks FILE, then hwsim replay FILE"
        )
    if settings.kv_window is not None:
        raise SettingError("--kv-window: is for replays; a model that runs reads all entries")


def _ask(method: str, call: Callable[[], Any], name: str, where: str = "") -> Any:
    """Call a policy's method; what it raises becomes one line that says where and names the policy."""
    try:
        return call()
    except HwsimError as error:
        raise type(error)(f"{where}policy {name}: {error}") from error
    except (Exception, SystemExit) as error:  # a plug-in must not end the program
        raised = f"{method}() raised {type(error).__name__}: {one_line(error)}"
        raise ContractError(f"{where}policy {name}: {raised}") from error


def check_parameters(plugin: BaseModel, who: str) -> None:
    """Refuse, before anything is computed, a plug-in whose parameters the result could not name.

    Raises:
        ContractError: they cannot be written as JSON.
    """
    try:
        plugin.model_dump_json()
    except (Exception, SystemExit) as error:
        raise ContractError(f"{who}: its parameters cannot be written as JSON: {one_line(error)}") from error


def _plans(policy: Policy, model: ModelShape, settings: Settings, name: str) -> tuple[GroupPlan, ...]:
    groups = _ask("groups", lambda: policy.groups(model), name)
    layers = () if policy.in_layer(0) is policy else range(model.num_hidden_layers)
    each = [_ask("groups", partial(policy.in_layer(at).groups, model), name, f"layer {at}: ") for at in layers]
    try:
        units = (model, settings.bits, settings.block, settings.neurons)
        return plan_layers(each, *units) if each else plan_groups(groups, *units)
    except ContractError as error:
        raise ContractError(f"policy {name}: {error}") from error

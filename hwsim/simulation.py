"""One replay: a trace, a device, a policy and an eviction rule -> a result. The command line calls this."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel

import hwsim
from hwsim import bounds, metrics
from hwsim.adapter import read_adapter
from hwsim.demand import Demand
from hwsim.devices import read_sizes
from hwsim.engine import run_events
from hwsim.errors import ContractError, HwsimError, SettingError, one_line
from hwsim.evictions import Eviction
from hwsim.interleave import scan_shared
from hwsim.layout import Layout
from hwsim.masks import MaskFile
from hwsim.model import Bits, ModelShape
from hwsim.notes import notes
from hwsim.placement import GroupPlan, Placement, place, plan_groups
from hwsim.policy import Policy
from hwsim.profile import Profile
from hwsim.select import MaskListener, check_signals, scan
from hwsim.shares import Scope, Shares, measured
from hwsim.trace import Trace, TraceHeader
from hwsim.units import printable, shorten

_MOST_PARAMETERS = 10**13  # that a policy may declare: more is a slip of the pen

Progress = Callable[[str, int, int], None]
"""Is told (phase, done, of how many)."""


@dataclass(frozen=True)
class Settings:
    """Everything of a replay besides trace, device, policy and eviction.

    Attributes:
        dram: bytes, a size such as "4 GB" or a share such as "50%"; None: the profile's budget.
        kv_tokens: tokens that the KV cache is reserved for; None: the trace's longest sequence.
        bits: of stored numbers, by part of the model.
        timing: the event engine, or the closed form of the paper.
        overlap: ``group``: Flash and DRAM work at the same time within a group.
        seed: of the random numbers that policies may draw.
        per_token: keep a record of every token.
        lora: folder of a LoRA adapter: its bytes are resident and its parameters count in the density of every policy
            that masks something; one that masks nothing runs without it.
        lora_merged: the adapter's product is added to the weights: it costs no bytes of its own.
        cache_scope: who shares a cache: nobody, all groups of a layer, or all groups of all layers.
        cache_shares: how the caches' bytes are divided over layers and groups; None: equally.
        block: neighbours of a group's axis that make up a unit.
        neurons: which neurons are neighbours; None: the model's own order.

    Raises:
        SettingError: one of them is impossible.
    """

    dram: int | str | None = None
    kv_tokens: int | None = None
    bits: Bits = field(default_factory=Bits)
    timing: Literal["events", "closed-form"] = "events"
    overlap: Literal["none", "group"] = "none"
    seed: int = 0
    per_token: bool = False
    lora: Path | None = None
    lora_merged: bool = False
    cache_scope: Scope = "matrix"
    cache_shares: Shares | None = None
    block: int = 1
    neurons: Layout | None = None

    def __post_init__(self) -> None:
        """Refuse what nothing else would notice."""
        for name, choices in (
            ("timing", ("events", "closed-form")),
            ("overlap", ("none", "group")),
            ("cache_scope", ("matrix", "layer", "global")),
        ):
            if getattr(self, name) not in choices:
                raise _impossible(name, getattr(self, name), f"one of {', '.join(choices)}")
        if not _whole(self.seed, 0):
            raise _impossible("seed", self.seed, "a whole number from 0")
        if self.kv_tokens is not None and not _whole(self.kv_tokens, 1):
            raise _impossible("kv_tokens", self.kv_tokens, "a whole number from 1, or None")
        if self.dram is not None and not isinstance(self.dram, str) and not _whole(self.dram, 0):
            raise _impossible("dram", self.dram, "bytes from 0, text such as '4 GB' or '50%', or None")
        if not isinstance(self.bits, Bits):
            raise _impossible("bits", self.bits, "hwsim.model.Bits")
        if not _whole(self.block, 1):
            raise _impossible("block", self.block, "a whole number from 1")
        if self.cache_scope == "global" and self.cache_shares:
            raise SettingError("--cache-shares: one cache for the whole model has no shares; leave it out")


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _impossible(name: str, value: object, rule: str) -> SettingError:
    return SettingError(f"setting {name}={_shown(value)}: must be {rule}")


def _shown(value: object) -> str:
    """Any value, for a message; some have no text (a number of 5,000 digits) or raise."""
    try:
        return shorten(repr(value))
    except Exception:
        return f"a {type(value).__name__}"


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
    progress: Progress | None = None,
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
        progress: is told how far it is.

    Raises:
        HwsimError: one of its kinds; the trace lacks a signal, the policy broke its contract, a setting is impossible.
    """
    settings = settings or Settings()
    header = trace.header
    check_parameters(policy, f"policy {policy_name or type(policy).__name__}")
    check_parameters(eviction, f"eviction {eviction_name or type(eviction).__name__}")
    if settings.cache_shares and settings.cache_shares.weights is None:
        settings = replace(settings, cache_shares=_traffic(trace, profile, policy, eviction, settings, policy_name))
    placement = layout(header.model, profile, policy, header.longest, settings, policy_name)
    check_signals(trace.has, placement.groups, trace.path, header.model.name)

    def phase(name: str, total: int) -> Callable[[int], None] | None:
        return None if progress is None else lambda done: progress(name, done, total)

    demand = _demand(
        trace, policy, placement, eviction, settings, policy_name, listener,
        phase("masks and hits", header.model.num_hidden_layers),
    )  # fmt: skip
    names = Names(policy_name or type(policy).__name__, eviction_name or type(eviction).__name__)
    origin = {"name": printable(trace.path.name), "hash": trace.hash, "origin": header.origin}
    return measure(
        header, origin, demand, placement, profile, policy, eviction, settings, names,
        progress=phase("time", header.decoded),
    )  # fmt: skip


def _demand(
    trace: Trace, policy: Policy, placement: Placement, eviction: Eviction, settings: Settings, name: str,
    listener: MaskListener | None = None, progress: Callable[[int], None] | None = None,
) -> Demand:  # fmt: skip
    """The scan of a trace, with the caches of a placement."""
    header = trace.header
    if placement.shared:
        return scan_shared(
            trace, header.model, header.sequences, policy, placement.groups, placement.shared, eviction,
            name=name, seed=settings.seed, listener=listener, progress=progress,
        )  # fmt: skip
    return scan(
        trace, header.model, header.sequences, policy, placement.groups, eviction,
        name=name, seed=settings.seed, listener=listener, progress=progress,
    )  # fmt: skip


def _traffic(
    trace: Trace, profile: Profile, policy: Policy, eviction: Eviction, settings: Settings, name: str
) -> Shares | None:
    """What a replay with equal shares reads from Flash, by layer and group; None where no mask cuts anything."""
    header = trace.header
    placement = layout(header.model, profile, policy, header.longest, replace(settings, cache_shares=None), name)
    check_signals(trace.has, placement.groups, trace.path, header.model.name)
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
    progress: Progress | None = None,
) -> metrics.Result:
    """Replay masks that a closed loop has saved: on its device and with its cache the same hits, bytes and times.

    Args:
        masks: open file.
        profile: the device.
        eviction: picks who leaves the caches.
        settings: everything else; the seed plays no part.
        eviction_name: how the result calls the eviction.
        progress: is told how far it is.

    Raises:
        HwsimError: one of its kinds.
    """
    settings = settings or Settings()
    fields = {"origin": "recorded", "model": masks.model, "signals": ["input"], "sequences": masks.sequences}
    header = TraceHeader.model_validate(fields)
    placement = layout(header.model, profile, masks.policy, header.longest, settings, masks.policy.name)
    demand = masks.demand(placement, eviction)
    source = {"name": printable(masks.path.name), "origin": "saved masks", "provenance": masks.provenance}
    names = Names(masks.policy.name, eviction_name or type(eviction).__name__)

    def tell(done: int) -> None:
        if progress:
            progress("time", done, header.decoded)

    return measure(
        header, source, demand, placement, profile, masks.policy, eviction, settings, names, progress=tell
    )  # fmt: skip


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
) -> metrics.Result:
    """Time, bytes and energy of a demand, however it came about.

    Args:
        header: the model and the sequences.
        source: where the signals came from, for the result's provenance.
        demand: requests and hits of every decoded token.
        placement: where the bytes lie.
        progress: is told how many tokens are done.
    """
    overlap = settings.overlap == "group"
    if settings.timing == "closed-form":
        timing = bounds.closed_form(demand, placement, profile, header.sequences, overlap=overlap)
    else:
        timing = run_events(demand, placement, profile, header.sequences, overlap=overlap, progress=progress)
    return _result(header, source, profile, policy, settings, placement, demand, timing, eviction, names)


def layout(
    model: ModelShape, profile: Profile, policy: Policy, longest: int, settings: Settings, name: str = ""
) -> Placement:
    """Where everything lies; `longest` is the length of the longest sequence.

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
    kv_tokens = longest if settings.kv_tokens is None else settings.kv_tokens
    if kv_tokens < longest:
        raise SettingError(f"--kv-tokens {kv_tokens} cannot hold the trace's longest sequence, {longest} tokens")
    budget = profile.dram.budget if settings.dram is None else settings.dram
    parameters = _ask("predictor_parameters", lambda: policy.predictor_parameters(model), name)
    if not _whole(parameters, 0) or parameters > _MOST_PARAMETERS:
        raise ContractError(
            f"policy {name}: predictor_parameters() returned {_shown(parameters)}, "
            f"needs a whole number from 0 to 10^{len(str(_MOST_PARAMETERS)) - 1}"
        )
    adapter = read_adapter(settings.lora, model, merged=settings.lora_merged) if settings.lora and plans else None
    return place(
        plans, model, settings.bits, budget, kv_tokens, parameters,
        adapter=adapter, longest=longest, scope=settings.cache_scope, shares=settings.cache_shares,
    )  # fmt: skip


def _ask(method: str, call: Callable[[], Any], name: str) -> Any:
    """Call a policy's method; what it raises becomes one line that names the policy."""
    try:
        return call()
    except HwsimError as error:
        raise type(error)(f"policy {name}: {error}") from error
    except (Exception, SystemExit) as error:  # a plug-in must not end the program
        raised = f"{method}() raised {type(error).__name__}: {one_line(error)}"
        raise ContractError(f"policy {name}: {raised}") from error


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
    try:
        return plan_groups(groups, model, settings.bits, settings.block, settings.neurons)
    except ContractError as error:
        raise ContractError(f"policy {name}: {error}") from error


def _result(
    header: TraceHeader, source: dict[str, Any], profile: Profile, policy: Policy, settings: Settings,
    placement: Placement, demand: Demand, timing: metrics.Timing, eviction: Eviction, names: Names,
) -> metrics.Result:  # fmt: skip
    plans = placement.groups
    tokens = header.decoded
    requests, hits = (array.astype(np.int64) for array in (demand.requests, demand.hits))
    flash, dram = demand.miss_bytes(plans), demand.hit_bytes(plans)
    kv = bounds.kv_lengths(header.sequences) * placement.kv_entry
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
    flash_read = flash_bytes
    if settings.timing == "events":  # the closed form knows no pages
        flash_read += _rounded_up(demand, plans, profile)
    return metrics.Result(
        provenance=_provenance(header, source, profile, policy, settings, placement, eviction, names),
        notes=notes(header.origin, placement, eviction, profile, names.policy, settings.timing),
        tokens=tokens,
        throughput_tok_s=tokens / timing.times.total,
        latency_s=metrics.latency(timing.token_s),
        ttft_s=bounds.prefill_seconds(placement, profile, header.sequences, flat=settings.timing == "closed-form"),
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
        energy_j=_energy(
            profile, flash_read, dram_bytes, bounds.operations(demand, placement, header.sequences), timing
        ),
        groups=groups,
        per_token=_per_token(timing, requests, hits, flash_token, dram_token) if settings.per_token else None,
    )


def _rounded_up(demand: Demand, plans: tuple[GroupPlan, ...], profile: Profile) -> int:
    """Bytes that Flash reads beyond the needed ones, because it reads whole pages."""
    more = 0
    last = demand.last_misses
    for index, plan in enumerate(plans):
        page = sum(read_sizes(profile.flash, plan.slice_bytes)) - plan.unit_bytes
        more += int((demand.requests - demand.hits)[:, :, index].sum(dtype=np.int64)) * page
        if plan.short and last is not None:
            page_of_last = sum(read_sizes(profile.flash, plan.last_slice_bytes)) - plan.last_bytes
            more += int(last[:, :, index].sum(dtype=np.int64)) * (page_of_last - page)
    return more


def _density(model: ModelShape, placement: Placement, demand: Demand, tokens: int) -> float:
    per_index = np.array([plan.mlp_parameters for plan in placement.groups], np.int64)
    read = int((demand.indices(placement.groups).sum(axis=(0, 1)) * per_index).sum())
    every_token = placement.unmasked_mlp + placement.predictor_parameters
    every_token += placement.adapter.counted_mlp if placement.adapter else 0
    return (read + tokens * every_token) / (tokens * model.num_hidden_layers * model.mlp_parameters)


def _energy(
    profile: Profile, flash_read_bytes: int, dram_bytes: int, operations: float, timing: metrics.Timing
) -> float | None:
    if profile.energy is None:
        return None
    energy = profile.energy
    moved = flash_read_bytes * energy.flash_read + dram_bytes * energy.dram_read
    return moved + operations * (energy.compute or 0.0) + timing.times.total * (energy.base_power or 0.0)


def _per_token(
    timing: metrics.Timing, requests: np.ndarray, hits: np.ndarray, flash: np.ndarray, dram: np.ndarray
) -> list[metrics.TokenResult]:
    asked, found = requests.sum(axis=(1, 2)), hits.sum(axis=(1, 2))
    rows = zip(timing.token_s.tolist(), asked.tolist(), found.tolist(), flash.tolist(), dram.tolist(), strict=True)
    return [
        metrics.TokenResult(latency_s=seconds, requests=r, hits=h, flash_bytes=f, dram_bytes=d)
        for seconds, r, h, f, d in rows
    ]


def _provenance(
    header: TraceHeader, source: dict[str, Any], profile: Profile, policy: Policy, settings: Settings,
    placement: Placement, eviction: Eviction, names: Names,
) -> dict[str, Any]:  # fmt: skip
    return {
        "hwsim": hwsim.__version__,
        "trace": source,
        "model": header.model.model_dump(),
        "policy": _plugin(names.policy, policy),
        "eviction": _plugin(names.eviction, eviction),
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
        },
        "seed": settings.seed,
    }


def _plugin(name: str, plugin: BaseModel) -> dict[str, Any]:
    """A plug-in in the provenance: two of one name are told apart by the file that defines them."""
    try:
        source = hashlib.sha256(Path(inspect.getfile(type(plugin))).read_bytes()).hexdigest()
    except (OSError, TypeError):  # made in a session, without a file
        source = None
    return {"name": name, "sha256": source, "parameters": plugin.model_dump(mode="json")}

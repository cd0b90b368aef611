"""The notes of a result: sentences that a reader needs to interpret it."""

from __future__ import annotations

from collections.abc import Sequence

from hwsim.device.flash_times import flash_seconds, read_sizes
from hwsim.device.profile import Profile
from hwsim.masking.counts import Counts
from hwsim.memory.groups import GroupPlan
from hwsim.memory.placement import Placement
from hwsim.model.shape import ModelShape
from hwsim.simulation.expert_notes import expert_notes
from hwsim.simulation.metrics import DeviceFlags, Prefetched
from hwsim.simulation.run import Run
from hwsim.timing.reads import ReadSetup
from hwsim.trace import Encoding
from hwsim.util.units import show_rate, show_size

_ODD = 1.5  # multiple of the flat rate above which a table's rate gets a warning
_MUCH = 1.5  # multiple of the needed bytes from which on whole pages get a note
_MANY = 10_000  # reads at once: enough to fill any queue and to hide latency


def notes(
    run: Run, counts: Counts, prefetched: Prefetched | None = None, flags: DeviceFlags | None = None
) -> list[str]:
    """The notes of one run.

    Args:
        run: the run.
        counts: requests of every step that decodes.
        prefetched: prefetch of the run, or None.
        flags: comparison with the flags of the device that ran the model, or None.
    """
    placement, profile, settings, name = run.placement, run.hardware, run.settings, run.names.policy
    sentences = []
    if run.header.origin == "synthetic":
        sentences.append("The trace is synthetic: no model produced it.")
    sentences += _encoding_notes(run.header.encoding)
    sentences += _layer_notes(run.header.model, settings.kv_window)
    sentences += _budget_notes(run)
    sentences += expert_notes(run, counts, flags)
    option = "--dram" if settings.cache is None else "--cache"
    sentences += _fitting_notes(placement, name, option, equal=settings.cache_shares is None)
    sentences += _streaming_notes(placement, name)
    if placement.plans and run.eviction.caches and not placement.bytes.streamed:
        bypass = (settings.admission or run.eviction.admission) == "bypass"
        sentences += _cache_notes(placement, name, bypass)
    sentences += _energy(profile)
    sentences += _odd_rates(profile)
    if settings.timing == "events" and settings.reads.plain:
        sentences += _small_reads(placement, profile, name, settings.reads)
    return sentences + _prefetch_notes(prefetched, run.sequences.decoded_tokens, name)


def _layer_notes(model: ModelShape, kv_window: int | None) -> list[str]:
    """Notes on layers that are not plain, where a reader must know how they are counted."""
    sentences = []
    if any("latent" in layer.attention for layer in model.layers):
        sentences.append(
            "Attention is latent: the KV cache holds compressed entries, and arithmetic is counted as if its matrices "
            "were absorbed into query and output."
        )
    if any(layer.state_elements for layer in model.layers):
        sentences.append("Layers with a fixed state read and write all of it at every token, at --bits state.")
    if model.by_bytes:
        sentences.append(
            "Of the model only bytes are known: what every token reads is pinned, and there is no KV cache and no "
            "arithmetic."
        )
    if model.embedding_row:
        sentences.append("Every token reads a row of the embeddings for each layer from Flash.")
    if kv_window is not None and any(layer.window for layer in model.layers):
        sentences.append(f"--kv-window {kv_window} takes the place of the model's own windows.")
    return sentences


def _fitting_notes(placement: Placement, name: str, option: str, *, equal: bool) -> list[str]:
    """Notes if everything fits, or would fit with other shares."""
    where = placement.bytes
    whole, kv, budget = (show_size(size) for size in (where.resident + where.sparse, where.kv_reserved, where.budget))
    if placement.everything_fits:
        return [
            f"Everything fits: the KV cache of {kv} and all weights, {whole}, lie within the DRAM budget of {budget}; "
            f"Flash is read only to fill empty caches. Give less with {option} to see what streaming costs."
        ]
    if not where.enough:
        return []
    short = {group: plans for group, plans in placement.plans.by_name().items() if _short(plans)}
    holds = ", ".join(
        f"{group} {min(plan.capacity for plan in plans)} of {plans[0].units} units" for group, plans in short.items()
    )
    shares = "equal shares for each matrix" if equal else "the shares of --cache-shares"
    return [
        f"{name}: the DRAM budget of {budget} is as large as the KV cache of {kv} and all weights, {whole}, but "
        f"caches get {shares}, and some cannot hold theirs ({holds}); give more with {option}."
    ]


def _short(plans: list[GroupPlan]) -> bool:
    return any(plan.capacity < plan.units for plan in plans)


def _streaming_notes(placement: Placement, name: str) -> list[str]:
    """Notes on weights that do not fit and are streamed."""
    where = placement.bytes
    if not where.streamed:
        return []
    streamed = show_size(where.streamed)
    if not placement.plans:
        return [
            f"{name}: {show_size(where.pinned)} of {show_size(where.resident)} weights are pinned in DRAM, "
            f"{streamed} are streamed from Flash at every token."
        ]
    return [
        f"{name}: warning: the DRAM budget of {show_size(where.budget)} is smaller than the resident part; "
        f"{streamed} are streamed from Flash at every token and nothing is left for a cache."
    ]


def _prefetch_notes(ahead: Prefetched | None, tokens: int, name: str) -> list[str]:
    """Notes on prefetch and the quality of its predictions."""
    if ahead is None:
        return []
    if ahead.precision is None or ahead.recall is None:
        return [f"{name}: {ahead.rule} guessed nothing that was not cached already, or nothing was missed."]
    read, wasted = (show_size(size / tokens) for size in (ahead.read_bytes, ahead.wasted_bytes))
    return [
        f"{name}: of what {ahead.rule} guessed and no cache held {ahead.precision:.0%} was needed, {ahead.recall:.0%} "
        f"of all misses; {read} a token were read ahead in time, {wasted} of it for nothing."
    ]


def _budget_notes(run: Run) -> list[str]:
    """A note if --cache, with what is pinned beside it, is more than the device gives."""
    if run.settings.cache is None or run.device is None or run.placement.bytes.budget <= run.device.dram.budget:
        return []
    where = run.placement.bytes
    return [
        f"{run.names.policy}: --cache {show_size(run.settings.cache)} and {show_size(where.reserved + where.resident)} "
        f"that are pinned are more than the device's DRAM budget of {show_size(run.device.dram.budget)}."
    ]


def _encoding_notes(encoding: Encoding) -> list[str]:
    """Notes on values that the trace's encoding changed or dropped."""
    sentences = []
    if encoding.name == "int8":
        sentences.append("The trace holds signals in 8 bits: each value is off by 1/254 of its row's largest at most.")
    if encoding.share is not None:
        sentences.append(
            f"The trace keeps the largest {encoding.share:.4g} of each row; the others read as 0, which changes the "
            "masks of policies that look at the cache or at earlier tokens."
        )
    return sentences


def _cache_notes(placement: Placement, name: str, bypass: bool) -> list[str]:
    groups = placement.plans.by_name()
    if placement.shared and placement.plans.routed and placement.bytes.cache:
        return []  # what an event needs stays, however small the cache is
    if not any(plan.capacity for plan in placement.plans):
        return [f"{name}: warning: what is left for the caches, {show_size(placement.bytes.cache)}, holds no unit."]
    over = {group: plans for group, plans in groups.items() if all(plan.k > plan.capacity for plan in plans)}
    alone = not placement.shared or len(over) == len(groups)  # otherwise a smaller mask leaves room for a choice
    if over and not bypass and alone:
        shares = ", ".join(
            f"{group} {_span([plan.k for plan in plans])} of {_span([plan.capacity for plan in plans])}"
            for group, plans in over.items()
        )
        return [
            f"{name}: each mask asks for more units than its cache holds ({shares}), so every token refills that cache "
            "and all eviction rules that admit whatever is needed do the same there."
        ]
    return []


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}-{high}"


def _energy(profile: Profile) -> list[str]:
    """A note on energies that the profile does not give; reads are only a part of what a phone draws."""
    if profile.energy is None:
        return []
    missing = [
        words
        for words, value in (("arithmetic", profile.energy.compute), ("base power", profile.energy.base_power))
        if value is None
    ]
    if not missing:
        return []
    return [f"Energy is that of reading Flash and DRAM; the profile knows no {' and no '.join(missing)}."]


def _odd_rates(profile: Profile) -> list[str]:
    """Warnings about implausible rates, which usually are a wrong unit or digit in the profile."""
    if not profile.flash.by_request:
        return []
    best, flat, dram = profile.flash.best(), profile.flash.read_bandwidth, profile.dram.bandwidth
    rate = f"warning: Flash reads up to {show_rate(best)}"
    if best > dram:
        return [f"{rate}, faster than DRAM's {show_rate(dram)}; check the profile."]
    if best > _ODD * flat:
        return [f"{rate} by its table or queue, its read_bandwidth is {show_rate(flat)}; check the profile."]
    return []


def _small_reads(placement: Placement, profile: Profile, name: str, reads: ReadSetup) -> list[str]:
    """Notes on units whose reads are so small that Flash is far below its flat rate."""
    if not placement.plans or placement.everything_fits:
        return []
    seconds = flash_seconds(profile.flash)
    groups = {group: plans[0] for group, plans in placement.plans.by_name().items()}
    slices = {group: reads.slices(plan)[0] for group, plan in groups.items()}
    rates = {group: _MANY * plan.unit_bytes / seconds(_MANY, slices[group]) for group, plan in groups.items()}
    slow = {group: rate for group, rate in rates.items() if rate < profile.flash.read_bandwidth / 2}
    pages = _whole_pages(placement, profile, reads)
    if not slow:
        return [f"{name}: {pages}"] if pages else []
    shown = ", ".join(f"{group} {show_size(min(slices[group]))} at {show_rate(rate)}" for group, rate in slow.items())
    flat = show_rate(profile.flash.read_bandwidth)
    return [
        f"{name}: units are read from Flash in small pieces ({shown}), far below the {flat} of large reads: this is "
        "what this device gives for single rows and columns of this model. --timing closed-form shows the flat rate."
        + (f" {pages}" if pages else "")
    ]


def _whole_pages(placement: Placement, profile: Profile, reads: ReadSetup) -> str:
    """A note on how many more bytes Flash reads than needed, if it is much; the energy counts what it reads."""
    read = {
        plan.name: sum(read_sizes(profile.flash, reads.slices(plan)[0])) / plan.unit_bytes for plan in placement.plans
    }
    much = ", ".join(f"for {group} {times:.3g} times" for group, times in read.items() if times >= _MUCH)
    page = profile.flash.page_size
    return f"Flash reads whole pages of {page} B: {much} the bytes that are needed." if much else ""

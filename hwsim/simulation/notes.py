"""What a reader must know to read a result right, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from hwsim.device.flash_times import flash_seconds, read_sizes
from hwsim.device.profile import Profile
from hwsim.evictions import Eviction
from hwsim.memory.placement import Placement
from hwsim.simulation.metrics import Prefetched
from hwsim.timing.reads import ReadSetup
from hwsim.trace import FLOAT16, Encoding
from hwsim.util.units import show_rate, show_size

_ODD = 1.5  # times the flat rate that a table may reach before it is told
_MUCH = 1.5  # times the bytes that are needed: worth a word
_MANY = 10_000  # reads at once: enough to keep any queue full and to make a latency vanish


def notes(
    origin: str,
    placement: Placement,
    eviction: Eviction,
    profile: Profile,
    name: str,
    timing: str,
    *,
    encoding: Encoding = FLOAT16,
    bypass: bool = False,
    reads: ReadSetup | None = None,
) -> list[str]:
    """The notes of one replay.

    Args:
        origin: of the trace.
        placement: where the bytes lie.
        eviction: picks who leaves the caches.
        profile: the device.
        name: of the policy.
        timing: ``events`` or ``closed-form``.
        encoding: of the trace.
        bypass: whether the caches may refuse what a token needs.
        reads: how units lie in Flash and are read.
    """
    found = []
    whole = show_size(placement.resident_weights + placement.sparse)
    kv = show_size(placement.kv_reserved)
    budget = show_size(placement.budget)
    if origin == "synthetic":
        found.append("The trace is synthetic: no model produced it.")
    found += _encoding_notes(encoding)
    if placement.everything_fits:
        found.append(
            f"Everything fits: the KV cache of {kv} and all weights, {whole}, lie within the DRAM budget of {budget}; "
            "Flash is read only to fill empty caches. Give less with --dram to see what streaming costs."
        )
    elif placement.enough:
        short = [plan for plan in placement.groups if plan.capacity < plan.units]
        holds = ", ".join(f"{plan.group.name} {plan.capacity} of {plan.units} units" for plan in short)
        uneven = any(plan.capacities for plan in short)
        shares = "the shares of --cache-shares" if uneven else "equal shares for each matrix"
        found.append(
            f"{name}: the DRAM budget of {budget} is as large as the KV cache of {kv} and all weights, {whole}, but "
            f"caches get {shares}, and some cannot hold theirs ({holds}); give more with --dram."
        )
    if placement.streamed and not placement.groups:
        pinned = placement.pinned_weights
        found.append(
            f"{name}: {show_size(pinned)} of {show_size(placement.resident_weights)} weights are pinned in DRAM, "
            f"{show_size(placement.streamed)} are streamed from Flash at every token."
        )
    elif placement.streamed:
        found.append(
            f"{name}: warning: the DRAM budget of {budget} is smaller than the resident part; "
            f"{show_size(placement.streamed)} are streamed from Flash at every token and nothing is left for a cache."
        )
    elif placement.groups and eviction.caches:
        found += _cache_notes(placement, name, bypass)
    found += _energy(profile)
    found += _odd_rates(profile)
    if timing == "events" and (reads is None or reads.plain):
        found += _small_reads(placement, profile, name, reads or ReadSetup())
    return found


def prefetch_notes(found: Prefetched | None, tokens: int, name: str) -> list[str]:
    """What was read ahead, and how well it was guessed."""
    if found is None:
        return []
    if found.precision is None or found.recall is None:
        return [f"{name}: {found.rule} guessed nothing that was not cached already, or nothing was missed."]
    read, wasted = (show_size(size / tokens) for size in (found.read_bytes, found.wasted_bytes))
    return [
        f"{name}: of what {found.rule} guessed and no cache held {found.precision:.0%} was needed, {found.recall:.0%} "
        f"of all misses; {read} a token were read ahead in time, {wasted} of it for nothing."
    ]


def _encoding_notes(encoding: Encoding) -> list[str]:
    """What the trace has lost of the signals."""
    found = []
    if encoding.name == "int8":
        found.append("The trace holds signals in 8 bits: each value is off by 1/254 of its row's largest at most.")
    if encoding.share is not None:
        found.append(
            f"The trace keeps the largest {encoding.share:.4g} of each row; the others read as 0, which changes the "
            "masks of policies that look at the cache or at earlier tokens."
        )
    return found


def _cache_notes(placement: Placement, name: str, bypass: bool) -> list[str]:
    held = {
        plan.group.name: [plan.capacity_in(layer) for layer in range(placement.layers)] for plan in placement.groups
    }
    if not any(map(any, held.values())):
        return [f"{name}: warning: what is left for the caches, {show_size(placement.cache_bytes)}, holds no unit."]
    over = [plan for plan in placement.groups if all(k > n for k, n in zip(plan.k, held[plan.group.name], strict=True))]
    alone = not placement.shared or len(over) == len(placement.groups)  # else a smaller mask leaves room for a choice
    if over and not bypass and alone:
        shares = ", ".join(f"{plan.group.name} {_span(plan.k)} of {_span(held[plan.group.name])}" for plan in over)
        return [
            f"{name}: each mask asks for more units than its cache holds ({shares}), so every token refills that cache "
            "and all eviction rules that admit whatever is needed do the same there."
        ]
    return []


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}-{high}"


def _energy(profile: Profile) -> list[str]:
    """What the energy leaves out: reads alone are a part of what a phone draws."""
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
    """Rates that hardly any device has: as a rule a slip of a unit or of a digit in the profile."""
    if not profile.flash.by_request:
        return []
    best, flat, dram = profile.flash.best(), profile.flash.read_bandwidth, profile.dram.bandwidth
    told = f"warning: Flash reads up to {show_rate(best)}"
    if best > dram:
        return [f"{told}, faster than DRAM's {show_rate(dram)}; check the profile."]
    if best > _ODD * flat:
        return [f"{told} by its table or queue, its read_bandwidth is {show_rate(flat)}; check the profile."]
    return []


def _small_reads(placement: Placement, profile: Profile, name: str, reads: ReadSetup) -> list[str]:
    """Units whose reads are so small that Flash is far from its flat rate: this decides such results, so it is said."""
    if not placement.groups or placement.everything_fits:
        return []
    seconds = flash_seconds(profile.flash)
    slices = {plan.group.name: reads.slices(plan)[0] for plan in placement.groups}
    rates = {
        plan.group.name: _MANY * plan.unit_bytes / seconds(_MANY, slices[plan.group.name]) for plan in placement.groups
    }
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
    """How much more Flash reads than is needed, where that is much; the energy counts what it reads."""
    read = {
        plan.group.name: sum(read_sizes(profile.flash, reads.slices(plan)[0])) / plan.unit_bytes
        for plan in placement.groups
    }
    much = ", ".join(f"for {group} {times:.3g} times" for group, times in read.items() if times >= _MUCH)
    page = profile.flash.page_size
    return f"Flash reads whole pages of {page} B: {much} the bytes that are needed." if much else ""

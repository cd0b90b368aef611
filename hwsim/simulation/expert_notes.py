"""Notes of a run in which experts are chosen, or steps have several members."""

from __future__ import annotations

from hwsim.masking.counts import Counts
from hwsim.simulation.metrics import DeviceFlags
from hwsim.simulation.run import Run
from hwsim.util.units import show_size

_IN_ORDER = ("last", "first")  # rank updates by which all experts of a token leave before any is needed again


def expert_notes(run: Run, counts: Counts, flags: DeviceFlags | None) -> list[str]:
    """The notes that a reader needs to interpret a result with experts or with steps of several members.

    Args:
        run: the run.
        counts: requests of every step that decodes.
        flags: comparison with the flags of the device that ran the model, or None.
    """
    sentences = _demand_notes(run, counts) + _step_notes(run, counts)
    if run.settings.speculate:
        sentences.append("Making drafts costs nothing here: no draft model is simulated.")
    if flags is not None and flags.rows:
        sentences.append(
            f"{run.names.policy}: {flags.agree:,} of the {flags.rows:,} cache flags of the device that ran the model "
            "are the same here."
        )
    return sentences


def _step_notes(run: Run, counts: Counts) -> list[str]:
    """What the numbers of a table are about, where steps have several members or prompts go through the caches."""
    sentences = []
    if counts.used is not None and counts.tokens != run.sequences.decoded_tokens:
        sentences.append(
            f"{counts.tokens} steps decode {run.sequences.decoded_tokens} tokens; latencies are those of steps."
        )
    if counts.prompt is not None and (requests := int(counts.prompt.requests.sum())):
        rate = int(counts.prompt.hits.sum()) / requests
        sentences.append(
            f"{run.names.policy}: prompts went through the caches and hit {rate:.1%}; the hit rate of the table is "
            "that of decoding."
        )
    return sentences


def _demand_notes(run: Run, counts: Counts) -> list[str]:
    """Warnings about caches that are smaller than what they must hold for a while to be of any use."""
    placement, name = run.placement, run.names.policy
    plans = [plan for plan in placement.plans if plan.routed]
    if not plans or not run.eviction.caches or placement.bytes.streamed:
        return []
    scope, size = run.settings.cache_scope, placement.bytes.cache
    used = counts.requests.mean(axis=0)  # [layers, slots]
    step = "token" if run.settings.lockstep == 1 and not run.settings.speculate else "step"
    if scope == "global":
        demand = int(sum(used[place[:2]] * place.plan.unit_bytes for place in placement.plans.places()))
        if size >= demand or type(run.eviction).rank_update not in _IN_ORDER:
            return []
        return [
            f"{name}: warning: the cache of {show_size(size)} is smaller than what one {step} needs of the experts, "
            f"{show_size(demand)}. Layers take turns, so what was used longest ago is needed next, and such a cache "
            f"finds {'little' if counts.hits.any() else 'nothing'}. Give more with --cache or --dram, or choose "
            "--cache-scope layer or another --eviction."
        ]
    # a cache for one group of one layer holds whole units; without room for one it keeps nothing
    small = [
        place
        for place in placement.plans.places()
        if place.plan.routed and place.plan.capacity < used[place[:2]] and (place.plan.capacity or scope == "layer")
    ]
    if not small or size == 0 or (placement.shared and not any(placement.shared.sizes)):
        return []
    more = sum((used[place[:2]] - place.plan.capacity) * place.plan.unit_bytes for place in small)
    return [
        f"{name}: warning: the caches of {len(small)} of {len(plans)} layers hold fewer experts "
        f"({small[0].plan.capacity}) than a {step} uses there ({used[small[0][:2]]:.3g}); what it needs stays until "
        f"the next one all the same, about {show_size(more)} more than the caches were given."
    ]

"""Popularity and locality: cache hits of the same masks in recorded and in shuffled order, under every eviction rule.

Shuffling the tokens of a sequence keeps how often each unit is needed, its popularity. It destroys the order of the
needs, locality. If all units were equally popular and independent, every rule without foresight would have the hit rate
capacity / units. So the hit rate has three parts:

- uniform: capacity / units;
- popularity: control - capacity / units, where the control is the hit rate in shuffled order;
- locality: trace - control.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from hwsim.analysis.groups import alike_groups
from hwsim.cache.cache import CacheSetup
from hwsim.errors import SettingError
from hwsim.evictions import Eviction
from hwsim.masking.streams import Masking, SignalSource, decided
from hwsim.memory.groups import GroupPlan
from hwsim.trace.sequences import Sequences

_BLIND = "its masks change with the rule and cannot be shuffled"


@dataclass
class Hits:
    """Hits of one rule.

    Attributes:
        trace: in recorded order.
        control: with the tokens of each sequence shuffled.
    """

    trace: int = 0
    control: int = 0


@dataclass
class GroupLocality:
    """One group, over all layers.

    Attributes:
        units: of the group.
        capacity: units that its cache holds.
        requests: units of all masks together.
        crowded: units of the masks that are larger than the capacity, where rules can do little.
        rules: hits by rule.
    """

    units: int
    capacity: int
    requests: int = 0
    crowded: int = 0
    rules: dict[str, Hits] = field(default_factory=dict)

    @property
    def uniform(self) -> float:
        """Hit rate of equally popular, independent units."""
        return self.capacity / self.units

    def rates(self, rule: str) -> tuple[float, float]:
        """Hit rates of a rule on the trace and on the control."""
        hits, requests = self.rules[rule], max(1, self.requests)
        return hits.trace / requests, hits.control / requests


def locality(
    source: SignalSource,
    sequences: Sequences,
    masking: Masking,
    rules: dict[str, Eviction],
    *,
    progress: Callable[[int], None] | None = None,
) -> dict[str, GroupLocality]:
    """Count the hits of every rule on the masks of a policy and on their shuffled control.

    Args:
        source: gives the signals.
        sequences: windows of the trace.
        masking: the policy, with its caches' capacities; its masks must not depend on the cache. Its seed also seeds
            the shuffle.
        rules: eviction rules by name.
        progress: callback that receives the number of finished layers.

    Returns:
        The hits, by group.

    Raises:
        PluginError: the policy looks at the cache, or broke its contract.
        SettingError: the policy masks nothing, or groups of one name differ in size.
    """
    if not masking.plans:
        raise SettingError(f"policy {masking.name}: masks nothing, so nothing is cached; choose another, such as dip")
    groups = {name: GroupLocality(plan.units, plan.capacity) for name, plan in alike_groups(masking.plans).items()}
    for layer in range(masking.plans.layers):
        for place in masking.plans.places([layer]):
            streams = decided(source, sequences, masking, place, _BLIND)
            masks = [np.stack([mask.copy() for mask in sequence]) for sequence in streams]
            _count(groups[place.plan.name], masks, rules, place.plan, masking.seed)
        if progress:
            progress(layer + 1)
    return groups


def _count(
    group: GroupLocality, masks: list[np.ndarray], rules: dict[str, Eviction], plan: GroupPlan, seed: int
) -> None:
    sizes = np.concatenate([sequence.sum(axis=1) for sequence in masks])
    group.requests += int(sizes.sum())
    group.crowded += int(sizes[sizes > plan.capacity].sum())
    shuffled = [sequence[shuffled_order(seed, number, len(sequence))] for number, sequence in enumerate(masks)]
    for name, rule in rules.items():
        hits = group.rules.setdefault(name, Hits())
        hits.trace += _hits(masks, rule, plan)
        hits.control += _hits(shuffled, rule, plan)


def shuffled_order(seed: int, number: int, tokens: int) -> np.ndarray:
    """The shuffled order of one sequence's tokens, int64 ``[tokens]``, the same in every layer."""
    return np.random.default_rng((seed, number)).permutation(tokens)


def _hits(masks: list[np.ndarray], rule: Eviction, plan: GroupPlan) -> int:
    cache = CacheSetup().cache(plan.layer, plan.name, plan.units, plan.capacity, rule)
    hits = 0
    for sequence in masks:
        cache.start(sequence if rule.needs_future else None)
        hits += sum(cache.step(mask)[1] for mask in sequence)
    return hits

"""Where a cache's hits come from: the same masks in recorded order and in shuffled order, under every eviction rule.

Shuffling the tokens of a sequence keeps how often each unit is needed, its popularity, and destroys who is needed soon
after whom, locality. What every rule without foresight would hit if all units were equally popular and independent is
capacity / units. So the hit rate falls into three parts: capacity / units; popularity = control - capacity / units; and
locality = trace - control.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from hwsim.cache.cache import CacheSetup
from hwsim.errors import SettingError
from hwsim.evictions import Eviction
from hwsim.masking.scan import SignalSource, decided
from hwsim.memory.placement import GroupPlan
from hwsim.model.shape import ModelShape
from hwsim.policy import Policy
from hwsim.trace.header import Sequence

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
        requests: units that all masks ask for.
        crowded: those of them that belong to masks larger than the capacity, where rules can do little.
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
        hits, asked = self.rules[rule], max(1, self.requests)
        return hits.trace / asked, hits.control / asked


def locality(
    source: SignalSource,
    model: ModelShape,
    sequences: list[Sequence],
    policy: Policy,
    plans: tuple[GroupPlan, ...],
    rules: dict[str, Eviction],
    *,
    name: str = "",
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> dict[str, GroupLocality]:
    """Count the hits of every rule on the masks of a policy and on their shuffled control.

    Args:
        source: gives the signals.
        model: its shape.
        sequences: windows of the trace.
        policy: decides the masks; one that looks at the cache has none of its own.
        plans: its groups, with their caches' capacities.
        rules: by name.
        name: of the policy, for messages.
        seed: of the shuffle, and of the random numbers that the policy may draw.
        progress: is called with the number of layers done.

    Returns:
        By group.

    Raises:
        PluginError: the policy looks at the cache, or broke its contract.
        SettingError: the policy masks nothing.
    """
    if not plans:
        raise SettingError(f"policy {name}: masks nothing, so nothing is cached; choose another, such as dip")
    found = {plan.group.name: GroupLocality(plan.units, plan.capacity) for plan in plans}
    for layer in range(model.num_hidden_layers):
        for index, plan in enumerate(plans):
            each = decided(source, model, sequences, policy, plan, layer, name, (seed, layer, index), _BLIND)
            masks = [np.stack([mask.copy() for mask in sequence]) for sequence in each]
            _count(found[plan.group.name], masks, rules, layer, plan, seed)
        if progress:
            progress(layer + 1)
    return found


def _count(
    found: GroupLocality, masks: list[np.ndarray], rules: dict[str, Eviction], layer: int, plan: GroupPlan, seed: int
) -> None:
    sizes = np.concatenate([each.sum(axis=1) for each in masks])
    found.requests += int(sizes.sum())
    found.crowded += int(sizes[sizes > plan.capacity].sum())
    shuffled = [each[_order(seed, number, len(each))] for number, each in enumerate(masks)]
    for name, rule in rules.items():
        hits = found.rules.setdefault(name, Hits())
        hits.trace += _hits(masks, rule, layer, plan)
        hits.control += _hits(shuffled, rule, layer, plan)


def _order(seed: int, number: int, tokens: int) -> np.ndarray:
    """The control's order of one sequence, the same in every layer: its tokens are shuffled, not their units."""
    return np.random.default_rng((seed, number)).permutation(tokens)


def _hits(masks: list[np.ndarray], rule: Eviction, layer: int, plan: GroupPlan) -> int:
    cache = CacheSetup().cache(layer, plan.group.name, plan.units, plan.capacity, rule)
    hits = 0
    for sequence in masks:
        cache.start(sequence if rule.needs_future else None)
        hits += sum(cache.step(mask)[1] for mask in sequence)
    return hits

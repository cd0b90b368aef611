"""Popularity and locality of experts: the decoded tokens of each sequence in recorded and in shuffled order.

Prompts keep their order and go through the caches as in a replay. Hits are those of decoding.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hwsim.analysis.locality import GroupLocality, Hits, shuffled_order
from hwsim.errors import SettingError
from hwsim.evictions import Eviction
from hwsim.masking.counts import Counts
from hwsim.masking.scan import check_shared_groups
from hwsim.masking.step_scan import scan_steps
from hwsim.masking.streams import Masking, SignalSource, decided
from hwsim.trace.sequences import Sequences
from hwsim.trace.steps import Steps

_BLIND = "its masks change with the rule and cannot be shuffled"


class Shuffled:
    """A source of signals whose decoded rows are shuffled within each sequence, alike in every layer.

    Args:
        source: gives the signals.
        sequences: windows of the trace.
        seed: of the shuffle.
    """

    def __init__(self, source: SignalSource, sequences: Sequences, seed: int) -> None:
        self._source = source
        self._rows = np.arange(max((part.rows.stop for part in sequences.decoded()), default=0))
        for number, part in enumerate(sequences.decoded()):
            rows = slice(part.rows.start, part.rows.stop)
            self._rows[rows] = self._rows[rows][shuffled_order(seed, number, len(part.rows))]

    def read(self, layer: int, signal: str, start: int, stop: int) -> np.ndarray:
        """Values of a signal, float32 ``[stop - start, width]``; of ``experts`` int64."""
        rows = self._rows[start:stop]
        if not len(rows):
            return self._source.read(layer, signal, start, stop)
        first = int(rows.min())
        return self._source.read(layer, signal, first, int(rows.max()) + 1)[rows - first]

    def norm(self, layer: int, name: str) -> np.ndarray:
        """One of `hwsim.model.shape.NORMS`, float32 ``[indices]``."""
        return self._source.norm(layer, name)


def expert_locality(
    source: SignalSource,
    sequences: Sequences,
    steps: Steps,
    masking: Masking,
    rules: dict[str, Eviction],
    size: int,
    *,
    progress: Callable[[int], None] | None = None,
) -> GroupLocality:
    """Count the hits of every rule on the experts of a policy and on their shuffled control.

    Args:
        source: gives the signals.
        sequences: windows of the trace.
        steps: what goes through the model together.
        masking: the policy and its caches; its masks must not depend on the cache. Its seed also seeds the shuffle.
        rules: eviction rules by name.
        size: bytes of all caches.
        progress: callback that receives the number of finished rules.

    Returns:
        The hits of all layers; `GroupLocality.capacity` is the number of experts of mean size that the caches hold.

    Raises:
        PluginError: the policy looks at the cache, or broke its contract.
        SettingError: a rule cannot serve the caches.
    """
    for place in masking.plans.places():
        for sequence in decided(source, sequences, masking, place, _BLIND):
            for _ in sequence:
                pass
    units = sum(plan.units for plan in masking.plans)
    whole = sum(plan.total_bytes for plan in masking.plans)
    locality = GroupLocality(units, min(units, size * units // whole))
    shuffled = Shuffled(source, sequences, masking.seed)
    for number, (name, rule) in enumerate(rules.items(), 1):
        own = masking.under(rule)
        counts, control = (scan_steps(each, sequences, steps, own) for each in (source, shuffled))
        locality.rules[name] = Hits(int(counts.hits.sum()), int(control.hits.sum()))
        locality.requests = int(counts.requests.sum())
        locality.crowded = _crowded(counts, masking)
        if progress:
            progress(number)
    return locality


def rules_for(masking: Masking, rules: dict[str, Eviction], named: bool) -> dict[str, Eviction]:
    """The rules that can serve the caches of a run.

    Raises:
        SettingError: a rule cannot, and the user has named it.
    """
    served = {}
    for name, rule in rules.items():
        try:
            if masking.shared is not None:
                check_shared_groups(rule, masking.shared.scope, masking.plans)
            served[name] = rule
        except SettingError:
            if named:
                raise
    return served


def _crowded(counts: Counts, masking: Masking) -> int:
    """Requests of decoded steps that need more bytes of a cache than it holds."""
    sizes = masking.plans.table(lambda plan: plan.unit_bytes)
    needed = counts.requests * sizes  # [steps, layers, slots]
    if masking.shared is None:
        room = masking.plans.table(lambda plan: plan.capacity * plan.unit_bytes)
        return int(counts.requests[needed > room].sum())
    if masking.shared.scope == "global":
        return int(counts.requests[needed.sum(axis=(1, 2)) > masking.shared.sizes[0]].sum())
    layers = [layer for layer in range(masking.plans.layers) if masking.plans[layer]]
    over = needed[:, layers].sum(axis=2) > np.array(masking.shared.sizes)
    return int(counts.requests[:, layers][over].sum())

"""The scan where groups share caches: token by token, a token's groups one after the other, in all layers of a cache.

A shared cache couples its groups, so their masks go through it in the order in which a device asks for them: token,
layer, then the order of the policy's groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np

from hwsim.cache.cache import Cache
from hwsim.cache.shared import SharedCache, check_shared
from hwsim.evictions import Eviction
from hwsim.masking.counts import Demand, serve
from hwsim.masking.observers import Watching
from hwsim.masking.scan import CacheListener, GroupScan, MaskListener, SignalSource
from hwsim.memory.placement import GroupPlan
from hwsim.memory.shares import Shared
from hwsim.model.shape import NORMS, ModelShape
from hwsim.policy import Policy
from hwsim.trace.header import Sequence
from hwsim.util import kernels

_BLOCK_VALUES = 2**24  # values of all signals that are held at once: 64 MiB

Place = tuple[int, int]
"""A layer, and the number of a group."""


class SharedCaches:
    """All shared caches of a model.

    Attributes:
        plans: the policy's groups.
        layers: of the model.
        rounds: the layers that share a cache, cache by cache.

    Args:
        plans: the policy's groups.
        layers: of the model.
        shared: which caches there are.
        eviction: picks who leaves them.

    Raises:
        SettingError: the rule cannot serve a shared cache.
    """

    def __init__(self, plans: tuple[GroupPlan, ...], layers: int, shared: Shared, eviction: Eviction) -> None:
        check_shared(eviction, shared.scope)
        self.plans, self.layers = plans, layers
        every = range(layers)
        self.rounds = [every] if shared.scope == "global" else [range(layer, layer + 1) for layer in every]
        sizes = [plan.sizes() for plan in plans]
        self._caches = [
            SharedCache(sizes * len(members), size, eviction)
            for members, size in zip(self.rounds, shared.sizes, strict=True)
        ]
        self._parts: dict[Place, Cache] = {}
        for members, cache in zip(self.rounds, self._caches, strict=True):
            self._parts |= dict(zip(product(members, range(len(plans))), cache.parts, strict=True))

    def part(self, layer: int, index: int) -> Cache:
        """What serves one group of one layer."""
        return self._parts[layer, index]

    def start(self, members: range | None = None) -> None:
        """A sequence begins: all caches are empty, or the one that some layers share."""
        for layers, cache in zip(self.rounds, self._caches, strict=True):
            if members in (None, layers):
                cache.start()
                for part in cache.parts:
                    part.start()

    def tell(self, members: range, contents: CacheListener) -> None:
        """Tell what of each group the cache of some layers holds."""
        for layer, (index, plan) in product(members, enumerate(self.plans)):
            contents(layer, plan.group.name, self.part(layer, index).view)


def scan_shared(
    source: SignalSource,
    model: ModelShape,
    sequences: list[Sequence],
    policy: Policy,
    plans: tuple[GroupPlan, ...],
    shared: Shared,
    eviction: Eviction,
    *,
    name: str = "",
    seed: int = 0,
    listener: MaskListener | None = None,
    contents: CacheListener | None = None,
    progress: Callable[[int], None] | None = None,
    watching: Watching | None = None,
) -> Demand:
    """Decide all masks and count all hits, as `hwsim.masking.scan.scan` does, with caches that groups share.

    Args:
        source: gives the signals.
        model: its shape.
        sequences: windows of the trace; prompts are passed over, they touch nothing.
        policy: decides the masks.
        plans: the policy's groups.
        shared: the caches.
        eviction: picks who leaves a cache.
        name: of the policy, for messages.
        seed: of the random numbers that policies may draw.
        listener: is told every mask.
        contents: is told what of each group is cached at the end.
        progress: is called with the number of layers done, or their share.
        watching: what is looked at besides counts.

    Raises:
        ContractError: the policy or the eviction broke its contract.
        SettingError: the rule cannot serve a shared cache.
        TraceError: a signal is missing or damaged.
    """
    decoded = sum(sequence.tokens - sequence.prompt for sequence in sequences)
    demand = Demand.none(decoded, model.num_hidden_layers, plans, watching)
    caches = SharedCaches(plans, model.num_hidden_layers, shared, eviction)
    for members in caches.rounds:
        scans = {
            (layer, index): GroupScan(
                policy, plan, model, layer, eviction,
                name=name, seed=(seed, layer, index), cache=caches.part(layer, index),
            )
            for layer in members
            for index, plan in enumerate(plans)
        }  # fmt: skip
        first = row = 0
        for number, sequence in enumerate(sequences):
            caches.start(members)
            for scan in scans.values():
                scan.begin(number)
            for signals in _signals(source, plans, members, first + sequence.prompt, first + sequence.tokens):
                for (layer, index), scan in scans.items():
                    served = scan.step(signals[layer, index])
                    demand.put(row, layer, index, served)
                    if listener:
                        listener(layer, plans[index].group.name, row, served.masks[0])
                row += 1
                if progress:
                    progress(members.start + len(members) * row // decoded)
            first += sequence.tokens
        if contents:
            caches.tell(members, contents)
    return demand


def count_shared(
    read: Callable[[int, int], np.ndarray],
    tokens: list[int],
    caches: SharedCaches,
    *,
    fresh: bool = True,
    contents: CacheListener | None = None,
    watching: Watching | None = None,
) -> Demand:
    """Let masks that were decided go through shared caches.

    Args:
        read: masks of units of (layer, group), of all tokens: the bits of ``numpy.packbits``, uint8
            ``[tokens, ceil(units / 8)]``.
        tokens: decoded tokens of each sequence.
        caches: that they go through.
        fresh: each sequence begins with empty caches; else they go on as they are.
        contents: is told what of each group is cached at the end.
        watching: what is looked at besides counts.
    """
    plans = caches.plans
    demand = Demand.none(sum(tokens), caches.layers, plans, watching)
    for members in caches.rounds:
        places = list(product(members, range(len(plans))))
        masks = {place: read(*place) for place in places}
        row = 0
        for length in tokens:
            if fresh:
                caches.start(members)
            for at in range(row, row + length):
                for layer, index in places:
                    mask = np.unpackbits(masks[layer, index][at], count=plans[index].units).view(bool)
                    demand.put(at, layer, index, serve(caches.part(layer, index), plans[index], mask))
            row += length
        if contents:
            caches.tell(members, contents)
    return demand


def _signals(
    source: SignalSource, plans: tuple[GroupPlan, ...], layers: range, start: int, stop: int
) -> Iterator[dict[Place, dict[str, np.ndarray]]]:
    """What all groups of some layers need, token by token, read in blocks."""
    needs = sorted({signal for plan in plans for signal in plan.group.needs} - NORMS.keys())
    norms = {
        (layer, index): {
            name: kernels.read_only(source.norm(layer, name)) for name in plan.group.needs if name in NORMS
        }
        for layer in layers
        for index, plan in enumerate(plans)
    }
    step = max(1, _BLOCK_VALUES // (len(layers) * sum(plan.indices for plan in plans)))
    for at in range(start, stop, step):
        end = min(at + step, stop)
        blocks = {
            (layer, signal): kernels.read_only(source.read(layer, signal, at, end))
            for layer in layers
            for signal in needs
        }
        for token in range(end - at):
            yield {
                (layer, index): norms[layer, index]
                | {signal: blocks[layer, signal][token] for signal in plan.group.needs if signal not in NORMS}
                for layer in layers
                for index, plan in enumerate(plans)
            }

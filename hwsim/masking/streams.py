"""Streams of masks of one group of one layer: a policy decides each mask from signals, and the group's cache serves it.

Layers do not influence each other here: the masks of a layer follow from its own signals and its own caches. Replays of
traces and closed loops use the same streams; they differ only in the source of the signals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from hwsim.cache import compiled
from hwsim.cache.cache import Cache, CacheSetup
from hwsim.cache.experts import ExpertCache
from hwsim.errors import BlindError, PluginError
from hwsim.evictions import Eviction
from hwsim.masking.counts import Served, mask_of, serve, serve_units
from hwsim.masking.decider import Block, Decider
from hwsim.masking.within import WithinDecider
from hwsim.memory.groups import GroupPlan, Place, Plans
from hwsim.memory.shares import Shared
from hwsim.model.shape import NORMS, ModelShape
from hwsim.policy import Policy
from hwsim.trace import Trace
from hwsim.trace.sequences import Decoded, Sequences
from hwsim.util import kernels

_WORTH = 10_000  # decisions from which on it pays to load the compiled scan
BLOCK_VALUES = 2**20  # values of one signal that are held at once: 4 MiB


class SignalSource(Protocol):
    """Source of signals: a trace, or a running model."""

    def read(self, layer: int, signal: str, start: int, stop: int) -> np.ndarray:
        """Values of a signal, float32 ``[stop - start, width]``."""

    def norm(self, layer: int, name: str) -> np.ndarray:
        """One of `hwsim.model.shape.NORMS`, float32 ``[indices]``; called only if a group needs it."""


@dataclass(frozen=True, eq=False)
class Masking:
    """The policy that decides the masks of a run, and the caches that serve them.

    Attributes:
        model: shape of the model.
        policy: decides the masks.
        plans: the policy's groups with the capacities of their caches.
        eviction: picks the units that leave a cache.
        setup: admission and initial content of caches; not for shared caches.
        shared: the shared caches; None if each group has its own.
        name: name of the policy, for messages.
        seed: seed of the random numbers that policies may draw.
    """

    model: ModelShape
    policy: Policy
    plans: Plans
    eviction: Eviction
    setup: CacheSetup = field(default_factory=CacheSetup)
    shared: Shared | None = None
    name: str = ""
    seed: int = 0

    def decider(self, place: Place) -> Decider:
        """The decider, which asks the policy for the masks of one place."""
        seed = (self.seed, place.layer, place.slot)
        model = (
            self.model.at(place.layer) if place.plan.routed or place.plan.choice else None
        ) or self.model  # whose experts are the layer's
        kind = Decider if place.plan.choice is None else WithinDecider
        return kind(self.policy.in_layer(place.layer), self.name, place.plan, model, seed)

    def under(self, eviction: Eviction) -> Masking:
        """A copy with another eviction rule."""
        return replace(self, eviction=eviction)

    def cache(self, plan: GroupPlan) -> Cache:
        """Make the cache of one group of one layer.

        Raises:
            SettingError: the eviction cannot bypass, a set is missing, or more units are pinned or warm than fit.
        """
        if plan.routed:
            return self._expert_cache(plan)
        return self.setup.cache(plan.layer, plan.name, plan.units, plan.capacity, self.eviction)

    def _expert_cache(self, plan: GroupPlan) -> Cache:
        """Make the cache of the experts of one layer."""
        setup = self.setup
        pinned, warm = (
            sets.of(plan.layer, plan.name, plan.units) if sets else None for sets in (setup.pinned, setup.warm)
        )
        cache = ExpertCache(
            [plan.sizes()], plan.capacity * plan.unit_bytes, self.eviction, admission=setup.admission, pinned=pinned,
            warm=warm, where=f"layer {plan.layer}, group {plan.name}: ",
        )  # fmt: skip
        return cache.parts[0]


class Stream(Protocol):
    """The masks of one place, served from its cache."""

    @property
    def compiled(self) -> bool:
        """Whether the compiled scan does the work, so that threads may divide it."""

    @property
    def cached(self) -> np.ndarray:
        """The cached units, bool ``[units]``, read-only."""

    def serve(self, sequence: Decoded) -> Iterator[Served]:
        """Begin a sequence, and yield the requests of one token or of consecutive tokens, computed on demand."""


class PolicyStream:
    """The masks that a policy decides.

    Args:
        masking: the policy and its caches.
        place: place of the group.
        blocks: returns what the group needs of a range of rows of the source, in blocks.
        cache: the group's part of a shared cache; None: a cache of its own.
        blind: reason why the policy may not read ``ctx.cached``, if the cache serves the masks later.
        fast: whether to use the compiled scan if policy and cache allow it; it decides the same.
        watched: whether an observer needs the cached units before each token.
    """

    def __init__(
        self,
        masking: Masking,
        place: Place,
        blocks: Callable[[range], Iterable[Block]] | None = None,
        cache: Cache | None = None,
        *,
        blind: str = "",
        fast: bool = False,
        watched: bool = False,
    ) -> None:
        self.plan, self._eviction, self._read = place.plan, masking.eviction, blocks
        self._blind, self._watched = blind, watched
        self._k = self.plan.k
        self._decider = masking.decider(place)
        self._blocks = fast and self._decider.scores_blocks  # masks of many tokens are decided at once
        self._fast = self._blocks and cache is None  # and served at once
        self._cache = masking.cache(self.plan) if cache is None else cache
        self._fast &= self._cache.rank_update is not None

    @property
    def compiled(self) -> bool:
        """Whether the compiled scan decides, unless the policy's `scores` returns None."""
        return self._fast

    @property
    def cache(self) -> Cache:
        """The cache that serves the masks."""
        return self._cache

    @property
    def cached(self) -> np.ndarray:
        """The cached units, bool ``[units]``, read-only; a view that follows the cache."""
        return self._cache.view

    def serve(self, sequence: Decoded) -> Iterator[Served]:
        """Begin a sequence and decide its masks, each after the cache has served the one before it."""
        assert self._read is not None
        self.begin(sequence.number)
        yield from self.run(self._read(sequence.rows))

    def begin(self, number: int) -> None:
        """Begin sequence `number` of the run with the initial cache, fresh state and random numbers."""
        if self._eviction.needs_future:
            self._decider.begin(number, None)
        elif self._blind:
            self._decider.begin(number, None, self._blind)
        else:
            self._cache.start()
            self._decider.begin(number, self._cache.view)

    def run(self, blocks: Iterable[Block], prompt: Sequence[np.ndarray] = ()) -> Iterator[Served]:
        """Decide the next tokens, each after the cache has served the one before it.

        Args:
            blocks: what the group needs; the whole rest of the sequence if the eviction must know the future.
            prompt: what the steps of the sequence's prompt need, which the cache serves first: each as for
                `hwsim.masking.counts.serve_units`.

        Yields:
            The requests of each step of the prompt, then those of one token or of consecutive tokens to the cache.

        Raises:
            ContractError: the policy or the eviction broke its contract.
        """
        if self._eviction.needs_future:
            first = self._decider.token + 1
            listed = list(blocks)
            masks = np.concatenate([self._masks(block) for block in listed])
            self._cache.start(np.concatenate([*(mask_of(units, self.plan)[None] for units in prompt), masks]))
            for units in prompt:
                yield serve_units(self._cache, self.plan, units)
            orders = (order for block in listed for order in block.choices())
            for token, (mask, order) in enumerate(zip(masks, orders, strict=True), first):
                yield self._serve(token, mask, order)
            return
        for units in prompt:
            yield serve_units(self._cache, self.plan, units)
        for block in blocks:
            scores = self._decider.scores(block, aware=self._fast) if self._blocks else None
            if scores is None:
                for row, order in zip(block.rows(), block.choices(), strict=True):
                    yield self.step(row, order)
            elif self._fast:
                values, uncached = scores
                uncached = np.ones(block.tokens, np.float32) if uncached is None else uncached
                before = np.empty(values.shape, bool) if self._watched else None
                masks, hits = self._cache.serve(values, uncached, self._k, before)
                yield Served(masks, self._k, hits, before=before)
            else:
                first = self._decider.token + 1 - block.tokens
                for token, mask in enumerate(compiled.top_k(scores[0], self._k), first):
                    yield self._serve(token, mask)

    def _masks(self, block: Block) -> np.ndarray:
        """Masks of all tokens of a block, bool ``[tokens, units]``, for a policy that does not see the cache."""
        scores = self._decider.scores(block, aware=False) if self._blocks else None
        if scores is None:
            return np.array([self._decider.decide(row).copy() for row in block.rows()])
        return compiled.top_k(scores[0], self._k)

    def step(self, signals: dict[str, np.ndarray], order: np.ndarray | None = None) -> Served:
        """Decide the next token and serve it from the cache; as `run`, for one token.

        Args:
            signals: what the group needs.
            order: int64, the experts that the model chooses, by falling rank; None for other groups.
        """
        mask = self._decider.decide(signals)
        return self._serve(self._decider.token, mask, order)

    def decide(self, signals: dict[str, np.ndarray]) -> np.ndarray:
        """Decide the next token for a cache that serves it later: bool ``[units]``, valid until the next call."""
        mask = self._decider.decide(signals)
        requests = int(np.count_nonzero(mask))
        if self._k and requests != self._k:
            raise self._decider.wrong_size(self._decider.token, requests)
        return mask

    def expand(self, units: np.ndarray) -> np.ndarray:
        """Convert a mask of units to indices: bool ``[units]`` -> bool ``[indices]``, valid until the next call."""
        return self._decider.expand(units)

    def _serve(self, token: int, mask: np.ndarray, order: np.ndarray | None = None) -> Served:
        served = serve(self._cache, self.plan, mask, order)
        if self._k and served.requests != self._k:
            raise self._decider.wrong_size(token, int(served.requests))
        return served._replace(masks=self.expand(mask)[None], blocks=mask[None])


def worth_compiling(decisions: int) -> bool:
    """Whether the compiled scan is available and pays off for this number of masks."""
    return decisions >= _WORTH and compiled.available()


def signal_blocks(source: SignalSource, plan: GroupPlan, rows: range, values: int = BLOCK_VALUES) -> Iterator[Block]:
    """Yield what a group needs for a range of rows, in blocks of at most `values` values of a signal."""
    layer, step = plan.layer, max(1, values // plan.indices)
    norms = {name: kernels.read_only(source.norm(layer, name)) for name in plan.group.needs if name in NORMS}
    needs = [*plan.group.needs, *([*plan.choice.group.needs, "experts"] if plan.choice else ())]
    signals = [signal for signal in dict.fromkeys(needs) if signal not in NORMS]
    for at in rows[::step]:
        end = min(at + step, rows.stop)
        values_of = {signal: kernels.read_only(_read(source, layer, signal, at, end)) for signal in signals}
        experts = kernels.read_only(source.read(layer, "experts", at, end)) if plan.routed or plan.choice else None
        yield Block(values_of, norms, end - at, experts)


def _read(source: SignalSource, layer: int, signal: str, start: int, stop: int) -> np.ndarray:
    """Values of a signal: float16 if a trace stores it so, otherwise float32."""
    halves = source.read_halves(layer, signal, start, stop) if isinstance(source, Trace) else None
    return source.read(layer, signal, start, stop) if halves is None else halves


def decided(
    source: SignalSource, sequences: Sequences, masking: Masking, place: Place, blind: str
) -> Iterator[Iterator[np.ndarray]]:
    """The masks of a policy that does not read the cache, sequence by sequence; each must be read to its end.

    Args:
        source: gives the signals.
        sequences: windows of the trace.
        masking: the policy.
        place: place of the group.
        blind: consequence if the policy reads the cache, for messages.

    Yields:
        For each sequence its masks, bool ``[units]``, read-only, valid until the next one.

    Raises:
        PluginError: the policy reads the cache, or broke its contract.
    """
    decider = masking.decider(place)

    def masks(rows: range) -> Iterator[np.ndarray]:
        for block in signal_blocks(source, place.plan, rows):
            for row in block.rows():
                try:
                    yield decider.decide(row)
                except BlindError as error:
                    raise PluginError(
                        f"policy {masking.name}: looks at the cache, so {blind}; choose one that does not, such as dip"
                    ) from error

    for sequence in sequences.decoded():
        decider.begin(sequence.number, None)
        yield masks(sequence.rows)

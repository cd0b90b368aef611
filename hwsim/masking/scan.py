"""The scan over tokens: policy and cache decide, token by token, the masks and count the hits. No time in it.

Layers do not influence each other here: the masks of a layer follow from its own signals and its own caches. The replay
of a trace and the closed loop share this scan; they differ only in where the signals come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from hwsim.cache import compiled
from hwsim.cache.cache import Cache, CacheSetup
from hwsim.errors import PluginError, TraceError
from hwsim.evictions import Eviction
from hwsim.masking.counts import Demand, Served, serve
from hwsim.masking.decider import Block, Decider
from hwsim.masking.observers import Watching
from hwsim.memory.placement import GroupPlan
from hwsim.model.shape import NORMS, ModelShape
from hwsim.policy import Policy
from hwsim.trace import Sequence, Trace
from hwsim.util import kernels

_WORTH = 10_000  # decisions that pay for loading the compiled scan
_BLOCK_VALUES = 2**20  # values of one signal that are held at once: 4 MiB


class SignalSource(Protocol):
    """Where the signals come from: a trace, or a running model."""

    def read(self, layer: int, signal: str, start: int, stop: int) -> np.ndarray:
        """float32 ``[stop - start, width]``."""

    def norm(self, layer: int, name: str) -> np.ndarray:
        """One of `hwsim.model.shape.NORMS`, float32 ``[indices]``; asked for only where a group needs it."""


MaskListener = Callable[[int, str, int, np.ndarray], None]
"""Is told (layer, group name, decoded token, mask bool [indices of the group's axis]) of every mask."""

CacheListener = Callable[[int, str, np.ndarray], None]
"""Is told (layer, group name, bool [units]) what each cache holds at the end."""


def scan(
    source: SignalSource,
    model: ModelShape,
    sequences: list[Sequence],
    policy: Policy,
    plans: tuple[GroupPlan, ...],
    eviction: Eviction,
    *,
    setup: CacheSetup | None = None,
    name: str = "",
    seed: int = 0,
    layers: Iterable[int] | None = None,
    listener: MaskListener | None = None,
    contents: CacheListener | None = None,
    progress: Callable[[int], None] | None = None,
    threads: int = 1,
    watching: Watching | None = None,
) -> Demand:
    """Decide all masks and count all hits.

    Layers do not influence each other, so that threads may share them; the result is the same to the bit.

    Args:
        source: gives the signals.
        model: its shape.
        sequences: windows of the trace; prompts are passed over, they touch nothing.
        policy: decides the masks.
        plans: the policy's groups, with their caches' capacities.
        eviction: picks who leaves a cache.
        setup: how caches admit, and what is in them from the start.
        name: of the policy, for messages.
        seed: of the random numbers that policies may draw.
        layers: only these; None: all.
        listener: is told every mask.
        contents: is told what each cache holds at the end.
        progress: is called with the number of layers done.
        threads: that share the layers, where numpy and the compiled scan do the work; Python's own would gain nothing.
        watching: what is looked at besides counts.

    Raises:
        ContractError: the policy or the eviction broke its contract.
        TraceError: a signal is missing or damaged.
    """
    _keep_freed_memory()
    decoded = sum(sequence.tokens - sequence.prompt for sequence in sequences)
    demand = Demand.none(decoded, model.num_hidden_layers, plans, watching)
    fast = worth_compiling(decoded * model.num_hidden_layers * len(plans))
    every = range(model.num_hidden_layers) if layers is None else layers

    def begun(layer: int) -> list[GroupScan]:
        return [
            GroupScan(
                policy,
                plan,
                model,
                layer,
                eviction,
                setup,
                name=name,
                seed=(seed, layer, index),
                fast=fast,
                watched=demand.seen is not None,
            )
            for index, plan in enumerate(plans)
        ]

    def one(layer: int) -> list[tuple[str, np.ndarray]]:
        held = []
        for index, group in enumerate(begun(layer)):
            plan, first, row = group.plan, 0, 0
            for number, sequence in enumerate(sequences):
                group.begin(number)
                span = (first + sequence.prompt, first + sequence.tokens)
                for served in group.run(signal_blocks(source, plan, layer, *span)):
                    demand.put(row, layer, index, served)
                    for token, mask in enumerate(served.masks if listener else (), row):
                        listener(layer, plan.group.name, token, mask)  # type: ignore[misc]
                    row += len(served.masks)
                first = span[1]
            held.append((plan.group.name, group.cached))
        return held

    each = list(every) if plans else []
    alone = threads == 1 or listener is not None or len(each) < 2 or not all(group.compiled for group in begun(each[0]))
    with _workers(1 if alone else threads) as run:
        for layer, held in zip(each, run(one, each), strict=True):
            for group_name, cached in held if contents else ():
                contents(layer, group_name, cached)  # type: ignore[misc]
            if progress:
                progress(layer + 1)
    return demand


def _keep_freed_memory() -> None:
    """Have the C library keep the memory of freed blocks.

    glibc gives large ones back to the system and gets the next one cleared page by page, which takes longer than what
    is done in it. It learns: after a block of nearly 32 MiB was freed, it keeps what is smaller. The block is never
    touched, so it takes no memory. Elsewhere this does nothing.
    """
    np.empty(2**25 - 2**13, np.uint8)


@contextmanager
def _workers(threads: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """A `map` that is done by some threads: results in order, and the first error ends it."""
    if threads <= 1:
        yield map
        return
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)


class GroupScan:
    """One group of one layer: the policy's masks, and the cache that they go through.

    Args:
        policy: decides the masks.
        plan: the group, with its cache's capacity.
        model: its shape.
        layer: of the model.
        eviction: picks who leaves the cache.
        setup: how caches admit, and what is in them from the start.
        name: of the policy, for messages.
        seed: of the random numbers that the policy may draw here.
        cache: that the masks go through, where it is shared with others; else one of its own.
        blind: why the policy may not read ``ctx.cached``, where the masks go through the cache later.
        fast: take the compiled scan where policy and cache allow it; it decides the same.
        watched: somebody wants to know what was cached before each token.
    """

    def __init__(
        self,
        policy: Policy,
        plan: GroupPlan,
        model: ModelShape,
        layer: int,
        eviction: Eviction,
        setup: CacheSetup | None = None,
        *,
        name: str,
        seed: tuple[int, ...],
        cache: Cache | None = None,
        blind: str = "",
        fast: bool = False,
        watched: bool = False,
    ) -> None:
        self.plan, self._eviction, self._blind, self._watched = plan, eviction, blind, watched
        self._k = plan.k[layer]
        self._decider = Decider(policy.in_layer(layer), name, plan, model, layer, seed)
        self._blocks = fast and self._decider.scores_blocks  # masks of many tokens are decided at once
        self._fast = self._blocks and cache is None  # and go through the cache at once
        if cache is None:
            setup, capacity = setup or CacheSetup(), plan.capacity_in(layer)
            cache = setup.cache(layer, plan.group.name, plan.units, capacity, eviction)
        self._cache = cache
        self._fast &= cache.rank_update is not None

    @property
    def compiled(self) -> bool:
        """Whether the compiled scan decides, unless the policy wants to be asked one by one after all."""
        return self._fast

    @property
    def cached(self) -> np.ndarray:
        """What the cache holds, bool ``[units]``, read-only; it follows the cache."""
        return self._cache.view

    def begin(self, number: int) -> None:
        """Sequence `number` of the run begins: the cache as at first, fresh state and random numbers."""
        if self._eviction.needs_future:
            self._decider.begin(number, None)
        elif self._blind:
            self._decider.begin(number, None, self._blind)
        else:
            self._cache.start()
            self._decider.begin(number, self._cache.view)

    def run(self, blocks: Iterable[Block]) -> Iterator[Served]:
        """Decide the next tokens, each only after the one before it went through the cache.

        Args:
            blocks: what the group needs. All that is left of the sequence where the eviction must know the future.

        Yields:
            What one token or several in a row asked of the cache.

        Raises:
            ContractError: the policy or the eviction broke its contract.
        """
        if self._eviction.needs_future:
            first = self._decider.token + 1
            masks = np.concatenate([self._masks(block) for block in blocks])
            self._cache.start(masks)
            yield from (self._serve(token, mask) for token, mask in enumerate(masks, first))
            return
        for block in blocks:
            scores = self._decider.scores(block, aware=self._fast) if self._blocks else None
            if scores is None:
                for row in block.rows():
                    yield self.step(row)
            elif self._fast:
                values, uncached = scores
                uncached = np.ones(block.tokens, np.float32) if uncached is None else uncached
                before = np.empty(values.shape, bool) if self._watched else None
                found, hits = self._cache.serve(values, uncached, self._k, before)
                yield Served(found, self._k, hits, before=before)
            else:
                first = self._decider.token + 1 - block.tokens
                for token, mask in enumerate(compiled.top_k(scores[0], self._k), first):
                    yield self._serve(token, mask)

    def _masks(self, block: Block) -> np.ndarray:
        """Masks of all tokens of a block, bool ``[tokens, units]``, of a policy that does not see the cache."""
        scores = self._decider.scores(block, aware=False) if self._blocks else None
        if scores is None:
            return np.array([self._decider.decide(row).copy() for row in block.rows()])
        return compiled.top_k(scores[0], self._k)

    def step(self, signals: dict[str, np.ndarray]) -> Served:
        """Decide the next token and let it go through the cache; as `run`, for one token."""
        mask = self._decider.decide(signals)
        return self._serve(self._decider.token, mask)

    def decide(self, signals: dict[str, np.ndarray]) -> np.ndarray:
        """Decide the next token, for a cache that it goes through later: bool ``[units]``, valid until the next one."""
        mask = self._decider.decide(signals)
        requests = int(np.count_nonzero(mask))
        if self._k and requests != self._k:
            raise self._decider.wrong_size(self._decider.token, requests)
        return mask

    def expand(self, units: np.ndarray) -> np.ndarray:
        """A mask of units as one of indices: bool ``[units]`` -> bool ``[indices]``, valid until the next one."""
        return self._decider.expand(units)

    def _serve(self, token: int, mask: np.ndarray) -> Served:
        served = serve(self._cache, self.plan, mask)
        if self._k and served.requests != self._k:
            raise self._decider.wrong_size(token, int(served.requests))
        return served._replace(masks=self.expand(mask)[None], asked=mask[None])


def worth_compiling(decisions: int) -> bool:
    """Whether so many masks pay for the compiled scan, and it is there."""
    return decisions >= _WORTH and compiled.available()


def signal_blocks(source: SignalSource, plan: GroupPlan, layer: int, start: int, stop: int) -> Iterator[Block]:
    """What the group needs of some tokens, read in blocks."""
    step = max(1, _BLOCK_VALUES // plan.indices)
    norms = {name: kernels.read_only(source.norm(layer, name)) for name in plan.group.needs if name in NORMS}
    signals = [signal for signal in plan.group.needs if signal not in NORMS]
    for at in range(start, stop, step):
        end = min(at + step, stop)
        found = {signal: kernels.read_only(_read(source, layer, signal, at, end)) for signal in signals}
        yield Block(found, norms, end - at)


def _read(source: SignalSource, layer: int, signal: str, start: int, stop: int) -> np.ndarray:
    """A signal of some tokens: float16 where a trace has it so, else float32."""
    halves = source.read_halves(layer, signal, start, stop) if isinstance(source, Trace) else None
    return source.read(layer, signal, start, stop) if halves is None else halves


def decided(
    source: SignalSource, model: ModelShape, sequences: list[Sequence], policy: Policy, plan: GroupPlan, layer: int,
    name: str, seed: tuple[int, ...], blind: str,
) -> Iterator[Iterator[np.ndarray]]:  # fmt: skip
    """The masks of a policy that does not look at the cache, sequence by sequence, each to be read to its end.

    Args:
        source: gives the signals.
        model: its shape.
        sequences: windows of the trace.
        policy: decides the masks.
        plan: the group.
        layer: of the model.
        name: of the policy, for messages.
        seed: of the random numbers that the policy may draw here.
        blind: what follows if the policy looks at the cache, for messages.

    Yields:
        For each sequence its masks, bool ``[units]``, read-only, valid until the next one.

    Raises:
        PluginError: the policy looks at the cache, or broke its contract.
    """
    decider, first = Decider(policy.in_layer(layer), name, plan, model, layer, seed), 0

    def masks(span: tuple[int, int]) -> Iterator[np.ndarray]:
        for block in signal_blocks(source, plan, layer, *span):
            for row in block.rows():
                try:
                    yield decider.decide(row)
                except PluginError as error:
                    if "ctx.cached" not in str(error):
                        raise
                    raise PluginError(
                        f"policy {name}: looks at the cache, so {blind}; choose one that does not, such as dip"
                    ) from error

    for number, sequence in enumerate(sequences):
        decider.begin(number, None)
        yield masks((first + sequence.prompt, first + sequence.tokens))
        first += sequence.tokens


def check_trace(trace: Trace, policy: Policy, plans: tuple[GroupPlan, ...], name: str) -> None:
    """Refuse a trace that lacks what a policy needs: a signal, or values that its encoding left out.

    Args:
        trace: open trace.
        policy: decides the masks.
        plans: its groups.
        name: of the policy, for messages.

    Raises:
        TraceError: as said.
    """
    check_signals(trace.has, plans, trace.path, trace.model.name)
    if (share := trace.header.encoding.share) is None:
        return
    name = name or type(policy).__name__
    for plan in plans:
        if plan.group.needs and (why := _needs_more(trace, policy, plan)):
            raise TraceError(
                f"{trace.path}: keeps only the largest {share:.4g} of each row, but policy {name}, group "
                f"{plan.group.name}, {why}; give the trace that it was made from, or record one without --encoding top"
            )


def _needs_more(trace: Trace, policy: Policy, plan: GroupPlan) -> str:
    """Why a group may need values that are not among the largest of their rows; empty: it takes the best of those."""
    signal, *others = plan.group.needs
    width, asked, there = trace.model.signal_width(signal), max(plan.k), trace.header.encoding.kept(plan.indices)
    own = any(type(policy.in_layer(layer)).select is not Policy.select for layer in range(len(plan.k)))
    rules = {
        "makes its masks itself, of all values": own,
        "names no keep": plan.group.keep is None,
        f"weighs {signal} by {', '.join(others)}": bool(others),
        f"decides {plan.indices} units by the {width} values of {signal}": width != plan.indices,
        "adds values up in blocks": plan.block > 1,
        f"needs {signal}, a product of two that were cut one by one": signal not in trace.header.signals,
        f"takes {asked} of {plan.indices} units, of which {there} are there": asked > there,
    }
    return next((why for why, broken in rules.items() if broken), "")


def check_signals(trace_has: Callable[[str], bool], plans: tuple[GroupPlan, ...], path: object, name: str) -> None:
    """Refuse a trace that lacks what a policy needs, with the command that would record it.

    Raises:
        TraceError: a signal is missing.
    """
    needed = sorted({signal for plan in plans for signal in plan.group.needs})
    missing = [signal for signal in needed if not trace_has(signal)]
    if missing:
        signals = ",".join(signal for signal in needed if signal not in NORMS)
        options = (f" --signals {signals}" if signals else "") + (" --norms" if NORMS.keys() & set(needed) else "")
        raise TraceError(
            f"{path}: lacks {'the signal ' if missing[0] not in NORMS else ''}{', '.join(missing)}, "
            f"which the policy needs; record it: hwsim record --model {name}{options}"
        )

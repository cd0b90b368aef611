"""The scan over tokens: policy and cache decide, token by token, the masks and count the hits. No time in it.

Layers do not influence each other here: the masks of a layer follow from its own signals and its own caches. The replay
of a trace and the closed loop share this scan; they differ only in where the signals come from.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from hwsim import kernels
from hwsim.cache import Cache, CacheSetup
from hwsim.demand import Demand, Served, serve
from hwsim.errors import ContractError, HwsimError, TraceError, one_line
from hwsim.evictions import Eviction
from hwsim.model import NORMS, ModelShape
from hwsim.placement import GroupPlan
from hwsim.plans import kept
from hwsim.policy import BEFOREHAND, Context, Policy
from hwsim.trace.header import Sequence

_BLOCK_VALUES = 2**20  # values of one signal that are held at once: 4 MiB


class SignalSource(Protocol):
    """Where the signals come from: a trace, or a running model."""

    def read(self, layer: int, signal: str, start: int, stop: int) -> np.ndarray:
        """float32 ``[stop - start, width]``."""

    def norm(self, layer: int, name: str) -> np.ndarray:
        """One of `hwsim.model.NORMS`, float32 ``[units]``; asked for only where a group needs it."""


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
) -> Demand:
    """Decide all masks and count all hits.

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

    Raises:
        ContractError: the policy or the eviction broke its contract.
        TraceError: a signal is missing or damaged.
    """
    decoded = sum(sequence.tokens - sequence.prompt for sequence in sequences)
    demand = Demand.none(decoded, model.num_hidden_layers, plans)
    every = range(model.num_hidden_layers) if layers is None else layers
    for layer in every if plans else ():
        for index, plan in enumerate(plans):
            group = GroupScan(policy, plan, model, layer, eviction, setup, name=name, seed=(seed, layer, index))
            first = row = 0
            for number, sequence in enumerate(sequences):
                group.begin(number)
                span = (first + sequence.prompt, first + sequence.tokens)
                for served in group.run(signal_blocks(source, plan, layer, *span)):
                    demand.put(row, layer, index, served)
                    if listener:
                        listener(layer, plan.group.name, row, served.mask)
                    row += 1
                first = span[1]
            if contents:
                contents(layer, plan.group.name, group.cached)
        if progress:
            progress(layer + 1)
    return demand


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
    ) -> None:
        self.plan, self._eviction, self._blind = plan, eviction, blind
        self._k = plan.k[layer]
        self._decider = Decider(policy.in_layer(layer), name, plan, model, layer, seed)
        if cache is None:
            setup, capacity = setup or CacheSetup(), plan.capacity_in(layer)
            cache = setup.cache(layer, plan.group.name, plan.units, capacity, eviction)
        self._cache = cache

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

    def run(self, signals: Iterable[dict[str, np.ndarray]]) -> Iterator[Served]:
        """Decide the next tokens, each only after the one before it went through the cache.

        Args:
            signals: what the group needs, token by token. All that is left of the sequence where the eviction must
                know the future.

        Yields:
            What each token asked of the cache.

        Raises:
            ContractError: the policy or the eviction broke its contract.
        """
        first = self._decider.token + 1
        masks: Iterable[np.ndarray] = map(self._decider.decide, signals)
        if self._eviction.needs_future:
            masks = [mask.copy() for mask in masks]
            self._cache.start(np.stack(masks))
        for token, mask in enumerate(masks, first):
            yield self._serve(token, mask)

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
            raise self._decider.wrong_size(token, served.requests)
        return served._replace(mask=self.expand(mask))


def signal_blocks(
    source: SignalSource, plan: GroupPlan, layer: int, start: int, stop: int
) -> Iterator[dict[str, np.ndarray]]:
    """What the group needs, token by token, read in blocks."""
    step = max(1, _BLOCK_VALUES // plan.indices)
    norms = {name: kernels.read_only(source.norm(layer, name)) for name in plan.group.needs if name in NORMS}
    signals = [signal for signal in plan.group.needs if signal not in NORMS]
    for at in range(start, stop, step):
        end = min(at + step, stop)
        block = {signal: kernels.read_only(source.read(layer, signal, at, end)) for signal in signals}
        for token in range(end - at):
            yield norms | {signal: values[token] for signal, values in block.items()}


class Decider:
    """Asks a policy for the masks of one group of one layer, and holds it to the contract."""

    def __init__(
        self, policy: Policy, name: str, plan: GroupPlan, model: ModelShape, layer: int, seed: tuple[int, ...]
    ) -> None:
        self._policy, self._name, self._plan, self._seed = policy, name or type(policy).__name__, plan, seed
        # a policy sees single indices, whatever the units are
        group, self._blocks, self._k_units = plan.in_layer(layer), plan.blocks(layer), plan.k[layer]
        k = self._k_units if self._blocks is None or group.keep is None else kept(group.keep, plan.indices)
        self._ctx = Context(model, group, layer, plan.indices, k, np.random.default_rng(self._seed))
        self._scores = type(policy).select is Policy.select
        self._mask = np.empty(plan.units, bool)
        self._view = kernels.read_only(self._mask)
        self._cached: np.ndarray | None = None  # of units
        self._indices, self._cached_indices = np.empty(plan.indices, bool), np.zeros(plan.indices, bool)
        self._view_indices = kernels.read_only(self._indices)

    @property
    def token(self) -> int:
        """The token that was decided last, from 0 in each sequence; -1 before the first."""
        return self._ctx.token

    def begin(self, number: int, cached: np.ndarray | None, blind: str = "") -> None:
        """Sequence `number` begins: fresh state and random numbers.

        Args:
            number: of the sequence in the run.
            cached: the cache's read-only view, bool ``[units]``; None: the policy may not read it.
            blind: why; the default is what a rule that needs the future asks for.
        """
        ctx = self._ctx
        ctx._blind = blind or BEFOREHAND
        ctx.state, ctx.rng, ctx.token = {}, np.random.default_rng((*self._seed, number)), -1
        ctx._cached = self._cached = cached
        if self._blocks is not None and cached is not None:
            ctx._cached = kernels.read_only(self._cached_indices)

    def decide(self, signals: dict[str, np.ndarray]) -> np.ndarray:
        """The mask of the next token, bool ``[units]``, read-only; valid until the next call.

        Raises:
            ContractError: the policy raised, or returned something of the wrong shape or type, or NaN.
        """
        self._ctx.token += 1
        self._ctx.signals = signals
        if self._blocks is not None and self._cached is not None:
            self._blocks.expand(self._cached, self._cached_indices)
        if not self._scores:
            mask = self._ask("select")
            if mask is not None:
                self._take(self._checked_mask(mask))
                return self._view
        scores = self._checked_scores(self._ask("score"))
        kernels.top_k(scores if self._blocks is None else self._blocks.sums(scores), self._k(), self._mask)
        return self._view

    def _take(self, mask: np.ndarray) -> None:
        """Make the policy's own mask of indices one of units."""
        if self._blocks is None:
            np.copyto(self._mask, mask)  # the policy may change its own, or return ctx.cached
        elif self._k_units == 0:
            np.copyto(self._mask, self._blocks.touched(mask))
        elif (count := int(np.count_nonzero(mask))) != self._ctx.k:
            raise self.wrong_size(self.token, count)
        else:  # the blocks that hold most of it
            kernels.top_k(self._blocks.sums(mask.astype(np.float32)), self._k_units, self._mask)

    def expand(self, units: np.ndarray) -> np.ndarray:
        """A mask of units as one of indices, read-only; valid until the next call."""
        if self._blocks is None:
            return units
        self._blocks.expand(units, self._indices)
        return self._view_indices

    def wrong_size(self, token: int, count: int) -> ContractError:
        """The error of a mask that holds `count` units where the group's keep asks for another number."""
        return ContractError(
            f"{self._who('select', token)}: the mask holds {count} units, keep asks for {self._ctx.k}; "
            "give the group keep=None if select() decides"
        )

    def _ask(self, method: str) -> object:
        try:
            return getattr(self._policy, method)(self._ctx)
        except HwsimError as error:
            raise type(error)(f"{self._who(method)}: {error}") from error
        except (Exception, SystemExit) as error:  # a plug-in must not end the program
            last = traceback.extract_tb(error.__traceback__)[-1]
            at = f"{Path(last.filename).name}, line {last.lineno}"
            raise ContractError(
                f"{self._who(method)}: raised {type(error).__name__}: {one_line(error)} ({at})"
            ) from error

    def _k(self) -> int:
        if self._k_units == 0:
            raise ContractError(
                f"{self._who('score')}: the group names no keep; give it one, or define select(self, ctx)"
            )
        return self._k_units

    def _checked_scores(self, scores: object) -> np.ndarray:
        units = (self._plan.indices,)
        if not isinstance(scores, np.ndarray) or scores.dtype.kind not in "fiub" or scores.shape != units:
            raise ContractError(f"{self._who('score')}: returned {_describe(scores)}, needs float32 of shape {units}")
        if scores.dtype != np.float32:
            with np.errstate(over="ignore"):  # what is beyond float32 is infinite
                scores = scores.astype(np.float32)
        if np.isnan(scores.max()):  # the maximum of anything with a NaN is NaN
            raise ContractError(
                f"{self._who('score')}: returned NaN for unit {int(np.flatnonzero(np.isnan(scores))[0])}"
            )
        return scores

    def _checked_mask(self, mask: object) -> np.ndarray:
        units = (self._plan.indices,)
        if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.shape != units:
            raise ContractError(f"{self._who('select')}: returned {_describe(mask)}, needs bool of shape {units}")
        return mask

    def _who(self, method: str, token: int | None = None) -> str:
        token = self._ctx.token if token is None else token
        at = f"layer {self._ctx.layer}, group {self._plan.group.name}, token {token}"
        return f"policy {self._name}: {method}() at {at}"


def _describe(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    return type(value).__name__


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

"""The scan over tokens: policy and cache decide, token by token, the masks and count the hits. No time in it.

Layers do not influence each other here: the masks of a layer follow from its own signals and its own caches. The replay
of a trace and the closed loop share this scan; they differ only in where the signals come from.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from hwsim import compiled, kernels
from hwsim.cache import CacheSetup
from hwsim.errors import ContractError, HwsimError, TraceError, one_line
from hwsim.evictions import Eviction
from hwsim.model import NORMS, ModelShape
from hwsim.placement import GroupPlan
from hwsim.policy import Context, Policy, Scores
from hwsim.trace.header import Sequence

_WORTH = 20_000  # decisions that pay for loading the compiled scan
_BLOCK_VALUES = 2**20  # values of one signal that are held at once: 4 MiB


class SignalSource(Protocol):
    """Where the signals come from: a trace, or a running model."""

    def read(self, layer: int, signal: str, start: int, stop: int) -> np.ndarray:
        """float32 ``[stop - start, width]``."""

    def norm(self, layer: int, name: str) -> np.ndarray:
        """One of `hwsim.model.NORMS`, float32 ``[units]``; asked for only where a group needs it."""


@dataclass(frozen=True)
class Demand:
    """What every decoded token asked of every cache.

    Attributes:
        requests: int32 ``[tokens, layers, groups]``: units asked for.
        hits: int32 ``[tokens, layers, groups]``: those that were in the cache.
    """

    requests: np.ndarray
    hits: np.ndarray


class Block(NamedTuple):
    """What a group needs, for some tokens in a row.

    Attributes:
        signals: float32 ``[tokens, width]`` each, read-only.
        norms: float32 ``[units]`` each, read-only, the same for all tokens.
    """

    signals: dict[str, np.ndarray]
    norms: dict[str, np.ndarray]
    tokens: int

    def rows(self) -> Iterator[dict[str, np.ndarray]]:
        """What each token shows to the policy."""
        for token in range(self.tokens):
            yield self.norms | {signal: values[token] for signal, values in self.signals.items()}


class Decided(NamedTuple):
    """What some tokens in a row asked of the cache.

    Attributes:
        masks: bool ``[tokens, units]``, valid until the next ones.
        requests: of each token, or of all of them alike.
        hits: of each token.
    """

    masks: np.ndarray
    requests: np.ndarray | int
    hits: np.ndarray | int


MaskListener = Callable[[int, str, int, np.ndarray], None]
"""Is told (layer, group name, decoded token, mask bool [units]) of every mask."""

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
    shape = (decoded, model.num_hidden_layers, len(plans))
    demand = Demand(np.zeros(shape, np.int32), np.zeros(shape, np.int32))
    every = range(model.num_hidden_layers) if layers is None else layers
    for layer in every if plans else ():
        for index, plan in enumerate(plans):
            group = GroupScan(
                policy, plan, model, layer, eviction, setup,
                name=name, seed=(seed, layer, index), fast=worth_compiling(decoded * shape[1] * shape[2]),
            )  # fmt: skip
            first = row = 0
            for number, sequence in enumerate(sequences):
                group.begin(number)
                span = (first + sequence.prompt, first + sequence.tokens)
                for masks, requests, hits in group.run(signal_blocks(source, plan, layer, *span)):
                    end = row + len(masks)
                    demand.requests[row:end, layer, index], demand.hits[row:end, layer, index] = requests, hits
                    for token, mask in enumerate(masks if listener else (), row):
                        listener(layer, plan.group.name, token, mask)  # type: ignore[misc]
                    row = end
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
        fast: take the compiled scan where policy and cache allow it; it decides the same.
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
        fast: bool = False,
    ) -> None:
        self.plan, self._eviction, self._k = plan, eviction, plan.k[layer]
        self._decider = Decider(policy.in_layer(layer), name, plan, model, layer, seed)
        setup = setup or CacheSetup()
        self._cache = setup.cache(layer, plan.group.name, plan.units, plan.capacity, eviction)
        self._fast = fast and self._decider.scores_blocks and self._cache.rank_update is not None

    @property
    def cached(self) -> np.ndarray:
        """What the cache holds, bool ``[units]``, read-only; it follows the cache."""
        return self._cache.view

    def begin(self, number: int) -> None:
        """Sequence `number` of the run begins: the cache as at first, fresh state and random numbers."""
        if self._eviction.needs_future:
            self._decider.begin(number, None)
        else:
            self._cache.start()
            self._decider.begin(number, self._cache.view)

    def run(self, blocks: Iterable[Block]) -> Iterator[Decided]:
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
            masks = [self._decider.decide(row).copy() for block in blocks for row in block.rows()]
            self._cache.start(np.stack(masks))
            yield from (self._serve(token, mask) for token, mask in enumerate(masks, first))
            return
        for block in blocks:
            scores = self._decider.scores(block) if self._fast else None
            if scores is not None and scores.uncached is not None:
                served, hits = self._cache.serve(scores.values, scores.uncached, self._k)
                yield Decided(served, self._k, hits)
            else:
                for row in block.rows():
                    mask = self._decider.decide(row)
                    yield self._serve(self._decider.token, mask)

    def _serve(self, token: int, mask: np.ndarray) -> Decided:
        requests, hits = self._cache.step(mask)
        if self._k and requests != self._k:
            raise self._decider.wrong_size(token, requests)
        return Decided(mask[None], requests, hits)


def worth_compiling(decisions: int) -> bool:
    """Whether so many masks pay for the compiled scan, and it is there."""
    return decisions >= _WORTH and compiled.available()


def signal_blocks(source: SignalSource, plan: GroupPlan, layer: int, start: int, stop: int) -> Iterator[Block]:
    """What the group needs of some tokens, read in blocks."""
    step = max(1, _BLOCK_VALUES // plan.units)
    norms = {name: kernels.read_only(source.norm(layer, name)) for name in plan.group.needs if name in NORMS}
    signals = [signal for signal in plan.group.needs if signal not in NORMS]
    for at in range(start, stop, step):
        end = min(at + step, stop)
        found = {signal: kernels.read_only(source.read(layer, signal, at, end)) for signal in signals}
        yield Block(found, norms, end - at)


class Decider:
    """Asks a policy for the masks of one group of one layer, and holds it to the contract."""

    def __init__(
        self, policy: Policy, name: str, plan: GroupPlan, model: ModelShape, layer: int, seed: tuple[int, ...]
    ) -> None:
        self._policy, self._name, self._plan, self._seed = policy, name or type(policy).__name__, plan, seed
        group, k = plan.in_layer(layer), plan.k[layer]
        self._ctx = Context(model, group, layer, plan.units, k, np.random.default_rng(self._seed))
        self._scores = type(policy).select is Policy.select
        self.scores_blocks = k > 0 and _scores_blocks(type(policy))
        self._mask = np.empty(plan.units, bool)
        self._view = kernels.read_only(self._mask)

    @property
    def token(self) -> int:
        """The token that was decided last, from 0 in each sequence; -1 before the first."""
        return self._ctx.token

    def begin(self, number: int, cached: np.ndarray | None) -> None:
        """Sequence `number` begins: fresh state and random numbers. `cached`: the cache's read-only view."""
        ctx = self._ctx
        ctx.state, ctx.rng, ctx.token = {}, np.random.default_rng((*self._seed, number)), -1
        ctx._cached = cached

    def decide(self, signals: dict[str, np.ndarray]) -> np.ndarray:
        """The mask of the next token, bool ``[units]``, read-only; valid until the next call.

        Raises:
            ContractError: the policy raised, or returned something of the wrong shape or type, or NaN.
        """
        self._ctx.token += 1
        self._ctx.signals = signals
        if not self._scores:
            mask = self._ask("select")
            if mask is not None:
                np.copyto(self._mask, self._checked_mask(mask))  # the policy may change its own, or return ctx.cached
                return self._view
        kernels.top_k(self._checked_scores(self._ask("score")), self._k(), self._mask)
        return self._view

    def scores(self, block: Block) -> Scores | None:
        """The scores of all tokens of a block, with `uncached` set; None: the policy wants to be asked one by one.

        Raises:
            ContractError: the policy raised, or returned something of the wrong shape or type.
        """
        ctx = self._ctx
        ctx.token, ctx.signals = ctx.token + 1, block.norms | block.signals
        found = self._ask("scores")
        if found is None:
            ctx.token -= 1
            return None
        shape = (block.tokens, self._plan.units)
        values, uncached = found if isinstance(found, Scores) else (None, None)
        uncached = np.ones(block.tokens, np.float32) if uncached is None else uncached
        if values is None or not (_is_float32(values, shape) and _is_float32(uncached, shape[:1])):
            raise ContractError(
                f"{self._who('scores')}: needs Scores of float32 of shape {shape}, and {shape[:1]} of what is uncached"
            )
        if np.isnan(values.max()) or np.isnan(uncached.max()):  # told token by token, with its place
            ctx.token -= 1
            return None
        ctx.token += block.tokens - 1
        return Scores(values, uncached)

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
        if self._ctx.k == 0:
            raise ContractError(
                f"{self._who('score')}: the group names no keep; give it one, or define select(self, ctx)"
            )
        return self._ctx.k

    def _checked_scores(self, scores: object) -> np.ndarray:
        units = (self._plan.units,)
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
        units = (self._plan.units,)
        if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.shape != units:
            raise ContractError(f"{self._who('select')}: returned {_describe(mask)}, needs bool of shape {units}")
        return mask

    def _who(self, method: str, token: int | None = None) -> str:
        token = self._ctx.token if token is None else token
        at = f"layer {self._ctx.layer}, group {self._plan.group.name}, token {token}"
        return f"policy {self._name}: {method}() at {at}"


def _is_float32(value: object, shape: tuple[int, ...]) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.float32 and value.shape == shape


def _scores_blocks(kind: type[Policy]) -> bool:
    """Whether a policy's `scores` speaks for its `score`: a subclass with another `score` or `select` has its own."""
    own = {name: next(each for each in kind.__mro__ if name in vars(each)) for name in ("score", "scores", "select")}
    return own["scores"] is not Policy and all(issubclass(own["scores"], each) for each in own.values())


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

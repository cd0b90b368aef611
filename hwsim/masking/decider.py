"""Ask a policy for its masks, and check that it keeps the contract."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from hwsim.errors import ContractError
from hwsim.masking.context import ScanContext
from hwsim.memory.groups import GroupPlan
from hwsim.model.shape import ModelShape
from hwsim.policy import Magnitudes, Policy, Scores
from hwsim.util import kernels
from hwsim.util.calls import translated


class Needed(dict[str, np.ndarray]):
    """The signals that a group needs; reading another one is an error that names the group's needs."""

    def __missing__(self, name: str) -> np.ndarray:
        have = ", ".join(self) or "nothing"
        raise KeyError(f"signal {name!r} is not among what this group needs ({have}); name it in the group's needs")


class _Stored(Mapping[str, np.ndarray]):
    """The signals of many tokens; signals stored as float16 are converted to float32 at their first use."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self._arrays = Needed(arrays)

    def __getitem__(self, name: str) -> np.ndarray:
        values = self._arrays[name]
        if values.dtype == np.float16:
            values = self._arrays[name] = kernels.read_only(kernels.widen(values))
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


class Block(NamedTuple):
    """The signals and norms that a group needs for consecutive tokens.

    Attributes:
        signals: float32 ``[tokens, width]`` each, read-only; finite float16 if they are stored so.
        norms: float32 ``[indices]`` each, read-only, the same for all tokens.
        tokens: number of tokens.
        experts: int64 ``[tokens, used]``: the experts that the model chooses, by falling rank, -1 where there are
            fewer; None for groups that do not choose experts.
    """

    signals: dict[str, np.ndarray]
    norms: dict[str, np.ndarray]
    tokens: int
    experts: np.ndarray | None = None

    def rows(self) -> Iterator[dict[str, np.ndarray]]:
        """The signals of each token, as the policy sees them."""
        signals = dict(_Stored(self.signals))
        for token in range(self.tokens):
            row = {signal: values[token] for signal, values in signals.items()}
            if self.experts is not None:
                self._trim(row, int(np.count_nonzero(self.experts[token] >= 0)))
            yield Needed(self.norms | row)

    def choices(self) -> Iterator[np.ndarray | None]:
        """The experts that the model chooses for each token, by falling rank: int64; None where `experts` is None."""
        for token in range(self.tokens):
            yield None if self.experts is None else self.experts[token][self.experts[token] >= 0]

    @staticmethod
    def _trim(row: dict[str, np.ndarray], chosen: int) -> None:
        """Leave the places of experts out that the model did not choose."""
        for signal in ("experts", "expert_weights"):
            if signal in row:
                row[signal] = row[signal][:chosen]


class Decider:
    """Asks a policy for the masks of one group of one layer, and checks the contract."""

    def __init__(self, policy: Policy, name: str, plan: GroupPlan, model: ModelShape, seed: tuple[int, ...]) -> None:
        self._policy, self._name, self._plan, self._seed = policy, name or type(policy).__name__, plan, seed
        # a policy sees single indices, whatever the units are
        group, self._blocks, self._k_units = plan.group, plan.blocks(), plan.k
        k = self._k_units if self._blocks is None or group.keep is None else kernels.kept(group.keep, plan.indices)
        self._ctx = ScanContext(model, group, plan.layer, plan.indices, k, np.random.default_rng(self._seed))
        self._scores = type(policy).select is Policy.select
        self.scores_blocks = self._blocks is None and k > 0 and _scores_blocks(type(policy))
        self.masks_blocks = self._blocks is None and k == 0 and _masks_blocks(type(policy))
        self._mask = np.empty(plan.units, bool)
        self._view = kernels.read_only(self._mask)
        self._cached: np.ndarray | None = None  # of units
        self._indices, self._cached_indices = np.empty(plan.indices, bool), np.zeros(plan.indices, bool)
        self._view_indices = kernels.read_only(self._indices)

    @property
    def token(self) -> int:
        """Number of the last decided token, from 0 in each sequence; -1 before the first."""
        return self._ctx.token

    def begin(self, number: int, cached: np.ndarray | None, blind: str = "") -> None:
        """Begin a sequence with fresh state and random numbers.

        Args:
            number: number of the sequence in the run.
            cached: the cache's read-only view, bool ``[units]``; None: the policy may not read it.
            blind: reason why it may not; by default that the eviction rule needs the future.
        """
        self._cached = cached
        if self._blocks is not None and cached is not None:
            cached = kernels.read_only(self._cached_indices)
        self._ctx.begin(np.random.default_rng((*self._seed, number)), cached, blind)

    def decide(self, signals: dict[str, np.ndarray]) -> np.ndarray:
        """Return the mask of the next token, bool ``[units]``, read-only; valid until the next call.

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
                if self._plan.routed and not self._mask.any():
                    raise self._no_expert("select")
                return self._view
        scores = self._checked_scores(self._ask("score"))
        kernels.top_k(scores if self._blocks is None else self._blocks.sums(scores), self._k(), self._mask)
        return self._view

    def inside(
        self, token: int, expert: int | None, signals: dict[str, np.ndarray], cached: np.ndarray | None
    ) -> np.ndarray:
        """Return the mask of one expert's units at a token, or one for all chosen experts; as `decide`.

        Args:
            token: decoded token of the sequence.
            expert: number of the expert; None: the mask is for all chosen ones.
            signals: of this expert.
            cached: bool ``[units]``, what is cached of it; None: the policy may not read it.
        """
        self._ctx.token = token - 1
        self._ctx.look(expert, cached)
        return self.decide(signals)

    def _take(self, mask: np.ndarray) -> None:
        """Convert the policy's own mask of indices to a mask of units."""
        if self._blocks is None:
            np.copyto(self._mask, mask)  # the policy may change its array later, or return ctx.cached
        elif self._k_units == 0:
            np.copyto(self._mask, self._blocks.touched(mask))
        elif (count := int(np.count_nonzero(mask))) != self._ctx.k:
            raise self.wrong_size(self.token, count)
        else:  # the blocks that contain most of the mask
            kernels.top_k(self._blocks.sums(mask.astype(np.float32)), self._k_units, self._mask)

    def expand(self, units: np.ndarray) -> np.ndarray:
        """Convert a mask of units to a mask of indices, read-only; valid until the next call."""
        if self._blocks is None:
            return units
        self._blocks.expand(units, self._indices)
        return self._view_indices

    def scores(self, block: Block, *, aware: bool = True) -> tuple[np.ndarray, np.ndarray | None] | None:
        """Return the scores of all tokens of a block for `hwsim.cache.compiled.serve`; None: decide one by one.

        Args:
            block: the next tokens.
            aware: whether scores may depend on the cache.

        Returns:
            Scores of cached units, float32 ``[tokens, units]``, or float16 whose magnitudes are the scores; and the
            factor of units that are not cached, float32 ``[tokens]``, or None.

        Raises:
            ContractError: the policy raised, or returned something of the wrong shape or type.
        """
        ctx = self._ctx
        ctx.token, ctx.signals = ctx.token + 1, _Stored(block.norms | block.signals)
        ctx.halves = {name: values for name, values in block.signals.items() if values.dtype == np.float16}
        answer = self._ask("scores")
        ctx.halves = {}
        if answer is None:
            ctx.token -= 1
            return None
        shape = (block.tokens, self._plan.indices)
        values, uncached = answer if isinstance(answer, Scores) else (None, None)
        halves = isinstance(values, Magnitudes)
        scores: Any = values.halves if isinstance(values, Magnitudes) else values
        dtype = np.float16 if halves else np.float32
        valid = _is(dtype, scores, shape) and (uncached is None or _is(np.float32, uncached, shape[:1]))
        if not valid:
            raise ContractError(
                f"{self._who('scores')}: needs Scores of float32 of shape {shape}, and {shape[:1]} of what is uncached"
            )
        comparable = halves or not np.isnan(scores.max())
        if not comparable or not (uncached is None or (aware and _weighs(scores, uncached))):
            ctx.token -= 1  # deciding one by one reports the error with its place
            return None
        ctx.token += block.tokens - 1
        return scores, uncached

    def masks(self, block: Block) -> np.ndarray | None:
        """Return the masks of all tokens of a block, bool ``[tokens, units]``; None: decide one by one.

        Raises:
            ContractError: the policy raised, or returned something of the wrong shape or type.
        """
        ctx = self._ctx
        ctx.token, ctx.signals = ctx.token + 1, _Stored(block.norms | block.signals)
        with ctx.without_cache("masks() decides many tokens at once, before the cache serves any of them"):
            answer = self._ask("masks")
        if answer is None:
            ctx.token -= 1
            return None
        shape = (block.tokens, self._plan.indices)
        if not _is(np.bool_, answer, shape):
            raise ContractError(f"{self._who('masks')}: returned {_describe(answer)}, needs bool of shape {shape}")
        assert isinstance(answer, np.ndarray)
        if not (some := answer.any(axis=1)).all():
            ctx.token += int(np.argmin(some))
            raise self._no_expert("masks")
        ctx.token += block.tokens - 1
        return answer

    def save(self) -> tuple[Any, ...]:
        """The state after the last token, for `restore`."""
        ctx = self._ctx
        return ctx.token, copy.deepcopy(ctx.state), ctx.rng.bit_generator.state

    def restore(self, saved: tuple[Any, ...]) -> None:
        """Go back to a saved state, from which nothing was saved since."""
        ctx = self._ctx
        ctx.token, ctx.state, ctx.rng.bit_generator.state = saved

    def _no_expert(self, method: str) -> ContractError:
        return ContractError(f"{self._who(method)}: the mask holds no expert; a token needs at least one")

    def wrong_size(self, token: int, count: int) -> ContractError:
        """The error for a mask of `count` units if the group's keep demands another number."""
        return ContractError(
            f"{self._who('select', token)}: the mask holds {count} units, keep asks for {self._ctx.k}; "
            "give the group keep=None if select() decides"
        )

    def _ask(self, method: str) -> object:
        try:
            return getattr(self._policy, method)(self._ctx)
        except (Exception, SystemExit) as error:  # a plug-in must not end the program
            raise translated(error, self._who(method), located=__file__) from error

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
            with np.errstate(over="ignore"):  # values beyond float32 become infinite
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


def _is(kind: type, value: object, shape: tuple[int, ...]) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == kind and value.shape == shape


def _weighs(values: np.ndarray, uncached: np.ndarray) -> bool:
    """Whether the product keeps the order and has no NaN: no 0 x infinity, no NaN."""
    finite = np.isfinite(uncached).all() and (uncached >= 0).all()
    return bool(finite and (uncached.all() or np.isfinite(values).all()))


def _scores_blocks(kind: type[Policy]) -> bool:
    """Whether a policy's `scores` matches its `score`: no subclass overrides `score` or `select` alone."""
    own = {name: next(base for base in kind.__mro__ if name in vars(base)) for name in ("score", "scores", "select")}
    return own["scores"] is not Policy and all(issubclass(own["scores"], definer) for definer in own.values())


def _masks_blocks(kind: type[Policy]) -> bool:
    """Whether a policy's `masks` matches its `select`: no subclass overrides `select` alone."""
    own = {name: next(base for base in kind.__mro__ if name in vars(base)) for name in ("select", "masks")}
    return own["masks"] is not Policy and issubclass(own["masks"], own["select"])


def _describe(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    return type(value).__name__

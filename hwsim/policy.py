"""The whole contract of a policy plug-in: which units does the present token need?

An author subclasses `Policy` in a file of their own and passes its path to ``--policy``; parameters are pydantic
fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from hwsim.errors import BlindError, PluginError
from hwsim.model.shape import ModelShape
from hwsim.util.arrayfile import read_arrays
from hwsim.util.kernels import threshold, top_k

__all__ = [
    "Context", "Field", "Group", "Magnitudes", "ModelShape", "PluginError", "Policy", "Scores", "read_arrays",
    "threshold", "top_k",
]  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Units that are selected by one mask, cached in one cache and read together.

    Attributes:
        name: unique within the policy.
        axis: what an index means: ``hidden``, ``neuron``, ``attention`` (heads x head_dim: rows of q, columns of o),
            ``kv`` (key-value heads x head_dim: rows of k and v) or ``expert``.
        slices: the matrix slices that make up one unit, such as ``["gate.column", "up.column"]``; an expert is
            ``["experts.expert"]``.
        keep: share of the units that a mask holds, 0 to 1; None where `select` decides the size.
        needs: recorded signals that the mask is decided from; also ``norm_input`` and ``norm_down``, the Euclidean
            norms of the columns of gate and up together, and of down.
        oracle: the mask is decided from something that it must itself produce, and the author says so openly.
        within: name of the group that chooses experts, for units inside of experts: ``hidden`` or ``neuron`` of the
            matrices ``expert_gate``, ``expert_up`` and ``expert_down``. All chosen experts share a mask of ``hidden``;
            a mask of ``neuron`` is decided for each of them. The group that chooses then has no slices of its own.
    """

    name: str
    axis: Literal["hidden", "neuron", "attention", "kv", "expert"]
    slices: list[str]
    keep: float | None = None
    needs: list[str] = field(default_factory=list)
    oracle: bool = False
    within: str = ""


@dataclass
class Context:
    """What a policy sees when it decides one mask. All arrays are read-only.

    Attributes:
        group: the group to decide; `units` is its size and `k` = floor(keep x units), at least 1. Both count single
            rows and columns, also where blocks of them are read: hwsim makes blocks of what the policy says.
        layer: layer of the model, from 0.
        token: decoded token of the sequence, from 0; prompt tokens do not count.
        signals: what the group named in `needs`: float32 ``[width]`` each, of this token; norms: of this
            layer. ``experts`` is int64 ``[chosen]``: the experts that the model itself chooses, by falling rank, at
            most ``model.experts.used``; ``expert_weights`` float32 ``[chosen]``; ``router`` float32 ``[experts]``.
        cached: bool ``[units]``: in the cache before this token's own update.
        state: a dict of the policy's own for this layer and group, empty at the start of each sequence.
        rng: random numbers for this layer, group and sequence, from the run's seed.
        model: the shape of the model; ``model.experts`` are the experts of this layer.
        expert: the expert whose neurons are decided, in a group within experts; None in all other groups. There,
            `units`, `k`, `signals` and `cached` are of this expert; in a group of ``hidden``, `cached` tells what is
            cached of all chosen experts.
    """

    model: ModelShape
    group: Group
    layer: int
    units: int
    k: int
    rng: np.random.Generator
    token: int = 0
    signals: Mapping[str, np.ndarray] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    expert: int | None = None

    @property
    def cached(self) -> np.ndarray:
        """bool ``[units]``; asking for it makes a policy cache-aware: no rule that must know the future serves it."""
        raise BlindError("reads ctx.cached, but there is no cache here")

    def magnitudes(self, signal: str) -> Magnitudes | np.ndarray:
        """The magnitudes of a signal for `Policy.scores` to hand on: nothing is computed where a trace has float16.

        Returns:
            `Magnitudes`, or float32 of the shape of ``ctx.signals[signal]``: each is what `Scores` takes.
        """
        magnitudes: np.ndarray = np.abs(self.signals[signal])
        return magnitudes


@dataclass(frozen=True, eq=False)
class Magnitudes:
    """The magnitudes of a signal at many tokens, not computed: `Context.magnitudes` gives them, `Scores` takes them.

    Attributes:
        halves: float16 ``[tokens, units]``, finite, read-only: as stored, signs included.
    """

    halves: np.ndarray

    def __len__(self) -> int:
        """The number of tokens."""
        return len(self.halves)


class Scores(NamedTuple):
    """The scores of many tokens.

    Attributes:
        values: float32 ``[tokens, units]``, or `Magnitudes` of that shape: of what is cached.
        uncached: float32 ``[tokens]``: times this they are the scores of what is not; None: the cache plays no part.
    """

    values: np.ndarray | Magnitudes
    uncached: np.ndarray | None = None


class Policy(BaseModel):
    """Base of all policies: fields are parameters; ``hwsim list policies`` prints the docstring's first line.

    A policy with a field called ``density`` takes ``--density``. Instances are frozen: state belongs in ``ctx.state``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    def groups(self, model: ModelShape) -> list[Group]:
        """What is cut, along which axis, decided from which signals. Matrices in no group are read whole."""
        raise PluginError(f"{type(self).__name__} must define groups(self, model)")

    def score(self, ctx: Context) -> np.ndarray:
        """Worth of each unit, float32 ``[units]``; the ``ctx.k`` best are taken, ties go to the lower index.

        Other number types are converted; what is beyond float32 becomes infinite.
        """
        raise PluginError(f"{type(self).__name__} must define score(self, ctx) or select(self, ctx)")

    def scores(self, ctx: Context) -> Scores | None:
        """For speed, if you like: `score` for many tokens at once, to the bit; None: they are asked for one by one.

        Here ``ctx.signals`` holds ``[tokens, width]`` and ``ctx.token`` is the first of the tokens. A subclass with
        another `score` or `select` is asked token by token, unless it has its own `scores`.
        """
        return None

    def masks(self, ctx: Context) -> np.ndarray | None:
        """Optional fast path: `select` for a block of tokens, bool ``[tokens, units]``; None: one by one.

        Only for a policy that does not read ``ctx.cached``. ``ctx.signals`` holds ``[tokens, width]``, and rows of
        ``experts`` with fewer than the usual number end in -1. A subclass with another `select` is asked token by
        token, unless it has its own `masks`.
        """
        return None

    def select(self, ctx: Context) -> np.ndarray | None:
        """The mask itself, bool ``[units]``, for policies that do more than take the best; None: use `score`.

        It holds ``ctx.k`` units where the group names a `keep`, any number where it does not.
        """
        return None

    def in_layer(self, layer: int) -> Policy:
        """Who decides in a layer: the policy itself, or its copy where densities are given layer by layer."""
        return self

    def predictor_parameters(self, model: ModelShape) -> int:
        """Parameters that the policy itself keeps in DRAM and reads at every token, over all layers: 0 to 10^13."""
        return 0

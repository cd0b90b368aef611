"""The closed loop: masks decided from what the running model computes, and applied to it, with the cache in the loop.

The mask of layer l at token t depends on the cache of layer l after token t-1 and on the inputs of layer l at token
t; the latter are known for all tokens once layer l-1 is done. So a whole window goes through the model at once, layer
by layer: the scan of `hwsim.masking.scan` decides the masks of all tokens where a signal arises, and the matrices that
follow
see it masked. Columns are masked as zeroed inputs, of attention and MLP; rows of gate and up as zeroed entries of the
GLU, which is what a skipped row of either gives.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from hwsim.cache.cache import CacheSetup
from hwsim.errors import ModelError
from hwsim.evictions import Eviction
from hwsim.masking.counts import Demand
from hwsim.masking.decider import Block
from hwsim.masking.scan import GroupScan
from hwsim.masking.shared_scan import SharedCaches, count_shared
from hwsim.memory.placement import GroupPlan
from hwsim.memory.shares import Shared
from hwsim.model.shape import NORMS, ModelShape
from hwsim.policy import Policy
from hwsim.record.hooks import Layer
from hwsim.trace import Sequence
from hwsim.util.kernels import read_only

# the points of a layer at which masks are decided, in the order in which a pass reaches them; and which signals are
# known there first, which slices are masked there last
_QKV, _OUT, _UP, _DOWN = range(4)
_KNOWN = {"attn_input": _QKV, "attn_output": _OUT, "input": _UP, "up": _DOWN, "gate": _DOWN, "glu": _DOWN}
_MASKED = {
    "q.column": _QKV, "k.column": _QKV, "v.column": _QKV, "o.column": _OUT, "gate.column": _UP, "up.column": _UP,
    "gate.row": _DOWN, "up.row": _DOWN, "down.column": _DOWN, "down.row": _DOWN,
}  # fmt: skip

MaskSink = Callable[[int, str, int, np.ndarray], None]
"""Is told (layer, group, first decoded token of the run, masks bool [tokens, indices])."""


class ClosedLoop:
    """A policy and its caches; as a context, attached to the layers of a running model.

    Args:
        layers: of the model, from `hwsim.record.hooks.find_layers`.
        model: its shape.
        policy: decides the masks.
        plans: its groups, with their caches' capacities.
        eviction: picks who leaves a cache.
        setup: how caches admit, and what is in them from the start; not for those that groups share.
        name: of the policy, for messages.
        seed: of the random numbers that policies may draw.
        sink: is told every mask.
        shared: the caches, where groups share them.
        steps: each pass brings one token, so that a policy may read shared caches.
        fast: take the compiled scan where policy and caches allow it; it decides the same.

    Raises:
        ModelError: the policy cuts something that cannot be masked in a running model.
        SettingError: the eviction cannot serve a shared cache.
    """

    def __init__(
        self,
        layers: list[Layer],
        model: ModelShape,
        policy: Policy,
        plans: tuple[GroupPlan, ...],
        eviction: Eviction,
        setup: CacheSetup | None = None,
        *,
        name: str,
        seed: int = 0,
        sink: MaskSink | None = None,
        shared: Shared | None = None,
        steps: bool = False,
        fast: bool = False,
    ) -> None:
        self._again = partial(
            ClosedLoop, layers, model, policy, plans, eviction, setup,
            name=name, seed=seed, sink=sink, shared=shared, steps=True,
        )  # fmt: skip
        self._plans, self._model, self._sink = plans, model, sink
        _check(plans, layers[0], name)
        self._attention = _attention(plans)
        first = _QKV if self._attention else _UP  # where a group is decided that needs no signal
        points = [_known(plan, first) for plan in plans]
        self._at = [[index for index, at in enumerate(points) if at == point] for point in range(4)]
        self._caches = SharedCaches(plans, model.num_hidden_layers, shared, eviction) if shared else None
        self._later = shared is not None and not steps
        blind = ""
        if shared and steps:
            _check_order(plans, points, name)
        elif shared:  # the masks of a whole window are decided before they go through a cache
            blind = (
                f"--cache-scope {shared.scope} couples groups that are decided here one after the other for all "
                "tokens; choose matrix, or read a text"
            )
        self._scans = [
            [
                GroupScan(
                    policy, plan, model, layer, eviction, setup, name=name, seed=(seed, layer, index), blind=blind,
                    cache=self._caches.part(layer, index) if self._caches and steps else None, fast=fast,
                )
                for index, plan in enumerate(plans)
            ]
            for layer in range(model.num_hidden_layers)
        ]  # fmt: skip
        self._sequences: list[Sequence] = []
        self._first = self._token = 0
        self._fresh = True
        self._demand = Demand.none(0, model.num_hidden_layers, plans)
        self._units: dict[tuple[int, int], np.ndarray] = {}  # packed masks that go through shared caches later
        self._signals: dict[str, Any] = {}  # of the present layer
        self._masks: dict[str, Any] = {}  # by slice, of the present layer: bool [tokens, indices]
        self._norms: dict[tuple[int, str], np.ndarray] = {}  # by layer and name, once they were needed
        self._handles: list[Any] = []
        self._layers = layers if plans else []

    def __enter__(self) -> ClosedLoop:
        """Attach to the model."""
        self._signals, self._masks = {}, {}
        for index, layer in enumerate(self._layers):
            self._attach(index, layer)
        return self

    def __exit__(self, *error: object) -> None:
        """Detach from it."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def by_token(self) -> ClosedLoop:
        """The same from here on, but each pass brings one token; what the present pass was told to the sink is void.

        Raises:
            ModelError: the policy's groups come in another order than that of a layer.
        """
        loop = self._again()
        loop._token = self._token
        return loop

    def window(self, sequences: list[Sequence], first: int) -> None:
        """The next pass brings whole sequences, one after the other; `first` is the number of the first of them."""
        self._sequences, self._first, self._fresh = sequences, first, True
        self._start()

    def begin(self, number: int) -> None:
        """Sequence `number` begins, to be brought piece by piece with `continued`."""
        if self._caches:
            self._caches.start()
        for scans in self._scans:
            for scan in scans:
                scan.begin(number)

    def continued(self, tokens: int) -> None:
        """The next pass brings `tokens` more tokens of the sequence that is under way."""
        self._sequences, self._fresh = [Sequence(tokens=tokens)], False
        self._start()

    def demand(self) -> Demand:
        """What the last pass asked of the caches."""
        if self._caches and self._units:
            tokens = [sequence.tokens - sequence.prompt for sequence in self._sequences]
            masks, self._units = self._units, {}
            self._demand = count_shared(lambda *place: masks[place], tokens, self._caches, fresh=self._fresh)
        return self._demand

    # ------------------------------------------------------------------ hooks

    def _start(self) -> None:
        self._token += len(self._demand.requests)  # those of the pass before
        decoded = sum(sequence.tokens - sequence.prompt for sequence in self._sequences)
        self._demand = Demand.none(decoded, self._model.num_hidden_layers, self._plans)

    def _attach(self, index: int, layer: Layer) -> None:
        def before(module: Any, action: Callable[[Any], Any]) -> None:
            self._handles.append(module.register_forward_pre_hook(lambda _, args: (action(args[0]), *args[1:])))

        def after(module: Any, action: Callable[[Any], Any]) -> None:
            self._handles.append(module.register_forward_hook(lambda _, __, result: action(result)))

        if self._attention:
            before(layer.query, lambda x: self._reach(index, _QKV, "attn_input", x, "q.column"))
            if not layer.fused_attention:
                before(layer.key, lambda x: self._reach(index, _QKV, "attn_input", x, "k.column"))
                before(layer.value, lambda x: self._reach(index, _QKV, "attn_input", x, "v.column"))
            before(layer.out, lambda x: self._reach(index, _OUT, "attn_output", x, "o.column"))
        before(layer.up, lambda x: self._reach(index, _UP, "input", x, "up.column"))
        if layer.gate is not None:
            before(layer.gate, lambda x: self._reach(index, _UP, "input", x, "gate.column"))
        needs = {signal for plan in self._plans for signal in plan.group.needs}
        if needs & {"up", "gate"}:
            after(layer.up, lambda y: self._signals.update(layer.signals_of("up", y)))
            if layer.gate is not None:
                after(layer.gate, lambda y: self._signals.update(layer.signals_of("gate", y)))
        before(layer.down, lambda x: self._reach(index, _DOWN, "glu", x, "gate.row", "up.row", "down.column"))
        after(layer.down, self._leave)

    def _reach(self, index: int, point: int, signal: str, values: Any, *slices: str) -> Any:
        """Before a matrix: decide what follows from the signal that enters it, once for all that share it; mask it."""
        if signal not in self._signals:
            self._signals[signal] = values
            for group in self._at[point]:
                self._decide(index, group, values)
        for name in slices:
            values = self._masked(name, values)
        return values

    def _leave(self, result: Any) -> Any:
        """After down, the last matrix of a layer: mask what it made, and forget the layer."""
        result = self._masked("down.row", result)
        self._signals, self._masks = {}, {}
        return result

    def _masked(self, name: str, values: Any) -> Any:
        mask = self._masks.get(name)
        return values if mask is None else values * mask.view(values.shape)

    # ------------------------------------------------------------------ masks

    def _decide(self, index: int, group: int, like: Any) -> None:
        plan = self._plans[group].group
        arrays = {signal: _array(self._signals[signal]) for signal in plan.needs if signal not in NORMS}
        norms = {name: self._norm(index, name) for name in plan.needs if name in NORMS}
        masks = self._scan(index, group, arrays, norms).astype(np.float32)  # numpy is seven times faster at it
        self._masks |= dict.fromkeys(plan.slices, like.new_tensor(masks))  # of the model's type: it is multiplied

    def _norm(self, layer: int, name: str) -> np.ndarray:
        """Norms of the running model's weights, float32 ``[indices]``, read-only."""
        if (layer, name) not in self._norms:
            self._norms[layer, name] = read_only(self._layers[layer].norm(name))
        return self._norms[layer, name]

    def _scan(self, layer: int, group: int, arrays: dict[str, np.ndarray], norms: dict[str, np.ndarray]) -> np.ndarray:
        """Masks of all tokens, bool ``[tokens, indices]``: prompts are dense."""
        scan = self._scans[layer][group]
        total = sum(sequence.tokens for sequence in self._sequences)
        masks = np.ones((total, scan.plan.indices), bool)
        if self._later:
            self._units[layer, group] = np.zeros((len(self._demand.requests), -(-scan.plan.units // 8)), np.uint8)
        row = start = 0
        for number, sequence in enumerate(self._sequences, self._first):
            if self._fresh:
                scan.begin(number)
            at, end = start + sequence.prompt, start + sequence.tokens
            first, token = row, at
            block = Block({signal: values[at:end] for signal, values in arrays.items()}, norms, end - at)
            if self._later:
                for each in block.rows():
                    units = scan.decide(each)
                    self._units[layer, group][row] = np.packbits(units)
                    masks[token] = scan.expand(units)
                    token, row = token + 1, row + 1
            else:
                for served in scan.run([block]):
                    masks[token : token + len(served.masks)] = served.masks
                    self._demand.put(row, layer, group, served)
                    token, row = token + len(served.masks), row + len(served.masks)
            if self._sink:
                self._sink(layer, scan.plan.group.name, self._token + first, masks[at:end])
            start = end
        return masks


def _array(values: Any) -> np.ndarray:
    """A signal as policies see it: float32 ``[tokens, width]``, read-only."""
    array: np.ndarray = values.detach().reshape(-1, values.shape[-1]).float().cpu().numpy().copy()
    array.flags.writeable = False
    return array


def _check_order(plans: tuple[GroupPlan, ...], points: list[int], name: str) -> None:
    """Refuse groups that the running model decides in another order than a device would ask a shared cache for them."""
    if points != sorted(points):
        names = ", ".join(plan.group.name for plan in plans)
        raise ModelError(
            f"policy {name}: with a shared cache, groups must come in the order in which a layer knows what they need "
            f"(attn_input, attn_output, input, then up, gate and glu); it is {names}; change it, or choose "
            "--cache-scope matrix"
        )


def _known(plan: GroupPlan, first: int) -> int:
    """The point at which all signals that a group needs are known; `first` if it needs none."""
    return max((_KNOWN[signal] for signal in plan.group.needs if signal not in NORMS), default=first)


def _attention(plans: tuple[GroupPlan, ...]) -> bool:
    """Whether attention is cut, or its signals are needed."""
    points = [_KNOWN[signal] for plan in plans for signal in plan.group.needs if signal not in NORMS]
    points += [_MASKED[name] for plan in plans for name in plan.group.slices]
    return any(point < _UP for point in points)


def _check(plans: tuple[GroupPlan, ...], layer: Layer, name: str) -> None:
    """Refuse what the hooks cannot mask."""
    for plan in plans:
        cut, needs = plan.group.slices, plan.group.needs
        if not layer.gated and {"up", "gate"} & set(needs):
            raise ModelError(f"policy {name}: needs up or gate; a model without a gate has input and glu only")
        if rows := sorted(each for each in cut if each not in _MASKED):
            raise ModelError(f"policy {name}: cuts {rows[0]}; of attention, the closed loop masks columns only")
        if early := sorted(each for each in cut if _MASKED[each] < _known(plan, _QKV)):
            raise ModelError(
                f"policy {name}: decides {early[0]} from {', '.join(needs)}, which the running "
                "model knows only after that matrix; such an oracle can be replayed, not run"
            )
        for fused, columns in (
            (layer.fused, ["gate.column", "up.column"]),
            (layer.fused_attention, ["q.column", "k.column", "v.column"]),
        ):
            if fused and 0 < len(set(columns) & set(cut)) < len(columns):
                alone = next(each for each in columns if each in cut)
                stored = ", ".join(each.partition(".")[0] for each in columns)
                raise ModelError(f"policy {name}: cuts {alone} alone, but this model stores {stored} as one matrix")
    if _attention(plans) and None in (layer.query, layer.key, layer.value, layer.out):
        raise ModelError(f"policy {name}: works on attention, whose projections hwsim does not find in this model")

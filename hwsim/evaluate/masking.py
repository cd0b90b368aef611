"""The closed loop: masks decided from what the running model computes, and applied to it, with the cache in the loop.

The mask of layer l at token t depends on the cache of layer l after token t-1 and on the inputs of layer l at token
t; the latter are known for all tokens once layer l-1 is done. So a whole window goes through the model at once, layer
by layer: the scan of `hwsim.select` decides the masks of all tokens where a signal arises, and the matrices that follow
see it masked. Columns are masked as zeroed inputs; rows of gate and up as zeroed entries of the GLU, which is what a
skipped row of either gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from hwsim.demand import Demand
from hwsim.errors import ModelError
from hwsim.evictions import Eviction
from hwsim.interleave import SharedCaches, count_shared
from hwsim.model import ModelShape
from hwsim.placement import GroupPlan
from hwsim.policy import Policy
from hwsim.record.hooks import Layer
from hwsim.select import GroupScan
from hwsim.shares import Shared
from hwsim.trace import Sequence

_LATE = frozenset({"up", "gate", "glu"})  # known when the down projection is reached; the input before that


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
        name: of the policy, for messages.
        seed: of the random numbers that policies may draw.
        sink: is told every mask.
        shared: the caches, where groups share them.
        steps: each pass brings one token, so that a policy may read shared caches.

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
        *,
        name: str,
        seed: int = 0,
        sink: MaskSink | None = None,
        shared: Shared | None = None,
        steps: bool = False,
    ) -> None:
        self._plans, self._model, self._sink = plans, model, sink
        _check(plans, layers[0], name)
        self._shared, self._eviction = shared, eviction
        self._caches = SharedCaches(plans, model.num_hidden_layers, shared, eviction) if shared else None
        self._later = shared is not None and not steps
        blind = ""
        if shared and steps:
            _check_order(plans, name)
        elif shared:  # the masks of a whole window are decided before they go through a cache
            blind = (
                f"--cache-scope {shared.scope} couples groups that the evaluation decides one after the other for all "
                "tokens; choose matrix, or replay or generate"
            )
        self._scans = [
            [
                GroupScan(
                    policy, plan, model, layer, eviction, name=name, seed=(seed, layer, index), blind=blind,
                    cache=self._caches.part(layer, index) if self._caches and steps else None,
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
        self._handles: list[Any] = []
        self._layers = layers if plans else []

    def __enter__(self) -> ClosedLoop:
        """Attach to the model."""
        self._signals = {}
        for index, layer in enumerate(self._layers):
            self._attach(index, layer)
        return self

    def __exit__(self, *error: object) -> None:
        """Detach from it."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

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
        if self._shared and self._later:
            tokens = [sequence.tokens - sequence.prompt for sequence in self._sequences]
            layers = self._model.num_hidden_layers
            read = lambda layer, index: self._units[layer, index]  # noqa: E731
            return count_shared(read, tokens, self._plans, layers, self._shared, self._eviction)
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

        before(layer.up, lambda x: self._enter(index, "up", x))
        if layer.gate is not None:
            before(layer.gate, lambda x: self._enter(index, "gate", x))
        needs = {signal for plan in self._plans for signal in plan.group.needs}
        if needs & {"up", "gate"}:
            after(layer.up, lambda y: self._signals.update(layer.signals_of("up", y)))
            if layer.gate is not None:
                after(layer.gate, lambda y: self._signals.update(layer.signals_of("gate", y)))
        before(layer.down, lambda x: self._leave(index, x))
        after(layer.down, lambda y: self._masked("down.row", y))

    def _enter(self, index: int, matrix: str, x: Any) -> Any:
        """Before gate and up, whichever comes first: decide what follows from the input, and mask it."""
        if "input" not in self._signals:
            self._masks = {}
            self._signals = {"input": x}
            self._decide(index, [plan for plan in self._plans if not _LATE & set(plan.group.needs)])
        return self._masked(f"{matrix}.column", x)

    def _leave(self, index: int, glu: Any) -> Any:
        """Before down: decide the rest, and mask the GLU by everything that cuts a neuron."""
        self._signals["glu"] = glu
        self._decide(index, [plan for plan in self._plans if _LATE & set(plan.group.needs)])
        self._signals = {}
        for name in ("gate.row", "up.row", "down.column"):
            glu = self._masked(name, glu)
        return glu

    def _masked(self, name: str, values: Any) -> Any:
        mask = self._masks.get(name)
        return values if mask is None else values * mask.view(values.shape)

    # ------------------------------------------------------------------ masks

    def _decide(self, index: int, plans: list[GroupPlan]) -> None:
        for plan in plans:
            arrays = {signal: _array(self._signals[signal]) for signal in plan.group.needs}
            masks = self._scan(index, self._plans.index(plan), arrays)
            tensor = self._signals["input"].new_tensor(masks)  # of the model's type: it is multiplied
            for name in plan.group.slices:
                self._masks[name] = tensor

    def _scan(self, layer: int, group: int, arrays: dict[str, np.ndarray]) -> np.ndarray:
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
            first, signals = row, _rows(arrays, at, end)
            if self._later:
                for token, each in enumerate(signals, at):
                    units = scan.decide(each)
                    self._units[layer, group][row] = np.packbits(units)
                    masks[token] = scan.expand(units)
                    row += 1
            else:
                for token, served in enumerate(scan.run(signals), at):
                    masks[token] = served.mask
                    self._demand.put(row, layer, group, served)
                    row += 1
            if self._sink:
                self._sink(layer, scan.plan.group.name, self._token + first, masks[at:end])
            start = end
        return masks


def _rows(arrays: dict[str, np.ndarray], start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
    for token in range(start, stop):
        yield {signal: values[token] for signal, values in arrays.items()}


def _array(values: Any) -> np.ndarray:
    """A signal as policies see it: float32 ``[tokens, width]``, read-only."""
    array: np.ndarray = values.detach().reshape(-1, values.shape[-1]).float().cpu().numpy().copy()
    array.flags.writeable = False
    return array


def _check_order(plans: tuple[GroupPlan, ...], name: str) -> None:
    """Refuse groups that the running model decides in another order than a device would ask a shared cache for them."""
    late = [bool(_LATE & set(plan.group.needs)) for plan in plans]
    if late != sorted(late):
        names = ", ".join(plan.group.name for plan in plans)
        raise ModelError(
            f"policy {name}: with a shared cache, groups decided from the input must come before those decided from "
            f"up, gate or glu; the order is {names}; change it, or choose --cache-scope matrix"
        )


def _check(plans: tuple[GroupPlan, ...], layer: Layer, name: str) -> None:
    """Refuse what the hooks cannot mask."""
    for plan in plans:
        cut, late = set(plan.group.slices), bool(_LATE & set(plan.group.needs))
        columns = cut & {"gate.column", "up.column"}
        if not layer.gated and {"up", "gate"} & set(plan.group.needs):
            raise ModelError(f"policy {name}: needs up or gate; a model without a gate has input and glu only")
        if attention := sorted(each for each in cut if each.partition(".")[0] in ("q", "k", "v", "o")):
            raise ModelError(f"policy {name}: cuts {attention[0]}; the closed loop masks the MLP only")
        if columns and late:
            raise ModelError(
                f"policy {name}: decides {sorted(columns)[0]} from {', '.join(plan.group.needs)}, which the running "
                "model knows only after that matrix; such an oracle can be replayed, not run"
            )
        if layer.fused and len(columns) == 1:
            raise ModelError(
                f"policy {name}: cuts {columns.pop()} alone, but this model stores gate and up as one matrix"
            )

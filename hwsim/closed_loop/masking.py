"""The closed loop: masks are decided from signals of a running model and applied to it, with the cache in the loop.

The mask of layer l at token t depends on the cache of layer l after token t-1 and on the inputs of layer l at token t;
the inputs are known for all tokens once layer l-1 is done. So a whole window goes through the model at once, layer by
layer: when a signal is computed, the scan of `hwsim.masking.scan` decides the masks of all tokens, and the matrices
that follow see the signal masked. Columns are masked by zeroing inputs of attention and MLP; rows of gate and up by
zeroing entries of their product, which gives the same as skipping the row; the product is the GLU itself unless a norm
lies between. Experts are masked by handing other ids and weights to them (`hwsim.closed_loop.routing`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from hwsim.closed_loop.deciding import Decisions
from hwsim.closed_loop.inside import Inside
from hwsim.closed_loop.points import (
    DOWN,
    EXPERTS,
    OF_ROUTER,
    OUT,
    PRODUCT,
    QKV,
    ROWS,
    UP,
    attention,
    check_groups,
    check_order,
    of_experts,
    point,
)
from hwsim.closed_loop.routing import Rerouting, Rules
from hwsim.errors import ModelError
from hwsim.masking.counts import Counts
from hwsim.masking.observers import Observer
from hwsim.masking.streams import Masking
from hwsim.memory.groups import GroupPlan
from hwsim.model.shape import NORMS
from hwsim.record.experts import LayerExperts, by_weight, check_chosen
from hwsim.record.hooks import Layer, check_plain, check_product, first
from hwsim.trace import Sequence
from hwsim.trace.steps import Together
from hwsim.util.kernels import read_only


class ClosedLoop:
    """A policy and its caches, which inside the context are attached to the layers of a running model.

    Args:
        layers: layers of the model, from `hwsim.record.hooks.layers_of`.
        masking: the policy and its caches.
        observers: receive every mask.
        together: whether prompts go through the caches, and in which chunks; None: they are read densely.
        rules: from `hwsim.closed_loop.routing.find_rules`, if the policy decides experts.
        steps: whether each pass has one token, so that a policy may read shared caches.
        fast: whether to use the compiled scan if policy and caches allow it; it decides the same.
        token: number of the first decoded token, for the observers.

    Raises:
        ModelError: the policy cuts something that cannot be masked in a running model.
        SettingError: the eviction cannot serve a shared cache, or prompts cannot go through it.
    """

    def __init__(
        self, layers: list[Layer], masking: Masking, observers: Iterable[Observer] = (), *,
        together: Together | None = None, rules: Rules | None = None, steps: bool = False, fast: bool = False,
        token: int = 0,
    ) -> None:  # fmt: skip
        self._all_layers, self._masking, self._observers = layers, masking, tuple(observers)
        self._together, self._rules = together or Together(), rules or {}
        plans = masking.plans
        for layer, groups in zip(layers, plans.by_layer, strict=True):
            check_groups(groups, layer, masking.name)
        self._attention = attention(plans)
        first = QKV if self._attention else UP  # the point at which groups without signals are decided
        points = [
            [point(plan, first, layer) for plan in groups] for groups, layer in zip(plans.by_layer, layers, strict=True)
        ]
        self._decisions = Decisions(masking, self._together, self._observers, steps=steps, fast=fast, token=token)
        if self._decisions.coupled and steps:
            for groups, order in zip(plans.by_layer, points, strict=True):
                check_order(groups, order, masking.name)
        self._at: list[list[list[int]]] = [[[] for _ in range(EXPERTS + 1)] for _ in layers]  # slots by point
        for index, slot, _ in plans.places():
            self._at[index][points[index][slot]].append(slot)
        self._routings = {
            index: Rerouting(index, layer.experts, self._rules[index], masking.name)
            for index, layer in enumerate(layers)
            if layer.experts is not None and self._at[index][EXPERTS]
        }
        self._insides = {
            index: Inside(index, layer.experts, self._routings[index], masking.name)
            for index, layer in enumerate(layers)
            if layer.experts is not None and any(plan.choice for plan in plans[index])
        }
        self._current = -1  # the layer that runs
        self._confirmed: set[int] = set()  # layers whose up and gate were seen to make what enters the next module
        self._signals: dict[str, Any] = {}  # of the current layer
        self._masks: dict[str, Any] = {}  # by slice, of the current layer: bool [tokens, indices]
        self._norms: dict[tuple[int, str], np.ndarray] = {}  # by layer and name, once they were needed
        self._handles: list[Any] = []
        self._layers = layers if plans else []

    def __enter__(self) -> ClosedLoop:
        """Attach the hooks to the model."""
        self._current = -1
        for index, layer in enumerate(self._layers):
            if self._masking.plans[index]:
                self._attach(index, layer)
        return self

    def __exit__(self, *error: object) -> None:
        """Detach the hooks from the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def by_token(self) -> ClosedLoop:
        """A closed loop that continues from here with one token in each pass.

        Raises:
            ModelError: the policy's groups have another order than a layer decides them in.
        """
        return ClosedLoop(
            self._all_layers, self._masking, self._observers, together=self._together, rules=self._rules, steps=True,
            token=self._decisions.token,
        )  # fmt: skip

    @property
    def takes_prompts(self) -> bool:
        """Whether prompts go through the caches, so that a pass over one is announced with `prompt`."""
        return self._decisions.takes_prompts

    @property
    def notes(self) -> list[str]:
        """What results must say about the masks of the passes so far."""
        if not any(routing.kept for routing in self._routings.values()):
            return []
        return [
            f"{self._masking.name}: how this model's router weighs chosen experts is not known; where experts were "
            "left out, the others kept their weights."
        ]

    def window(self, sequences: list[Sequence], first: int) -> None:
        """Announce a pass over whole sequences; `first` is the number of the first of them."""
        self._current = -1
        self._decisions.window(sequences, first)

    def begin(self, number: int) -> None:
        """Begin sequence `number`, whose passes are announced piece by piece with `prompt` and `continued`."""
        self._decisions.begin(number)

    def prompt(self, tokens: int) -> None:
        """Announce a pass over the prompt of the current sequence, which is not masked but goes through the caches."""
        self._current = -1
        self._decisions.prompt(tokens)

    def continued(self, tokens: int) -> None:
        """Announce a pass over `tokens` more tokens of the current sequence."""
        self._current = -1
        self._decisions.continued(tokens)

    def counts(self) -> Counts:
        """Return requests and hits of the last pass.

        Raises:
            ModelError: the model did not run a layer that has groups, so its masks were not decided.
        """
        return self._decisions.counts()

    # ------------------------------------------------------------------ hooks

    def _attach(self, index: int, layer: Layer) -> None:
        def before(module: Any, action: Callable[[Any], Any]) -> None:
            self._handles.append(
                module.register_forward_pre_hook(lambda module, args: (action(first(module, args)), *args[1:]))
            )

        def after(module: Any, action: Callable[[Any], Any]) -> None:
            self._handles.append(module.register_forward_hook(lambda _, __, result: action(result)))

        if self._attention:
            before(layer.query, lambda x: self._reach(index, QKV, "attn_input", x, "q.column"))
            if not layer.fused_attention:
                before(layer.key, lambda x: self._reach(index, QKV, "attn_input", x, "k.column"))
                before(layer.value, lambda x: self._reach(index, QKV, "attn_input", x, "v.column"))
            before(layer.out, lambda x: self._reach(index, OUT, "attn_output", x, "o.column"))
        if index in self._routings and layer.experts is not None:
            self._attach_experts(index, layer.experts)
        if all(of_experts(plan) for plan in self._masking.plans[index]) and not self._dense_signals(index):
            return
        before(layer.up, lambda x: self._reach(index, UP, "input", x, "up.column"))
        if layer.gate is not None:
            before(layer.gate, lambda x: self._reach(index, UP, "input", x, "gate.column"))
        if self._masking.plans.needs() & {"up", "gate"}:
            self._handles += layer.watch(lambda name, value: self._signals.update({name: value}))
        if layer.mlp is not None and layer.mlp.unseen:
            self._handles.append(layer.up.register_forward_hook(lambda _, __, y: self._signals.update(raw=y)))
        if layer.inner is not None:
            before(layer.inner, lambda x: self._reach(index, PRODUCT, "product", x, *ROWS))
            before(layer.down, lambda x: self._reach(index, DOWN, "glu", x, "down.column"))
        else:
            before(layer.down, lambda x: self._down(index, x))
        after(layer.down, lambda y: self._masked("down.row", y))

    def _attach_experts(self, index: int, experts: LayerExperts) -> None:
        routing = self._routings[index]
        self._handles += experts.watch_router(partial(self._routed, index))
        self._handles.append(experts.before(partial(self._choose, index, experts)))
        if index in self._insides:
            self._handles.append(experts.replace(partial(self._inside, index)))
        else:
            self._handles.append(experts.after(routing.confirm))

    def _dense_signals(self, index: int) -> bool:
        """Whether the experts of a layer are decided from signals of a dense MLP."""
        plans = [plan for plan in self._masking.plans[index] if of_experts(plan)]
        return any(set(_needs(plan)) & {"input", "up", "gate", "glu"} for plan in plans)

    def _enter(self, index: int) -> None:
        """Forget the signals of the layer before."""
        if index != self._current:
            self._current, self._signals, self._masks = index, {}, {}

    def _routed(self, index: int, logits: Any) -> None:
        """Hook after the router."""
        self._enter(index)
        self._signals["router"] = logits

    def _choose(
        self, index: int, experts: LayerExperts, entering: Any, ids: Any, weights: Any
    ) -> tuple[Any, Any, Any] | None:
        """Hook before the experts: decide which of them the tokens of this pass read; None: the model's own choice."""
        self._enter(index)
        check_chosen(index, ids, experts.shape)
        logits = self._signals.get("router")
        chosen, shares, _ = by_weight(ids, weights)
        self._signals |= dict(zip(OF_ROUTER[1:], (chosen, shares, entering), strict=True))
        slots = self._at[index][EXPERTS]
        self._check_known(index, [self._masking.plans[index][slot] for slot in slots])
        if index in self._insides:
            self._insides[index].begin(entering, logits, chosen, shares)
            return None
        masks = self._scan(index, slots[0], _integers(chosen))
        changed = self._routings[index].choose(entering, logits, ids, weights, masks)
        return None if changed is None else (entering, *changed)

    def _inside(self, index: int, own: Any) -> Any:
        """Hook after experts of which parts are left out: decide which, and return the output without them."""
        inside, chosen = self._insides[index], _integers(self._signals["experts"])
        for slot in self._at[index][EXPERTS]:
            plan = self._masking.plans[index][slot]
            if "expert_glu" in plan.group.needs:
                self._signals["expert_glu"] = inside.glu().flatten(1)
            inside.mask(plan, self._scan(index, slot, chosen))
        return inside.output(own)

    def _check_known(self, index: int, plans: list[GroupPlan]) -> None:
        """Refuse experts that are decided from what the model does not compute before them."""
        for signal in (signal for plan in plans for signal in _needs(plan)):
            if signal not in self._signals and signal not in NORMS and signal != "expert_glu":
                raise ModelError(
                    f"policy {self._masking.name}: layer {index}: decides experts from {signal}, which this model does "
                    "not compute before it runs them; choose signals of the router"
                )

    def _reach(self, index: int, point: int, signal: str, values: Any, *slices: str) -> Any:
        """Hook before a module: decide the groups of this point once, and return the masked input."""
        self._enter(index)
        if signal not in self._signals:
            self._signals[signal] = values
            if point == PRODUCT:
                self._confirm(index, values)
            for slot in self._at[index][point]:
                self._decide(index, slot, values)
        for name in slices:
            values = self._masked(name, values)
        return values

    def _down(self, index: int, values: Any) -> Any:
        """Hook before down, if what enters it is the product of gate and up itself."""
        self._reach(index, PRODUCT, "product", values)
        return self._reach(index, DOWN, "glu", values, *ROWS, "down.column")

    def _confirm(self, index: int, product: Any) -> None:
        """Check in the first pass that up and gate, if masks are decided from them, make the product."""
        if index not in self._confirmed and "raw" in self._signals:
            check_plain(index, self._signals["raw"], product)
            self._confirmed.add(index)
        if index not in self._confirmed and self._signals.keys() & {"up", "gate"}:
            check_product(index, self._signals.get("up"), self._signals.get("gate"), product)
            self._confirmed.add(index)

    def _masked(self, name: str, values: Any) -> Any:
        mask = self._masks.get(name)
        return values if mask is None else values * mask.view(values.shape)

    # ------------------------------------------------------------------ masks

    def _decide(self, layer: int, slot: int, like: Any) -> None:
        masks = self._scan(layer, slot).astype(np.float32)  # numpy converts seven times faster
        slices = self._masking.plans[layer][slot].group.slices
        self._masks |= dict.fromkeys(slices, like.new_tensor(masks))  # in the model's dtype, for multiplication

    def _norm(self, layer: int, name: str) -> np.ndarray:
        """Norms of the running model's weights, float32 ``[indices]``, read-only."""
        if (layer, name) not in self._norms:
            self._norms[layer, name] = read_only(self._layers[layer].norm(name))
        return self._norms[layer, name]

    def _scan(self, layer: int, slot: int, experts: np.ndarray | None = None) -> np.ndarray:
        """Masks of all tokens, bool ``[tokens, indices]``; those of prompts are full, or the model's own choice."""
        needs = _needs(self._masking.plans[layer][slot])
        arrays = {signal: _array(self._signals[signal]) for signal in needs if signal not in NORMS}
        if experts is not None and "experts" in arrays:
            arrays["experts"] = read_only(experts)
        norms = {name: self._norm(layer, name) for name in needs if name in NORMS}
        return self._decisions.decide(layer, slot, arrays, norms, experts)


def _needs(plan: GroupPlan) -> list[str]:
    """Signals and norms from which a group is decided, and the choice of experts that it lies within."""
    choice = [] if plan.choice is None else [*plan.choice.group.needs, "experts"]
    return list(dict.fromkeys([*plan.group.needs, *choice]))


def _integers(values: Any) -> np.ndarray:
    """Ids of experts: int64 ``[tokens, used]``."""
    array: np.ndarray = values.cpu().numpy().astype(np.int64)
    return array


def _array(values: Any) -> np.ndarray:
    """A signal as policies see it: float32 ``[tokens, width]``, read-only."""
    array: np.ndarray = values.detach().reshape(-1, values.shape[-1]).float().cpu().numpy().copy()
    array.flags.writeable = False
    return array

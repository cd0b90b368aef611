"""The modules of a decoder layer at which signals are computed, and the hooks that take them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from hwsim.errors import ModelError
from hwsim.model.shape import EXPERT_SIGNALS, NORMS, ROUTER_AHEAD
from hwsim.record.experts import ROWS, LayerExperts, by_weight, check_chosen, check_mixture, check_router
from hwsim.record.inventory import Inventory, LayerParts, Mlp, activation, activations, base, split, transposed
from hwsim.trace.encoding import FLOAT16_MAX
from hwsim.trace.header import EXACT

Emit = Callable[[int, str, np.ndarray], None]
"""Callback: receives (layer, signal or norm, values).

Values of a signal are float32 [tokens, width], or float16 if requested; ids of experts are integers; values of a norm
are float32 [units].
"""

Put = Callable[[str, Any], None]
"""Callback: receives (``up`` or ``gate``, tensor ``[..., neurons]``)."""

_ROWS = 8  # tokens that show an activation
_APART = 1e-2  # they differ by one rounding at most: ample for bfloat16, and it still distinguishes gate from up


@dataclass(frozen=True, eq=False)
class Layer:
    """The modules of one decoder layer; None where it has none.

    Attributes:
        mlp: what is known about the MLP; None if the layer has none.
        up: up projection, or the fused one of gate and up: its input is the MLP's.
        gate: gate projection.
        down: down projection: its input is the GLU.
        act: module that activates the gate.
        inner: module between the product of gate and up and the down projection.
        query, key, value: projections of plain attention, one module if they are fused: their input is the attention's.
        out: output projection of plain attention.
        experts: the experts, with their hooks and functions.
    """

    mlp: Mlp | None
    up: Any = None
    gate: Any = None
    down: Any = None
    act: Any = None
    inner: Any = None
    query: Any = None
    key: Any = None
    value: Any = None
    out: Any = None
    experts: LayerExperts | None = None

    @classmethod
    def of(cls, module: Any, parts: LayerParts) -> Layer:
        """The modules of a decoder layer, by the names in the inventory."""
        names: dict[str, str] = {}
        if parts.mlp:
            names |= {part: getattr(parts.mlp, part) for part in ("up", "gate", "down", "act", "inner")}
        if parts.attention:
            names |= {part: getattr(parts.attention, part) for part in ("query", "key", "value", "out")}
        experts = LayerExperts(module, parts.experts) if parts.experts else None
        modules = {part: module.get_submodule(name) for part, name in names.items() if name}
        return cls(parts.mlp, **modules, experts=experts)

    @property
    def fused(self) -> bool:
        """Whether the module `up` computes gate and up together."""
        return self.mlp is not None and bool(self.mlp.fused)

    @property
    def fused_attention(self) -> bool:
        """Whether the module `query` computes query, key and value together."""
        return self.query is not None and self.query is self.key

    @property
    def gated(self) -> bool:
        """Whether the MLP has a gate."""
        return self.mlp is not None and self.mlp.gated

    @property
    def product(self) -> Any:
        """The module that the product of gate and up enters: `inner`, or down."""
        return self.down if self.inner is None else self.inner

    def watch(self, put: Put) -> list[Any]:
        """Pass ``up`` and ``gate``, activated, of every forward pass to `put`; returns the handles of the hooks.

        Raises:
            ModelError: it is not known how the MLP makes them.
        """
        mlp = self.mlp
        if mlp is None or not mlp.known or not mlp.gated:
            raise ModelError(f"{mlp.why if mlp else 'there is no MLP'}")

        def of_up(value: Any) -> None:
            raw, up = split(mlp, value) if mlp.fused else (None, value)
            put("up", up)
            if mlp.fused and self.act is None:
                put("gate", activation(mlp.function)(raw))

        handles = [_after(self.up, of_up)]
        if self.act is not None:
            handles.append(_after(self.act, lambda value: put("gate", value)))
        elif self.gate is not None:
            handles.append(_after(self.gate, lambda value: put("gate", activation(mlp.function)(value))))
        return handles

    def norm(self, name: str) -> np.ndarray:
        """One of `hwsim.model.shape.NORMS`, float32 ``[units]``; weights must be loaded, as in a forward pass."""
        modules = [self.down] if name == "norm_down" else [self.up, *([self.gate] if self.gate is not None else [])]
        squares = sum(
            base(module).weight.detach().double().square().sum(dim=1 if transposed(module) else 0) for module in modules
        )
        return squares.sqrt().float().cpu().numpy()


def layers_of(model: Any, inventory: Inventory) -> list[Layer]:
    """The layers of a model whose inventory was taken, with its own modules or those of an adapter."""
    modules = model.get_submodule(inventory.layers_name)
    return [Layer.of(module, parts) for module, parts in zip(modules, inventory.parts, strict=True)]


def check_product(index: int, up: Any, gate: Any, product: Any) -> None:
    """Check that the activated gate times up is what enters the next module.

    Args:
        index: number of the layer.
        up, gate, product: tensors of one shape.

    Raises:
        ModelError: they differ by more than a rounding.
    """
    if up is None or gate is None or largest((up * gate).sub_(product)) > _APART * largest(product):
        raise ModelError(
            f"layer {index}: activated gate times up is not what enters the down projection; the model's MLP is not "
            "the one that hwsim takes it for; record it with --signals input,glu"
        )


def check_plain(index: int, up: Any, glu: Any) -> None:
    """Check that what enters down, without a gate, is an activation of the output of up.

    Args:
        index: number of the layer.
        up, glu: tensors of one shape.

    Raises:
        ModelError: no activation of transformers makes it.
    """
    rows, wanted = up.reshape(-1, up.shape[-1])[:_ROWS], glu.reshape(-1, glu.shape[-1])[:_ROWS]
    limit = _APART * largest(wanted)
    if not any(largest(value - wanted) <= limit for _, value in activations(rows)):
        raise ModelError(
            f"layer {index}: what enters the down projection is no activation of the up projection's output; the "
            "model's MLP is not the one that hwsim takes it for; please report this model"
        )


class Taps:
    """Hooks on all layers that pass the requested signals of every forward pass to `emit`.

    Args:
        layers: from `layers_of`.
        signals: names of the requested signals.
        emit: receives each signal as soon as its layer has computed it, so that none is kept.
        on_norm: receives (layer, name, float32 [units]) for the norms of weights, in the first pass.
        half: round signals to float16, unless one of their values is beyond its range.

    Raises:
        ModelError: no layer computes a signal; during a pass: the activated gate times up differs from what enters the
            next module, so the model's MLP is not the one that hwsim assumes.
    """

    def __init__(
        self, layers: list[Layer], signals: list[str], emit: Emit, on_norm: Emit | None = None, *, half: bool = False
    ) -> None:
        self._emit, self._signals, self._on_norm, self._half = emit, set(signals), on_norm, half
        self._weighed: set[int] = set()  # layers whose norms were passed to on_norm
        self._made: dict[str, Any] = {}  # up and gate of the current layer, until their product has confirmed them
        self._plainly: set[int] = set()  # layers whose up was seen to make the GLU
        self._routed: set[int] = set()  # layers whose router was seen to be it
        self._mixed: set[int] = set()  # layers whose sum of experts was seen to be their output
        self._entered: dict[int, Any] = {}  # what entered the experts of a layer, until the next router has run
        self._handles: list[Any] = []
        self._expected: set[tuple[int, str]] = set()
        self._emitted: set[tuple[int, str]] = set()
        try:
            for index, layer in enumerate(layers):
                self._attach(index, layer)
            if ROUTER_AHEAD in self._signals:
                for index, pair in enumerate(pairwise(layers), 1):
                    self._look_ahead(index, *pair)
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def check_pass(self) -> None:
        """Check that every layer has emitted every signal since the last check.

        Raises:
            ModelError: one is missing.
        """
        missing = sorted(self._expected - self._emitted)
        if missing:
            layer, signal = missing[0]
            raise ModelError(
                f"layer {layer}: the model did not compute {signal} there, so a trace would hold zeros; it runs "
                "other modules than hwsim takes for its layers; please report this model"
            )
        self._emitted.clear()

    def _attach(self, index: int, layer: Layer) -> None:
        for signal, module in (("input", layer.up), ("attn_input", layer.query), ("attn_output", layer.out)):
            if signal in self._signals and module is not None:
                self._before(module, partial(self._take, index, signal))
                self._expected.add((index, signal))
        if layer.experts is not None:
            self._attach_experts(index, layer.experts)
        if layer.down is None:
            return
        if self._signals & {"up", "gate"}:
            self._handles += layer.watch(lambda name, value: self._made.update({name: value}))
            self._before(layer.product, lambda product: self._product(index, product))
        if layer.mlp is not None and layer.mlp.unseen:
            self._handles.append(_after(layer.up, lambda value: self._made.update(raw=value)))
            self._before(layer.down, lambda glu: self._plain(index, glu))
        if self._on_norm is not None:
            self._before(layer.down, lambda _: self._norms(index, layer))
        if "glu" in self._signals:
            self._before(layer.down, partial(self._take, index, "glu"))
        self._expected |= {(index, signal) for signal in self._signals & {"up", "gate", "glu"}}

    def _attach_experts(self, index: int, experts: LayerExperts) -> None:
        wanted = self._signals & set(EXPERT_SIGNALS)
        if not wanted:
            return
        call: list[Any] = []  # what entered, until the output has confirmed it
        logits: list[Any] = []
        if "router" in wanted:
            self._handles += experts.watch_router(logits.append)
        self._handles.append(experts.before(lambda *given: call.__setitem__(slice(None), given)))
        self._handles.append(experts.after(lambda output: self._mixture(index, experts, call, logits, output)))
        self._expected |= {(index, signal) for signal in wanted}

    def _look_ahead(self, index: int, before: Layer, layer: Layer) -> None:
        """Pass on what a layer's router makes of the input of the experts of the layer before."""
        if before.experts is None or layer.experts is None or before.experts.shape.input_size:
            return
        experts = layer.experts
        logits: list[Any] = []
        self._handles.append(
            before.experts.before(lambda entering, ids, weights: self._entered.__setitem__(index, entering))
        )
        self._handles += experts.watch_router(
            logits.append, lambda router: self._take(index, ROUTER_AHEAD, router(self._entered.pop(index)))
        )
        self._handles.append(
            experts.before(lambda entering, ids, weights: self._check(index, experts, logits.pop(), ids, weights))
        )
        self._expected.add((index, ROUTER_AHEAD))

    def _check(self, index: int, experts: LayerExperts, logits: Any, ids: Any, weights: Any) -> None:
        """Check once for each layer that its router is the model's own."""
        if index not in self._routed:
            self._routed.add(index)
            check_router(index, experts, logits, ids, weights)

    def _mixture(self, index: int, experts: LayerExperts, call: list[Any], logits: list[Any], output: Any) -> None:
        entering, ids, weights = call
        router = logits.pop() if logits else None
        call.clear()
        check_chosen(index, ids, experts.shape)
        glu = None
        if "expert_glu" in self._signals:
            glu = experts.functions.chosen_glu(entering, ids)
        if glu is not None or index not in self._mixed:
            self._mixed.add(index)
            part = slice(0, ROWS)
            summed = experts.functions.mixture(entering[part], ids[part], weights[part])
            check_mixture(index, summed, output[part])
            if "router" in self._signals:
                self._check(index, experts, router, ids, weights)
        if router is not None:
            self._take(index, "router", router)
        ids, weights, order = by_weight(ids, weights)
        values = {"experts": ids, "expert_weights": weights, "expert_input": entering}
        if glu is not None:
            values["expert_glu"] = glu.gather(1, order[..., None].expand(*glu.shape)).flatten(1)
        for signal in EXPERT_SIGNALS:
            if signal in values and signal in self._signals:
                self._take(index, signal, values[signal])

    def _before(self, module: Any, action: Callable[[Any], None]) -> None:
        self._handles.append(_before(module, action))

    def _norms(self, index: int, layer: Layer) -> None:
        if self._on_norm is not None and index not in self._weighed:
            self._weighed.add(index)
            for name in NORMS:
                self._on_norm(index, name, layer.norm(name))

    def _plain(self, index: int, glu: Any) -> None:
        if index not in self._plainly:
            self._plainly.add(index)
            check_plain(index, self._made.pop("raw"), glu)

    def _product(self, index: int, product: Any) -> None:
        check_product(index, self._made.get("up"), self._made.get("gate"), product)
        for signal in ("up", "gate"):
            if signal in self._signals:
                self._take(index, signal, self._made[signal])
        self._made = {}

    def _take(self, index: int, signal: str, values: Any) -> None:
        self._emitted.add((index, signal))
        rows = values.detach().reshape(-1, values.shape[-1])
        if signal in EXACT:
            rows = rows if signal == "experts" else rows.float()
            self._emit(index, signal, rows.cpu().numpy())
            return
        # torch rounds as numpy does, but faster; the writer clips and counts what does not fit
        rows = rows.half() if self._half and largest(rows) <= FLOAT16_MAX else rows.float()
        self._emit(index, signal, rows.cpu().numpy())


def _before(module: Any, action: Callable[[Any], None]) -> Any:
    return module.register_forward_pre_hook(lambda module, args: action(first(module, args)))


def first(module: Any, args: tuple[Any, ...]) -> Any:
    """The input of a module, from the arguments of its call.

    Raises:
        ModelError: it was called with keywords only.
    """
    if not args:
        raise ModelError(f"a {type(module).__name__} is called with keywords; hwsim knows calls by place")
    return args[0]


def _after(module: Any, action: Callable[[Any], None]) -> Any:
    return module.register_forward_hook(lambda _, __, result: action(result))


def largest(values: Any) -> float:
    """The largest magnitude of a tensor; NaN if it holds NaN."""
    low, high = values.aminmax()
    return max(abs(float(low)), abs(float(high)))

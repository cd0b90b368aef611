"""Where a transformers model computes the signals, and the hooks that take them.

Three shapes of MLP are known: separate ``gate_proj`` and ``up_proj`` (Llama, Mistral, Qwen2, Gemma), the fused
``gate_up_proj`` whose first half is the gate (Phi-3), and none at all, ``fc1`` and ``fc2`` (OPT).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from hwsim.errors import ModelError
from hwsim.model.shape import NORMS
from hwsim.trace.encoding import FLOAT16_MAX

Emit = Callable[[int, str, np.ndarray], None]
"""Callback: receives (layer, signal or norm, values).

Values of a signal are float32 [tokens, width], or float16 if requested; those of a norm are float32 [units].
"""


class Layer(NamedTuple):
    """The modules of one decoder layer that signals are taken from."""

    up: Any  # up_proj, gate_up_proj or fc1: its input is the MLP's
    gate: Any | None  # gate_proj
    down: Any  # down_proj or fc2: its input is the GLU
    act: Any | None  # activation of the gate
    query: Any | None  # q_proj or qkv_proj: its input is the attention's
    key: Any | None  # k_proj or qkv_proj
    value: Any | None  # v_proj or qkv_proj
    out: Any | None  # o_proj or out_proj

    @property
    def fused(self) -> bool:
        """Whether the module `up` computes gate and up together."""
        return self.gate is None and self.act is not None

    @property
    def fused_attention(self) -> bool:
        """Whether the module `query` computes query, key and value together."""
        return self.query is not None and self.query is self.key

    @property
    def gated(self) -> bool:
        """Whether the MLP has a gate."""
        return self.act is not None

    def signals_of(self, matrix: str, result: Any) -> dict[str, Any]:
        """The signals ``up`` and ``gate`` in an output of `up` or `gate`: ``[..., intermediate_size]`` each.

        Args:
            matrix: which of the two modules, ``up`` or ``gate``.
            result: output of the module.
        """
        if self.act is None or (matrix == "up" and not self.fused):
            return {"up": result}
        if matrix == "gate":
            return {"gate": self.act(result)}
        gate, up = result.chunk(2, dim=-1)
        return {"up": up, "gate": self.act(gate)}

    def norm(self, name: str) -> np.ndarray:
        """One of `hwsim.model.shape.NORMS`, float32 ``[units]``; weights must be loaded, as in a forward pass."""
        modules = [self.down] if name == "norm_down" else [self.up, *([self.gate] if self.gate is not None else [])]
        squares = sum(module.weight.detach().double().square().sum(dim=0) for module in modules)
        return squares.sqrt().float().cpu().numpy()


def find_layers(model: Any, count: int) -> tuple[str, list[Layer]]:
    """The decoder layers and the name of the list that holds them.

    Args:
        model: a causal language model of transformers; its weights may be on the meta device.
        count: how many layers its configuration promises.

    Raises:
        ModelError: the model has no such layers, or their MLP has an unknown shape.
    """
    kind = getattr(model.config, "model_type", type(model).__name__)
    for name, module in model.named_modules():
        if type(module).__name__ == "ModuleList" and len(module) == count and not name.endswith("experts"):
            layers = [_layer(item) for item in module]
            if all(layers):
                return name, [layer for layer in layers if layer]
    raise ModelError(
        f"model type {kind}: its MLPs have a shape that hwsim does not know; it knows gate_proj, up_proj and down_proj "
        "(Llama), gate_up_proj and down_proj (Phi-3), and fc1 and fc2 (OPT), without experts"
    )


def _layer(module: Any) -> Layer | None:
    """The modules of one decoder layer; None if its MLP has an unknown shape."""
    attention = getattr(module, "self_attn", None)
    query, key, value = (_first(attention, name, "qkv_proj") for name in ("q_proj", "k_proj", "v_proj"))
    out = _first(attention, "o_proj", "out_proj", "dense")
    mlp = getattr(module, "mlp", module)
    act = _first(mlp, "act_fn", "activation_fn", "act")
    up, gate, down = (_first(mlp, name) for name in ("up_proj", "gate_proj", "down_proj"))
    if up is not None and gate is not None and down is not None and act is not None:
        return Layer(up, gate, down, act, query, key, value, out)
    fused = _first(mlp, "gate_up_proj")
    if hasattr(fused, "weight") and hasattr(down, "weight") and act is not None:
        return Layer(fused, None, down, act, query, key, value, out)
    first, second = _first(mlp, "fc1"), _first(mlp, "fc2")
    if first is not None and second is not None:
        return Layer(first, None, second, None, query, key, value, out)
    return None


def _first(module: Any, *names: str) -> Any | None:
    """The first attribute of `module` that exists; None without one."""
    return next((getattr(module, name) for name in names if hasattr(module, name)), None)


class Taps:
    """Hooks on all layers that pass the requested signals of every forward pass to `emit`.

    Args:
        layers: from `find_layers`.
        signals: names of the requested signals.
        emit: receives each signal as soon as its layer has computed it, so that none is kept.
        on_norm: receives (layer, name, float32 [units]) for the norms of weights, in the first pass.
        half: round signals to float16, unless one of their values is beyond its range.

    Raises:
        ModelError: during a pass: the activated gate times up differs from the input of the down projection, so the
            model's MLP is not the one that hwsim assumes.
    """

    def __init__(
        self, layers: list[Layer], signals: list[str], emit: Emit, on_norm: Emit | None = None, *, half: bool = False
    ) -> None:
        self._emit, self._signals, self._on_norm, self._half = emit, set(signals), on_norm, half
        self._weighed: set[int] = set()  # layers whose norms were passed to on_norm
        self._made: dict[str, Any] = {}  # up and gate of the current layer, until down has confirmed them
        self._handles: list[Any] = []
        for index, layer in enumerate(layers):
            self._attach(index, layer)

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _attach(self, index: int, layer: Layer) -> None:
        for signal, module in (("input", layer.up), ("attn_input", layer.query), ("attn_output", layer.out)):
            if signal not in self._signals:
                continue
            if module is None:
                raise ModelError(f"layer {index}: has no projection that takes {signal}; leave it out of --signals")
            self._before(module, partial(self._take, index, signal))
        if self._signals & {"up", "gate"}:
            self._made_by(layer)
        if self._on_norm is not None:
            self._before(layer.down, lambda _: self._norms(index, layer))
        self._before(layer.down, lambda x: self._down(index, x))

    def _made_by(self, layer: Layer) -> None:
        """Hook the modules that compute up and gate; an activation that is a module is not computed twice."""
        if layer.act is None or not hasattr(layer.act, "register_forward_hook"):
            self._after(layer.up, lambda y: self._made.update(layer.signals_of("up", y)))
            if layer.gate is not None:
                self._after(layer.gate, lambda y: self._made.update(layer.signals_of("gate", y)))
            return
        self._after(layer.up, lambda y: self._made.update(up=y.chunk(2, dim=-1)[1] if layer.fused else y))
        self._after(layer.act, lambda y: self._made.update(gate=y))

    def _before(self, module: Any, action: Callable[[Any], None]) -> None:
        self._handles.append(module.register_forward_pre_hook(lambda _, args: action(args[0])))

    def _after(self, module: Any, action: Callable[[Any], None]) -> None:
        self._handles.append(module.register_forward_hook(lambda _, __, result: action(result)))

    def _norms(self, index: int, layer: Layer) -> None:
        if self._on_norm is not None and index not in self._weighed:
            self._weighed.add(index)
            for name in NORMS:
                self._on_norm(index, name, layer.norm(name))

    def _down(self, index: int, glu: Any) -> None:
        if self._made:
            # they differ by one rounding at most: 1 % is ample for bfloat16 and still distinguishes gate from up
            if not self._made.keys() >= {"up", "gate"} or self._apart(glu) > 1e-2 * _largest(glu):
                raise ModelError(
                    f"layer {index}: activated gate times up is not what enters the down projection; "
                    "the model's MLP is not the one that hwsim takes it for"
                )
            for signal in ("up", "gate"):
                if signal in self._signals:
                    self._take(index, signal, self._made[signal])
            self._made = {}
        if "glu" in self._signals:
            self._take(index, "glu", glu)

    def _apart(self, glu: Any) -> float:
        """Largest difference between the product of up and activated gate and the input of the down projection."""
        return _largest((self._made["up"] * self._made["gate"]).sub_(glu))

    def _take(self, index: int, signal: str, values: Any) -> None:
        rows = values.detach().reshape(-1, values.shape[-1])
        # torch rounds as numpy does, but faster; the writer clips and counts what does not fit
        rows = rows.half() if self._half and _largest(rows) <= FLOAT16_MAX else rows.float()
        self._emit(index, signal, rows.cpu().numpy())


def _largest(values: Any) -> float:
    """The largest magnitude of a tensor; NaN if it holds NaN."""
    low, high = values.aminmax()
    return max(abs(float(low)), abs(float(high)))

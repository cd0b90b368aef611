"""What plain transformers computes: signals, losses and masked passes, by hooks at the modules that `Where` names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from tests.record.architectures import Where


def activated(act: str, value: Any, layer: Any) -> Any:
    from transformers.activations import ACT2FN

    if act == "xielu":
        return layer.mlp.act_fn(value)
    if sparsity := getattr(layer.mlp if hasattr(layer, "mlp") else None, "activation_sparsity", 0.0):  # Gemma 3n
        spread = value.std(-1, keepdim=True, unbiased=False)
        limit = value.mean(-1, keepdim=True) + spread * torch.distributions.Normal(0, 1).icdf(torch.tensor(sparsity))
        value = torch.relu(value - limit)
    if act == "bloom":
        return 0.5 * value * (1 + torch.tanh(0.79788456 * value * (1 + 0.044715 * value * value)))
    return ACT2FN[act](value)


@contextmanager
def hooked(model: Any, place: Where, on: Callable[[int, str, Any], Any]) -> Iterator[None]:
    """Hooks at the MLPs: `on` gets (layer, point, tensor), and may return another one."""
    handles = []

    def before(module: Any, layer: int, point: str) -> None:
        def hook(_: Any, args: Any) -> Any:
            changed = on(layer, point, args[0])
            return None if changed is None else (changed, *args[1:])

        handles.append(module.register_forward_pre_hook(hook))

    def after(module: Any, layer: int, point: str) -> None:
        handles.append(module.register_forward_hook(lambda _, __, result: on(layer, point, result)))

    for number, layer in enumerate(model.get_submodule(place.layers)):
        if not has(layer, place.up):
            continue
        ups = [layer.get_submodule(name) for name in (place.gate, place.up) if name]
        for module, point in zip(ups, ("gate", "up")[-len(ups) :], strict=True):
            before(module, number, "input")
            after(module, number, point)
        before(layer.get_submodule(place.down), number, "glu")
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def has(layer: Any, name: str) -> bool:
    """Whether a layer has a module: of several kinds of layers only some have an MLP."""
    try:
        layer.get_submodule(name)
    except AttributeError:
        return False
    return True


def logits_of(model: Any, ids: np.ndarray) -> Any:
    with torch.no_grad():
        return model(input_ids=torch.as_tensor(ids).long(), use_cache=False).logits[0].float()


def losses_of(model: Any, ids: np.ndarray) -> np.ndarray:
    logits = logits_of(model, ids)
    return torch.nn.functional.cross_entropy(logits[:-1], torch.as_tensor(ids[0, 1:]).long(), reduction="none").numpy()


def signals_of(model: Any, place: Where, ids: np.ndarray) -> dict[tuple[int, str], np.ndarray]:
    """All signals of all layers, float32 ``[tokens, width]``."""
    seen: dict[tuple[int, str], Any] = {}
    layers = model.get_submodule(place.layers)

    def keep(layer: int, point: str, value: Any) -> None:
        value = value[0] if value.ndim == 3 else value
        if point == "gate":
            value = activated(place.act, value, layers[layer])
        if point == "up" and place.half:
            first, second = value.chunk(2, -1)
            seen[layer, "gate"], value = activated(place.act, first, layers[layer]), second
        seen[layer, point] = value.clone()

    with hooked(model, place, keep):
        logits_of(model, ids)
    return {key: value.reshape(-1, value.shape[-1]).numpy() for key, value in seen.items()}


def top(value: Any, k: int) -> Any:
    """The value, of whose entries all but the k largest of each row are zero."""
    kept = value.abs().topk(k, dim=-1).indices
    return value * torch.zeros_like(value).scatter(-1, kept, 1.0)

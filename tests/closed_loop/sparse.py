"""Mixtures of experts by hand: a model whose experts are summed here, with a choice that a test makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("torch", reason="the closed loop needs the extra `record`")

import torch

from hwsim.record.extras import libraries
from hwsim.record.hooks import Layer, layers_of
from hwsim.record.inventory import Inventory
from hwsim.record.loading import read_structure
from hwsim.record.sources import find_source
from tests.record.conftest import make_tokenizer
from tests.record.mixtures import MIXTURES, glu_of, make_mixture

KNOWN = ("qwen3_moe", "mixtral", "olmoe", "qwen2_moe", "deepseek_v3", "dots1", "gpt_oss", "gemma4_text", "granitemoe",
         "nemotron_h-moe", "lfm2_moe")  # fmt: skip
"""Families whose rule is known, of every kind: softmax and sigmoid, divided or not, scaled, with shared experts."""

Choose = Callable[[int, Any, Any], Any]
"""Chooses experts: (layer, logits [n, experts], the model's own choice as a mask) to a mask, bool [n, experts]."""


class Made(NamedTuple):
    """A model on disk and in memory, and its inventory."""

    folder: Path
    model: Any
    inventory: Inventory

    @property
    def layers(self) -> list[Layer]:
        return layers_of(self.model, self.inventory)


_parent: list[Path] = []


def keep_in(folder: Path) -> None:
    """The folder of the models on disk."""
    _parent.append(folder)


@lru_cache(maxsize=2)
def made(name: str) -> Made:
    folder = _parent[-1] / name
    make_mixture(name).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    structure = read_structure(find_source(str(folder)), libraries())
    model = structure.loader.from_pretrained(folder, dtype=torch.float32).eval()
    return Made(folder, model, structure.inventory)


def shares_of(name: str, layer: Any, logits: Any, mask: Any) -> Any:
    """Weights of all experts by the rule of the family, 0 where the mask holds none: ``[n, experts]``."""
    mixture = MIXTURES[name]
    assert mixture.rule is not None
    score, divided = mixture.rule
    shares = (logits.float().softmax(-1) if score == "softmax" else logits.float().sigmoid()) * mask
    if divided:
        shares = shares / shares.sum(-1, keepdim=True)
    if name == "gemma4_text":
        shares = shares * layer.router.per_expert_scale
    return shares * mixture.scale


def outputs_of(name: str, module: Any, value: Any) -> Any:
    """Output of every expert, ``[n, experts, inputs]``, one token and expert at a time."""
    count = MIXTURES[name].experts.count
    return down_of(name, module, glu_of(name, module, value, torch.arange(count).expand(len(value), -1)))


def down_of(name: str, module: Any, glu: Any) -> Any:
    """Output of every expert, ``[n, experts, inputs]``, of what enters down, ``[n, experts, width]``."""
    if name == "gpt_oss":
        return torch.einsum("new,ewi->nei", glu, module.down_proj) + module.down_proj_bias
    return torch.einsum("new,eiw->nei", glu, module.down_proj)


@contextmanager
def by_hand(
    name: str, model: Any, choose: Choose, outputs: Callable[[str, Any, Any], Any] = outputs_of
) -> Iterator[dict[int, list[Any]]]:
    """Experts that are summed here, with the experts that `choose` takes; yields the masks of each pass by layer."""
    mixture, logits, masks, handles = MIXTURES[name], {}, {}, []
    layers = model.get_submodule(mixture.layers)

    def routed(number: int) -> Callable[..., None]:
        def hook(_: Any, __: Any, result: Any) -> None:
            result = result[0] if isinstance(result, tuple) else result
            logits[number] = result.reshape(-1, result.shape[-1])

        return hook

    def forward(number: int, module: Any) -> Callable[..., Any]:
        def summed(value: Any, ids: Any, weights: Any) -> Any:
            own = torch.zeros((len(ids), mixture.experts.count), dtype=torch.bool).scatter(1, ids.long(), True)
            mask = choose(number, logits[number], own)
            masks.setdefault(number, []).append(mask)
            shares = shares_of(name, layers[number], logits[number], mask)
            return (outputs(name, module, value) * shares[..., None]).sum(1).to(value.dtype)

        return summed

    patched = []
    for number in mixture.sparse:
        module = layers[number].get_submodule(mixture.module)
        handles.append(layers[number].get_submodule(mixture.router).register_forward_hook(routed(number)))
        module.forward = forward(number, module)
        patched.append(module)
    try:
        with torch.inference_mode():
            yield masks
    finally:
        for handle in handles:
            handle.remove()
        for module in patched:
            del module.forward


def logits_of(model: Any, ids: np.ndarray) -> Any:
    """Logits of one window, ``[tokens, vocabulary]``."""
    with torch.inference_mode():
        return model(input_ids=torch.as_tensor(ids)[None].long(), use_cache=False).logits[0].float()

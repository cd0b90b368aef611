"""A LoRA adapter on a running model, which can be switched on and off. Needs the extra peft."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from hwsim.errors import ModelError
from hwsim.model.lora import WEIGHTS
from hwsim.record.extras import told_as
from hwsim.record.hooks import Layer, layers_of
from hwsim.record.inventory import Inventory
from hwsim.record.loading import Loaded


def require_peft() -> None:
    """Check that peft is installed, without importing it.

    Raises:
        ModelError: peft is not installed.
    """
    if importlib.util.find_spec("peft") is None:
        raise ModelError("LoRA needs the library peft, which is not installed; install it: pip install 'hwsim[train]'")


class Carried:
    """A model with an adapter, which is on inside the context.

    The adapter's modules replace the model's own and see the same masked inputs: y = x W + (x A) B.

    Args:
        wrapped: peft's wrapper of the model.
        inventory: of the model.

    Attributes:
        model: the model of transformers.
        layers: its layers, to attach masks to; with the adapter's modules where it has some.
    """

    def __init__(self, wrapped: Any, inventory: Inventory) -> None:
        self.wrapped = wrapped
        self.model = wrapped.get_base_model()
        self.layers: list[Layer] = layers_of(self.model, inventory)
        self.__exit__()

    def __enter__(self) -> Carried:
        """Switch the adapter on."""
        self.wrapped.base_model.enable_adapter_layers()
        return self

    def __exit__(self, *error: object) -> None:
        """Switch the adapter off, which restores the model's behaviour."""
        self.wrapped.base_model.disable_adapter_layers()


def carry(loaded: Loaded, folder: Path | None, name: str) -> Carried | None:
    """Put an adapter on a model; return None if there is no adapter.

    Args:
        loaded: the model.
        folder: folder of the adapter, which `hwsim.model.lora.read_adapter` has checked.
        name: name of the model, for messages.

    Raises:
        ModelError: the model is too large for memory, or peft cannot load the adapter.
    """
    if folder is None:
        return None
    require_peft()
    check_in_memory(loaded, name)
    with told_as(f"--lora {folder}: cannot be put on {name}"):
        import peft
        from safetensors import safe_open

        wrapped = peft.PeftModel.from_pretrained(loaded.model, folder)
        # peft ignores weights without a place, and initialises missing ones
        with safe_open(folder / WEIGHTS, "pt") as file:
            there = set(file.keys())
        if odd := sorted(there ^ set(peft.get_peft_model_state_dict(wrapped))):
            which = "has" if odd[0] in there else "lacks"
            raise ModelError(f"--lora {folder}: {which} {odd[0]}, as {name} does not; it was trained for another model")
        return Carried(wrapped.eval(), loaded.inventory)


def check_in_memory(loaded: Loaded, name: str) -> None:
    """Refuse a model whose layers are loaded from disk one by one.

    Raises:
        ModelError: the model does not fit into memory.
    """
    if loaded.from_disk:
        raise ModelError(
            f"--model {name}: does not fit into memory, and an adapter needs a model that does; "
            "choose a smaller --dtype, or a machine with more memory"
        )

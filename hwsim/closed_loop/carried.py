"""A LoRA adapter on a running model: carried while it is on, without a trace while it is off. Needs peft, an extra."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from hwsim.errors import ModelError
from hwsim.model.lora import WEIGHTS
from hwsim.record.extras import told_as
from hwsim.record.hooks import Layer, find_layers
from hwsim.record.loading import Loaded


def require_peft() -> None:
    """Check, without importing it, that peft is installed.

    Raises:
        ModelError: it is not.
    """
    if importlib.util.find_spec("peft") is None:
        raise ModelError("LoRA needs the library peft, which is not installed; install it: pip install 'hwsim[train]'")


class Carried:
    """A model with an adapter; as a context, the adapter is on.

    The adapter's modules take the place of the model's own and see the same masked inputs: y = x W + (x A) B.

    Args:
        wrapped: of peft, around the model.
        count: how many decoder layers the model has.

    Attributes:
        model: the model itself, as transformers knows it.
        layers: its layers, to hook masks to: the adapter's modules, where it has some.
    """

    def __init__(self, wrapped: Any, count: int) -> None:
        self.wrapped = wrapped
        self.model = wrapped.get_base_model()
        self.layers: list[Layer] = find_layers(self.model, count)[1]
        self.__exit__()

    def __enter__(self) -> Carried:
        """Switch it on."""
        self.wrapped.base_model.enable_adapter_layers()
        return self

    def __exit__(self, *error: object) -> None:
        """Switch it off: the model is as it was."""
        self.wrapped.base_model.disable_adapter_layers()


def carry(loaded: Loaded, folder: Path | None, name: str) -> Carried | None:
    """Put an adapter on a model; None where there is no adapter.

    Args:
        loaded: the model.
        folder: of the adapter; `hwsim.model.lora.read_adapter` has looked at it.
        name: of the model, for messages.

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
        # peft leaves out what finds no place, and makes up what is missing
        with safe_open(folder / WEIGHTS, "pt") as file:
            there = set(file.keys())
        if odd := sorted(there ^ set(peft.get_peft_model_state_dict(wrapped))):
            which = "has" if odd[0] in there else "lacks"
            raise ModelError(f"--lora {folder}: {which} {odd[0]}, as {name} does not; it was trained for another model")
        return Carried(wrapped.eval(), len(loaded.layers))


def check_in_memory(loaded: Loaded, name: str) -> None:
    """Refuse a model whose layers are loaded from disk one by one.

    Raises:
        ModelError: it is one.
    """
    if loaded.from_disk:
        raise ModelError(
            f"--model {name}: does not fit into memory, and an adapter needs a model that does; "
            "choose a smaller --dtype, or a machine with more memory"
        )

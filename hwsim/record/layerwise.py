"""A model whose weights do not fit into memory: each decoder layer is read from disk when it runs, then freed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hwsim.errors import ModelError


def load_layerwise(config: Any, loader: Any, files: list[Path], layers_name: str, *, dtype: Any, device: str) -> Any:
    """Load a model that keeps everything but its decoder layers in memory.

    Args:
        config: of the model.
        loader: class of transformers that makes the model from its configuration.
        files: safetensors files with all weights.
        layers_name: name of the list of decoder layers among the model's modules.
        dtype: torch's type to compute in.
        device: device that it runs on.

    Raises:
        ModelError: a weight is in none of the files.
    """
    import torch

    with torch.device("meta"):
        model = loader.from_config(config, dtype=dtype)
    _make_buffers(model, device)
    weights = _Weights(files, model.base_model_prefix, dtype, device)
    layers = model.get_submodule(layers_name)
    inside = f"{layers_name}."
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - {
        own_name for own_name, _ in model.named_parameters()
    }
    missing = [name for name in model.state_dict() if name not in tied and name not in weights]
    if missing:
        raise ModelError(
            f"its weights lack {len(missing)} tensors, such as {missing[0]}; they belong to another model, "
            "or are incomplete"
        )
    outside = [name for name in model.state_dict() if name not in tied and not name.startswith(inside)]
    weights.fill(model, dict.fromkeys(outside, ""))
    model.tie_weights()
    for index, layer in enumerate(layers):
        names = dict.fromkeys(layer.state_dict(), f"{inside}{index}.")
        layer.register_forward_pre_hook(lambda module, _, names=names: weights.fill(module, names))
        layer.register_forward_hook(lambda module, _, __, names=names: weights.drop(module, names))
    return model


def _make_buffers(model: Any, device: str) -> None:
    """Compute the buffers that no file holds, such as rotary frequencies, as transformers does after loading."""
    import torch

    owners = {}
    for name, buffer in list(model.named_non_persistent_buffers()):
        _put(model, name, torch.empty_like(buffer, device=device))
        owner = name.rpartition(".")[0]
        owners[owner] = model.get_submodule(owner)
    with torch.no_grad():
        for module in owners.values():
            model._init_weights(module)


class _Weights:
    """All tensors of some files by name; they are read on request and never kept."""

    def __init__(self, files: list[Path], prefix: str, dtype: Any, device: str) -> None:
        self._dtype, self._device = dtype, device
        self._where: dict[str, tuple[Path, str]] = {}
        for path in files:
            with self._open(path) as file:
                for key in file.keys():  # noqa: SIM118 (not a mapping)
                    # checkpoints of the bare model lack the first part of the name
                    self._where.setdefault(f"{prefix}.{key}", (path, key))
                    self._where[key] = (path, key)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    @staticmethod
    def _open(path: Path) -> Any:
        from safetensors import safe_open

        # no mmap: a private mapping of a whole file counts against the limit of a process and, on a machine with
        # less memory than the file, is refused
        return safe_open(path, framework="pt", device="cpu", backend="pread")

    def fill(self, module: Any, names: dict[str, str]) -> None:
        """Read the tensors of `module`; `names` maps their names to the prefixes that they have in the files."""
        by_file: dict[Path, list[tuple[str, str]]] = {}
        for name, before in names.items():
            path, key = self._where[before + name]
            by_file.setdefault(path, []).append((name, key))
        for path, entries in by_file.items():
            with self._open(path) as file:
                for name, key in entries:
                    tensor = file.get_tensor(key)
                    _put(module, name, tensor.to(self._device, self._dtype if tensor.is_floating_point() else None))

    @staticmethod
    def drop(module: Any, names: dict[str, str]) -> None:
        """Free the tensors of `module`."""
        for name in names:
            _put(module, name, None)


def _put(module: Any, name: str, tensor: Any | None) -> None:
    """Set a parameter or buffer by its dotted name; None sets an empty one on the meta device."""
    from accelerate.utils import set_module_tensor_to_device

    device = "meta" if tensor is None else tensor.device
    set_module_tensor_to_device(module, name, device, value=tensor)

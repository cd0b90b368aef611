"""A model whose weights do not fit into memory: each decoder layer is read from disk when it runs, then freed."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

from hwsim.errors import ModelError
from hwsim.record.checkpoint import Placed, Stored, check_complete, open_weights, refuse_untied

_ROWS = 4096  # rows of two matrices that are compared at a time


def load_layerwise(
    name: str, model: Any, tensors: dict[str, Stored], placed: Placed, layers_name: str, *, dtype: Any, device: str
) -> Any:
    """Load a model that keeps everything but its decoder layers in memory; weights are those that transformers loads.

    Args:
        name: name of the model, for messages.
        model: the model on the meta device, in `dtype`.
        tensors: from `hwsim.record.checkpoint.read_tensors`; safetensors only.
        placed: from `hwsim.record.checkpoint.place`.
        layers_name: name of the list of decoder layers among the model's modules.
        dtype: torch's type to compute in.
        device: device that it runs on.

    Raises:
        ModelError: a weight is in none of the files, or would have to be computed from others.
    """
    for target, (rule, _) in placed.conversions.items():
        if len(rule.target_patterns) > 1 or not target.startswith(f"{layers_name}."):
            raise ModelError(
                f"--model {name}: transformers computes weights from {placed.sources[target][0]}, which is not "
                "possible layer by layer; give more memory, or save the model anew with "
                "save_pretrained(..., save_original_format=False)"
            )
    _make_buffers(model, device)
    names = dict(placed.names)
    for copy, original in model.all_tied_weights_keys.items():
        if copy in names and original in names:
            check_copy(name, tensors, names[copy], names[original])
            del names[copy]
    weights = _Weights(names, placed, tensors, model, dtype, device)
    missing = set(model.state_dict()) - names.keys() - placed.conversions.keys()
    inside = f"{layers_name}."
    weights.fill(model, dict.fromkeys((target for target in names if not target.startswith(inside)), ""))
    model.tie_weights(missing_keys=missing, recompute_mapping=False)  # takes what it ties out of `missing`
    check_complete(name, missing)
    for index, layer in enumerate(model.get_submodule(layers_name)):
        parts = dict.fromkeys(layer.state_dict(), f"{inside}{index}.")
        layer.register_forward_pre_hook(lambda module, _, parts=parts: weights.fill(module, parts))
        layer.register_forward_hook(lambda module, _, __, parts=parts: weights.drop(module, parts))
    return model


def check_copy(name: str, tensors: dict[str, Stored], copy: str, original: str) -> None:
    """Refuse two tensors that the model ties but the files hold with different values."""
    import torch

    pair = [tensors[copy], tensors[original]]
    with open_weights(pair[0].file) as first, open_weights(pair[1].file) as second:
        one, other = first.get_slice(copy), second.get_slice(original)
        count = pair[1].shape[0]
        same = pair[0].shape == pair[1].shape and all(
            torch.equal(one[row : min(row + _ROWS, count)].float(), other[row : min(row + _ROWS, count)].float())
            for row in range(0, count, _ROWS)
        )
    if not same:
        refuse_untied(name, copy, original)


def _make_buffers(model: Any, device: str) -> None:
    """Compute the buffers that no file holds, such as rotary frequencies, as transformers does after loading."""
    import torch

    for name, buffer in list(model.named_non_persistent_buffers()):
        _put(model, name, torch.empty_like(buffer, device=device))
    for tensor in model.state_dict(keep_vars=True).values():
        tensor._is_hf_initialized = True  # it is read from the files: transformers leaves it alone
    for module in model.modules():
        module._is_hf_initialized = False
    model.initialize_weights()


class _Weights:
    """All tensors of some files by their names in the model; they are read on request and never kept."""

    def __init__(
        self,
        names: dict[str, str],
        placed: Placed,
        tensors: dict[str, Stored],
        model: Any,
        dtype: Any,
        device: str,
    ) -> None:
        from transformers.core_model_loading import build_glob_alternation

        self._device, self._model, self._placed = device, model, placed
        self._where: dict[str, list[tuple[Path, str, Any]]] = {}
        plan = model._get_dtype_plan(dtype)  # some models keep a few parameters in float32
        search, keys, _ = build_glob_alternation(list(plan)) if plan else (None, {}, None)
        for target, parameter in model.state_dict().items():
            own = [names[target]] if target in names else placed.sources.get(target, [])
            if target in names or target in placed.conversions:
                match = search.search(target) if search else None
                wanted = plan[keys[match.lastgroup]] if match else parameter.dtype
                self._where[target] = [(tensors[key].file, key, wanted) for key in own]

    def fill(self, module: Any, names: dict[str, str]) -> None:
        """Read the tensors of `module`; `names` maps their names to the prefixes that they have in the model."""
        for name, before in names.items():
            target = before + name
            if target in self._placed.conversions:
                _put(module, name, self._computed(target))
        plain = [name for name, before in names.items() if before + name not in self._placed.conversions]
        read = self._read(self._where[names[name] + name][0] for name in plain)
        for name in plain:
            _put(module, name, read.pop(self._where[names[name] + name][0][1]))

    def _read(self, entries: Iterable[tuple[Path, str, Any]]) -> dict[str, Any]:
        """Some tensors of the files, by their names there; each file is opened once."""
        by_file: dict[Path, list[tuple[str, Any]]] = {}
        for path, key, dtype in entries:
            by_file.setdefault(path, []).append((key, dtype))
        tensors: dict[str, Any] = {}
        for path, wanted in by_file.items():
            with open_weights(path) as file:
                tensors |= {key: file.get_tensor(key).to(self._device, dtype) for key, dtype in wanted}
        return tensors

    def _computed(self, target: str) -> Any:
        """A parameter that transformers computes from several tensors, by its own rule."""
        rule, patterns = self._placed.conversions[target]
        own, entries = deepcopy(rule), self._where[target]
        read = self._read(entries)
        for (_, key, _), pattern in zip(entries, patterns, strict=True):
            own.add_tensor(target, key, pattern, partial(read.pop, key))
        result = own.convert(target, model=self._model, config=self._model.config)[target]
        return result[0] if isinstance(result, list) else result

    @staticmethod
    def drop(module: Any, names: dict[str, str]) -> None:
        """Free the tensors of `module`."""
        for name in names:
            _put(module, name, None)


def _put(module: Any, name: str, tensor: Any | None) -> None:
    """Set a parameter or buffer by its dotted name; None sets an empty one on the meta device."""
    from accelerate.utils import set_module_tensor_to_device

    device = "meta" if tensor is None else tensor.device
    set_module_tensor_to_device(module, name, device, value=tensor, dtype=None if tensor is None else tensor.dtype)

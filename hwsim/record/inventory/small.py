"""Small copies of modules with random weights, on which a trial runs."""

from __future__ import annotations

import copy
from typing import Any

HIDDEN, NEURONS = 8, 12
"""Sizes of the copies."""


def shrunk(parent: Any, hidden: int, neurons: int, torch: Any) -> Any:
    """A small copy of a module on the CPU, with random weights; small sizes replace the module's wherever they are."""
    sizes = _small_sizes(hidden, neurons)
    small = copy.deepcopy(parent).to(torch.float32) if _is_meta(parent) else _meta_copy(parent, torch)
    generator = torch.Generator().manual_seed(0)
    for module in small.modules():
        for name, value in list(vars(module).items()):
            if type(value) is int and value in sizes:
                setattr(module, name, sizes[value])
            elif type(value) is tuple and value and all(type(part) is int for part in value):  # normalized_shape
                setattr(module, name, tuple(sizes.get(part, part) for part in value))
        for name, parameter in list(module.named_parameters(recurse=False)):
            shape = [sizes.get(size, size) for size in parameter.shape]
            value = (
                torch.randn(shape, generator=generator)
                if parameter.ndim > 1
                else 0.5 + torch.rand(shape, generator=generator)
            )
            setattr(module, name, torch.nn.Parameter(value, requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            shape = [sizes.get(size, size) for size in buffer.shape]
            module.register_buffer(name, torch.ones(shape, dtype=buffer.dtype))
    return small.eval()


def _small_sizes(hidden: int, neurons: int) -> dict[int, int]:
    """The small size in place of each size of a module; sizes that are equal stay equal."""
    width = HIDDEN
    small = {hidden: width, hidden // 2: width // 2, 2 * hidden: 2 * width}.get(neurons, NEURONS)
    return {2 * neurons: 2 * small, neurons: small, hidden: width}


def _is_meta(module: Any) -> bool:
    return all(parameter.is_meta for parameter in module.parameters())


def _meta_copy(module: Any, torch: Any) -> Any:
    """A copy of a module that has weights, without them."""
    weights = {id(parameter): torch.empty_like(parameter, device="meta") for parameter in module.parameters()}
    return copy.deepcopy(
        module, memo={key: torch.nn.Parameter(value, requires_grad=False) for key, value in weights.items()}
    ).to(torch.float32)

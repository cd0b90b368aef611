"""Modules that multiply by a matrix, whichever way they store it."""

from __future__ import annotations

from typing import Any, NamedTuple


class MatrixModule(NamedTuple):
    """A module that multiplies its input by its matrix, such as ``torch.nn.Linear``.

    Attributes:
        name: within the module that was searched, dotted.
        module: the module.
        inputs: length of a vector that enters.
        outputs: length of a vector that leaves.
    """

    name: str
    module: Any
    inputs: int
    outputs: int


def transposed(module: Any) -> bool:
    """Whether a module stores ``[inputs, outputs]``, as GPT-2's ``Conv1D`` does, not ``[outputs, inputs]``."""
    return type(base(module)).__name__ == "Conv1D"


def base(module: Any) -> Any:
    """The module itself, or the one that peft has wrapped."""
    return getattr(module, "base_layer", module)


def matrix_modules(parent: Any, *, direct: bool = False) -> list[MatrixModule]:
    """The modules inside `parent` that multiply by a matrix, in order.

    Args:
        parent: the module to search.
        direct: whether to search only its own children.
    """
    modules = parent.named_children() if direct else parent.named_modules()
    found = []
    for name, module in modules:
        weight: Any = getattr(module, "weight", None)
        if name and _multiplies(module) and weight is not None and weight.ndim == 2:
            rows, columns = weight.shape
            inputs, outputs = (rows, columns) if transposed(module) else (columns, rows)
            found.append(MatrixModule(name, module, int(inputs), int(outputs)))
    return found


def _multiplies(module: Any) -> bool:
    kind = type(base(module))
    names = {parent.__name__ for parent in kind.__mro__}
    return bool(names & {"Linear", "Conv1D"}) or kind.__name__.endswith("Linear")

"""What one forward pass reads: the pass runs on torch's meta device, where it costs neither memory nor arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hwsim.errors import ModelError, one_line
from hwsim.record.runner import kv_argument

TOKENS = 9  # length of the text: odd, and no size that a model is likely to have
_PRODUCTS = frozenset(
    {"linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm", "einsum", "mv"}
)
_PRODUCTS |= {"conv1d"}
_LOOK_UPS = frozenset({"embedding", "index_select"})
_NO_USE = frozenset({"dim", "size", "numel", "element_size", "is_floating_point", "__len__", "__hash__"})
_TRANSPOSES = frozenset({"T", "mT", "H", "data"})  # attributes whose value is used in place of the parameter
# what a model asks a tensor for that has no values; the answer is that of a text without images and padding
_ANSWERS: dict[str, Any] = {
    "item": 0, "__bool__": False, "__contains__": False, "equal": False, "__int__": 0, "__float__": 0.0,
}  # fmt: skip


@dataclass
class Reads:
    """How one forward pass uses the parameters of a model.

    Attributes:
        products: how often each parameter enters a matrix product or a convolution, by name.
        looked_up: parameters of which only rows are looked up, by name.
        other: parameters that enter other operations, by name.
        within: items of lists of modules, such as decoder layers, that were running when each parameter entered a
            product, by name.
        calls: how often each module was called, by name.
        rows: number of vectors that entered each module, by name.
        cache: the KV cache that the pass filled with `TOKENS` tokens; None if the model keeps none.
    """

    products: dict[str, int] = field(default_factory=dict)
    looked_up: set[str] = field(default_factory=set)
    other: set[str] = field(default_factory=set)
    within: dict[str, set[str]] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    cache: Any = None

    def __contains__(self, parameter: str) -> bool:
        """Whether the pass used a parameter at all."""
        return parameter in self.products or parameter in self.looked_up or parameter in self.other


def read_once(model: Any, torch: Any) -> Reads:
    """Run one forward pass over a few tokens, and see what it uses.

    Args:
        model: a causal language model of transformers, on the meta device or any other.
        torch: the library.

    Raises:
        ModelError: the pass fails.
    """
    reads, running, handles = Reads(), [], []

    def enter(name: str) -> Callable[..., None]:
        def count(_: Any, args: Any) -> None:
            reads.calls[name] = reads.calls.get(name, 0) + 1
            if args and getattr(args[0], "ndim", 0):
                reads.rows[name] = args[0].numel() // args[0].shape[-1]
            running.append(name)

        return count

    def leave(*_: Any) -> None:
        running.pop()

    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name)))
        handles.append(module.register_forward_hook(leave))
    device = model.get_input_embeddings().weight.device
    ids = torch.zeros((1, TOKENS), dtype=torch.long, device=device)
    try:
        with torch.inference_mode(), _watching(model, torch, reads, running):
            out = model(input_ids=ids, use_cache=True)
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__}: its forward pass cannot be followed ({type(error).__name__}: "
            f"{one_line(error)[:120]}); hwsim knows decoders that run on tokens alone"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    reads.cache = out.get(kv_argument(model)) if hasattr(out, "get") else None
    return reads


def _watching(model: Any, torch: Any, reads: Reads, running: list[str]) -> Any:
    """A mode of torch that notes each use of a parameter; `running` holds the names of the modules that are running."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tables = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Embedding)}

    class Watching(torch.overrides.TorchFunctionMode):  # type: ignore[misc]
        """Notes the parameters among the arguments of each operation."""

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            operation = getattr(function, "__name__", "")
            if operation == "__get__" and function.__self__.__name__ not in _TRANSPOSES:
                return function(*args, **(kwargs or {}))  # its shape or type
            for argument in _flat([*args, *(kwargs or {}).values()]):
                name = names.get(id(argument))
                if name is not None and operation not in _NO_USE:
                    rows = operation in _LOOK_UPS or (operation == "__getitem__" and name in tables)
                    _note(reads, name, "rows" if rows else operation, running)
            if operation in _ANSWERS and args and getattr(args[0], "is_meta", False):
                return _ANSWERS[operation]
            return function(*args, **(kwargs or {}))

    return Watching()


def _note(reads: Reads, name: str, operation: str, running: list[str]) -> None:
    if operation in _PRODUCTS:
        reads.products[name] = reads.products.get(name, 0) + 1
        item = next((module for module in running if module.rpartition(".")[2].isdigit()), "")
        reads.within.setdefault(name, set()).add(item)
    elif operation == "rows":
        reads.looked_up.add(name)
    else:
        reads.other.add(name)


def _flat(values: list[Any]) -> list[Any]:
    """The values, and those within lists and tuples."""
    flat: list[Any] = []
    for value in values:
        flat += value if isinstance(value, list | tuple) else [value]
    return flat

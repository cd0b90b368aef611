"""What one forward pass reads: the pass runs on torch's meta device, where it costs neither memory nor arithmetic.

The arithmetic of experts depends on values, which the meta device does not have. So a module that is called with the
ids of the chosen experts is not run: its output is a tensor of the size of its input, and it reads all of its weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hwsim.errors import ModelError, one_line
from hwsim.record.runner import kv_argument

TOKENS = 9  # length of the text: odd, and no size that a model is likely to have
PRODUCTS = frozenset({"linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm", "einsum", "mv"})
PRODUCTS |= {"conv1d"}
_LOOK_UPS = frozenset({"embedding", "index_select"})
_NO_USE = frozenset({"dim", "size", "numel", "element_size", "is_floating_point", "__len__", "__hash__"})
CASTS = frozenset({"to", "type", "type_as", "float", "double", "half", "bfloat16"})
_TRANSPOSES = frozenset({"T", "mT", "H", "data"})  # attributes whose value is used in place of the parameter
# what a model asks a tensor for that has no values; the answer is that of a text without images and padding
_ANSWERS: dict[str, Any] = {
    "item": 0, "__bool__": False, "__contains__": False, "equal": False, "__int__": 0, "__float__": 0.0,
}  # fmt: skip


class Routed(NamedTuple):
    """A call of a module with hidden states, and with ids and weights of the experts that are chosen for them.

    Attributes:
        places: of the hidden states, ids and weights among the arguments.
        width: numbers of a vector that enters the experts.
        used: experts that are chosen for a token.
        storage: identity of the memory of the hidden states.
        before: number of matrix products that came before the call.
    """

    places: tuple[int, int, int]
    width: int
    used: int
    storage: int
    before: int


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
        routed: calls with the ids of chosen experts, by the name of the module.
        order: the matrix products in their order, each the parameter and the width of the result.
        storages: identity of the memory of the first argument of each module, by name.
        gates: parameters whose products a sigmoid takes.
        cache: the KV cache that the pass filled with `TOKENS` tokens; None if the model keeps none.
    """

    products: dict[str, int] = field(default_factory=dict)
    looked_up: set[str] = field(default_factory=set)
    other: set[str] = field(default_factory=set)
    within: dict[str, set[str]] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    routed: dict[str, Routed] = field(default_factory=dict)
    order: list[tuple[str, int]] = field(default_factory=list)
    storages: dict[str, int] = field(default_factory=dict)
    gates: set[str] = field(default_factory=set)
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
    kept: list[Any] = []  # tensors whose memory must not be given to others during the pass

    def enter(name: str) -> Callable[..., None]:
        def count(_: Any, args: Any) -> None:
            reads.calls[name] = reads.calls.get(name, 0) + 1
            if args and getattr(args[0], "ndim", 0):
                reads.rows[name] = args[0].numel() // args[0].shape[-1]
                reads.storages[name] = _storage(args[0], kept)
            running.append(name)

        return count

    def leave(*_: Any) -> None:
        running.pop()

    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name)))
        handles.append(module.register_forward_hook(leave))
    routers = [(name, module) for name, module in model.named_modules() if _has_stack(module)]
    for name, module in routers:
        module.forward = _stand_in(name, module.forward, reads, kept, torch)
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
        for _, module in routers:
            del module.forward
    for name in reads.routed:
        reads.other |= {f"{name}.{key}" for key, _ in model.get_submodule(name).named_parameters()}
    reads.cache = out.get(kv_argument(model)) if hasattr(out, "get") else None
    return reads


def _has_stack(module: Any) -> bool:
    """Whether a module may hold the weights of several experts."""
    return any(parameter.ndim >= 2 for parameter in module.parameters()) and "forward" not in vars(module)


def _storage(tensor: Any, kept: list[Any]) -> int:
    """Identity of the memory of a tensor, which views share."""
    kept.append(tensor)
    return int(tensor.untyped_storage()._cdata)


def _stand_in(name: str, forward: Callable[..., Any], reads: Reads, kept: list[Any], torch: Any) -> Callable[..., Any]:
    """The forward function of a module, which does not run where it is called with the ids of chosen experts."""

    def stand_in(*args: Any, **options: Any) -> Any:
        places = routed_places(args, torch)
        if places is None or options:
            return forward(*args, **options)
        entering, ids = args[places[0]], args[places[1]]
        width, used = int(entering.shape[-1]), int(ids.shape[-1])
        reads.routed[name] = Routed(places, width, used, _storage(entering, kept), len(reads.order))
        return torch.zeros_like(entering)

    return stand_in


def routed_places(args: tuple[Any, ...], torch: Any) -> tuple[int, int, int] | None:
    """Places of hidden states, ids and weights among arguments: ``[..., width]``, int ``[n, k]``, float ``[n, k]``.

    None if the arguments are others.
    """
    if len(args) != 3 or not all(isinstance(value, torch.Tensor) and value.ndim >= 2 for value in args):
        return None
    whole = [place for place, value in enumerate(args) if not value.is_floating_point() and value.dtype != torch.bool]
    if len(whole) != 1 or args[whole[0]].ndim != 2:
        return None
    ids = args[whole[0]]
    # where a token has as many numbers as experts, the weights come last
    weights = next((place for place in (2, 1, 0) if place != whole[0] and args[place].shape == ids.shape), None)
    if weights is None:
        return None
    entering = 3 - whole[0] - weights
    tokens = args[entering].numel() // args[entering].shape[-1]
    return (entering, whole[0], weights) if tokens == len(ids) else None


def _watching(model: Any, torch: Any, reads: Reads, running: list[str]) -> Any:
    """A mode of torch that notes each use of a parameter; `running` holds the names of the modules that are running."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tables = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Embedding)}
    made: dict[int, str] = {}  # results of products, each with its parameter
    kept: list[Any] = []

    class Watching(torch.overrides.TorchFunctionMode):  # type: ignore[misc]
        """Notes the parameters among the arguments of each operation."""

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            operation = getattr(function, "__name__", "")
            if operation == "__get__" and function.__self__.__name__ not in _TRANSPOSES:
                return function(*args, **(kwargs or {}))  # its shape or type
            found = ""
            for argument in _flat([*args, *(kwargs or {}).values()]):
                name = names.get(id(argument))
                if name is not None and operation not in _NO_USE:
                    rows = operation in _LOOK_UPS or (operation == "__getitem__" and name in tables)
                    _note(reads, name, "rows" if rows else operation, running)
                    found = name if argument.ndim > 1 else found
                if operation in ("sigmoid", "sigmoid_") and id(argument) in made:
                    reads.gates.add(made[id(argument)])
            if operation in _ANSWERS and args and getattr(args[0], "is_meta", False):
                return _ANSWERS[operation]
            result = function(*args, **(kwargs or {}))
            if found and operation in PRODUCTS and isinstance(result, torch.Tensor):
                reads.order.append((found, int(result.shape[-1])))
                made[id(result)] = found
                kept.append(result)
            elif found and operation in CASTS and isinstance(result, torch.Tensor) and id(result) not in names:
                names[id(result)] = found  # the same weights in another type
                kept.append(result)
            return result

    return Watching()


def _note(reads: Reads, name: str, operation: str, running: list[str]) -> None:
    if operation in PRODUCTS:
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

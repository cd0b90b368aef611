"""The experts of a decoder layer: found where the forward pass calls a module with ids, and tried on numbers.

Most of transformers' mixtures keep the weights of all experts in stacks ``[experts, outputs, inputs]`` and use them in
function calls, so no hook sees the inside of an expert. Which stack is down, which half is the gate, and what activates
it, a trial tells: a small copy of the module runs on random numbers, and must give the sum of weights x down(glu).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from hwsim.errors import ModelError
from hwsim.model.layers import Experts
from hwsim.record.inventory.expert_functions import LAYOUTS, ExpertFunctions, ExpertWeights, layout_of
from hwsim.record.inventory.matrices import matrix_modules
from hwsim.record.inventory.mlp import NOT_MLP, same, shaped
from hwsim.record.inventory.reading import Reads, Routed
from hwsim.record.inventory.small import shrunk

_TOKENS = 6
_ARGUMENTS = 3  # hidden states, ids and weights
_METHODS = ("_apply_gate",)  # of transformers' experts: from the output of the stack of gate and up to glu
_NAMED = ("experts", "expert")


class FoundExperts(NamedTuple):
    """The experts of a layer; names are dotted, within the decoder layer.

    Attributes:
        module: module that is called with hidden states, ids and weights.
        places: of these among its arguments.
        weights: where it keeps the weights, and what it computes; names within it.
        router: matrix whose product is the router's logits.
        router_module: module whose call multiplies by it.
        alone: whether no other product before the experts has a number for each of them; otherwise the numbers of the
            first pass must show that it is the router.
        shared: modules with the matrices of the shared experts, gates of their output included.
        shape: number, width, and so on.
    """

    module: str
    places: tuple[int, int, int]
    weights: ExpertWeights
    router: str
    router_module: str
    alone: bool
    shared: tuple[str, ...]
    shape: Experts

    def names(self) -> dict[str, list[str]]:
        """The parameters with matrices, each with the names of its matrices."""
        first = ["expert_gate", "expert_up"] if self.weights.gated else ["expert_up"]
        stacks = [first] if len(self.weights.first) == 1 else [[name] for name in first]
        named = dict(zip(self.weights.first, stacks, strict=True)) | {self.weights.down: ["expert_down"]}
        return {f"{self.module}.{name}": matrices for name, matrices in named.items()} | {
            f"{name}.weight": ["shared"] for name in self.shared
        }

    def biases(self) -> set[str]:
        """The biases, which are stacked, too."""
        return {f"{self.module}.{name}" for name in self.weights.biases if name}


def find_experts(layer: Any, where: str, hidden: int, reads: Reads, torch: Any) -> FoundExperts | None:
    """The experts of a decoder layer; None in a dense layer.

    Args:
        layer: the decoder layer.
        where: its name in the model.
        hidden: the model's hidden size.
        reads: what a forward pass has shown.
        torch: the library.

    Raises:
        ModelError: its experts are none that hwsim knows.
    """
    inside = f"{where}."
    names = [name for name in reads.routed if name.startswith(inside)]
    _refuse_others(layer, inside, names)
    if not names:
        return None
    if len(names) > 1:
        raise ModelError(f"{names[1]}: a second mixture of experts in one layer; hwsim knows one; choose another model")
    name, call = names[0], reads.routed[names[0]]
    if reads.calls[name] > 1:
        raise ModelError(
            f"{name}: runs {reads.calls[name]} times for each token; hwsim knows one; choose another model"
        )
    module = layer.get_submodule(name.removeprefix(inside))
    count, width, weights = _tried(name, module, call, torch)
    router, alone = _router(name, inside, count, call, reads)
    shared = _shared(layer, inside, name.removeprefix(inside), call, hidden, reads)
    gates = [gate for gate in _gates(layer, inside, reads) if shared]
    size = sum(layer.get_submodule(part).weight.numel() for part in [*shared, *gates])
    shape = Experts(
        count=count,
        used=call.used,
        intermediate_size=width,
        input_size=call.width if call.width != hidden else 0,
        gated=weights.gated,
        shared_parameters=size,
        shared_gate=bool(gates),
    )
    caller = router.rpartition(".")[0]
    while caller and inside + caller not in reads.calls:
        caller = caller.rpartition(".")[0]
    module_name, parts = name.removeprefix(inside), (*shared, *gates)
    return FoundExperts(module_name, call.places, weights, router, caller, alone, parts, shape)


def refuse_experts(model: Any, kind: str) -> None:
    """Refuse a model whose forward pass could not be followed because it sorts tokens by experts."""
    for name, module in model.named_modules():
        if _looks_like_experts(name, module) and len(inspect.signature(module.forward).parameters) < _ARGUMENTS:
            raise ModelError(
                f"{name} ({type(module).__name__}): {kind} sorts or masks what enters its experts, so no call shows "
                "which are chosen for a token; hwsim knows experts that are called with hidden states, ids and "
                "weights; choose another model"
            )


def _refuse_others(layer: Any, inside: str, known: list[str]) -> None:
    """Refuse a layer with experts that no call with ids has shown."""
    for name, module in layer.named_modules():
        whole = inside + name
        covered = any(whole == other or whole.startswith(f"{other}.") for other in known)
        if name and not covered and _looks_like_experts(name, module):
            raise ModelError(
                f"{whole} ({type(module).__name__}): its experts are not called with ids and weights of those that "
                "are chosen, so hwsim cannot see which a token reads; choose another model"
            )


def _looks_like_experts(name: str, module: Any) -> bool:
    """Whether a module is called so and has weights, or is called so by its class and holds a stack of matrices."""
    named = name.rpartition(".")[2] in _NAMED and any(True for _ in module.parameters())
    stacked = "expert" in type(module).__name__.lower() and any(
        parameter.ndim == 3 for parameter in module.parameters(recurse=False)
    )
    return named or stacked


# ---------------------------------------------------------------------- the trial


def _tried(name: str, module: Any, call: Routed, torch: Any) -> tuple[int, int, ExpertWeights]:
    """Number of experts, their width and weights, as the trial explains them."""
    kind = f"{name} ({type(module).__name__})"
    stacks = {key: tuple(value.shape) for key, value in module.named_parameters() if value.ndim == 3}
    counts = {shape[0] for shape in stacks.values()}
    others = [key for key, value in module.named_parameters() if value.ndim == 2]
    if len(stacks) not in (2, 3) or len(counts) != 1:
        held = ", ".join(f"{key} {list(value.shape)}" for key, value in module.named_parameters())
        raise ModelError(
            f"{kind}: holds {held[:200] or 'no weights'}; hwsim knows experts whose weights are two or three stacks "
            "[experts, rows, columns]; choose another model"
        )
    count, why = counts.pop(), "the small copy was not run"
    biases = {key: tuple(module.get_parameter(key).shape) for key in others}
    for width, weights in _roles(stacks, biases, call.width):
        small = shrunk(module, call.width, width, torch)
        try:
            output, *given = _run_small(small, weights, call, torch)
            for explained in _functions(small, weights, torch):
                if same(ExpertFunctions(small, explained).mixture(*given).reshape(output.shape), output, torch):
                    return count, width, explained
            why = "its output is not the sum of weights x down(act(gate) x up) for any activation of transformers"
        except Exception as error:
            why = f"it does not run alone ({type(error).__name__})"
    raise ModelError(f"{kind}: what its experts compute is not known: {why}; choose another model")


def _roles(
    stacks: dict[str, tuple[int, ...]], biases: dict[str, tuple[int, ...]], inputs: int
) -> Iterator[tuple[int, ExpertWeights]]:
    """The roles that the stacks may have by their sizes, each with the width of an expert."""
    for down in reversed(stacks):
        for transposed in (False, True):
            rows, columns = stacks[down][1:]
            width, back = (rows, columns) if transposed else (columns, rows)
            if back != inputs:
                continue
            others = [key for key in stacks if key != down]
            sizes = [stacks[key][:0:-1] if transposed else stacks[key][1:] for key in others]  # outputs, inputs
            for gated, wanted in ((True, [2 * width]), (True, [width] * 2), (False, [width])):
                if sizes != [(size, inputs) for size in wanted]:
                    continue
                for order in (others, others[::-1]) if len(others) == 2 else (others,):
                    outputs = dict(zip(others, wanted, strict=True)) | {down: inputs}
                    found = _biases([*order, down], outputs, biases)
                    if found is not None:
                        yield width, ExpertWeights(tuple(order), down, found, transposed, gated)


def _biases(stacks: list[str], outputs: dict[str, int], biases: dict[str, tuple[int, ...]]) -> tuple[str, ...] | None:
    """The bias of each stack, by its size and, among several, by its name; None if one is left over."""
    left, found = dict(biases), []
    for stack in stacks:
        fitting = [key for key, shape in left.items() if shape[-1] == outputs[stack]]
        start = stack.removesuffix(".weight")
        name = next((key for key in fitting if key.startswith(start)), fitting[0] if len(fitting) == 1 else "")
        left.pop(name, None)
        found.append(name)
    return None if left else tuple(found)


def _run_small(small: Any, weights: ExpertWeights, call: Routed, torch: Any) -> tuple[Any, Any, Any, Any]:
    """Run a small copy on random numbers: output, hidden states, ids and weights."""
    generator = torch.Generator().manual_seed(1)
    stack = small.get_parameter(weights.down)
    count, inputs = stack.shape[0], stack.shape[-1 if weights.transposed else -2]
    value = torch.randn((_TOKENS, inputs), generator=generator) * 2  # some beyond the limits of clamps
    used = min(call.used, count)
    ids = torch.stack([torch.randperm(count, generator=generator)[:used] for _ in range(_TOKENS)])
    shares = 0.5 + torch.rand((_TOKENS, used), generator=generator)
    args: list[Any] = [None] * 3
    for place, entry in zip(call.places, (value, ids, shares), strict=True):
        args[place] = entry.clone()
    with torch.no_grad():
        return small(*args), value, ids, shares


def _functions(small: Any, weights: ExpertWeights, torch: Any) -> Iterator[ExpertWeights]:
    """The weights with each function that may make glu of them, and with each module that may follow down."""
    from transformers.activations import ACT2CLS

    norms = [name for name, child in small.named_children() if any(True for _ in child.parameters())]
    acts = [
        name
        for name, value in [*vars(small).items(), *small.named_children()]
        if callable(value) and not name.startswith("_") and name not in norms
    ]
    layouts = LAYOUTS if weights.fused else ("",)
    for after in ("", *norms):
        for method in _METHODS if weights.fused else ():
            if callable(own := getattr(small, method, None)):
                yield weights._replace(method=method, layout=layout_of(own, torch), after=after)
        for layout in layouts:
            for act in acts:
                yield weights._replace(act=act, layout=layout, after=after)
            for function in ACT2CLS:
                yield weights._replace(function=function, layout=layout, after=after)


# ---------------------------------------------------------------------- what belongs to them


def _router(name: str, inside: str, count: int, call: Routed, reads: Reads) -> tuple[str, bool]:
    """The matrix of the router, of the last product before the experts with a number for each; and if it is alone."""
    fitting = [key for key, width in reads.order[: call.before] if width == count and key.startswith(inside)]
    if not fitting:
        raise ModelError(
            f"{name}: no matrix product before it has {count} results, one for each expert, so hwsim does not find its "
            "router; choose another model"
        )
    return fitting[-1].removeprefix(inside), len(set(fitting)) == 1


def _shared(layer: Any, inside: str, module: str, call: Routed, hidden: int, reads: Reads) -> tuple[str, ...]:
    """The matrices of shared experts: of MLPs in the same block as the experts, or that read the same vectors."""
    block = module.rpartition(".")[0]
    found: dict[str, None] = {}
    for name, parent in layer.named_modules():
        matrices = [
            matrix
            for matrix in matrix_modules(parent, direct=True)
            if f"{inside}{_join(name, matrix.name)}.weight" in reads
        ]
        if not any(True for _ in shaped(matrices, hidden, name)):
            continue
        in_block = bool(block) and name.startswith(f"{block}.")
        entering = {reads.storages.get(inside + _join(name, matrix.name)) for matrix in matrices}
        attention = any(part in name.lower() for part in NOT_MLP if part not in ("expert", "mixer"))
        if in_block or (call.storage in entering and name and not attention):
            found |= dict.fromkeys(_join(name, matrix.name) for matrix in matrices)
    return tuple(found)


def _gates(layer: Any, inside: str, reads: Reads) -> list[str]:
    """The matrices with one output that a sigmoid takes: they scale the output of shared experts."""
    return [
        matrix.name
        for matrix in matrix_modules(layer)
        if matrix.outputs == 1 and f"{inside}{matrix.name}.weight" in reads.gates
    ]


def _join(parent: str, name: str) -> str:
    return f"{parent}.{name}" if parent else name


def shared_reader(found: FoundExperts | None, read: Callable[[str], bool]) -> Callable[[str], bool]:
    """The function `read` of `hwsim.record.inventory.mlp.find_mlp`, without the matrices of shared experts."""
    hidden = set(found.shared) if found else set()
    return lambda name: name not in hidden and read(name)

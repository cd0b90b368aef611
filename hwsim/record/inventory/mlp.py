"""The MLP of a decoder layer: found by its structure, and tried on numbers.

An MLP is a module, or a layer itself, with two or three matrices of its own: one that leads from n neurons back to the
hidden size (down), and one or two that lead to n neurons (up and gate), or one to 2 n (both, fused). Which of two is
the gate, and by which function, no name tells for sure. So a small copy of the module runs on random numbers, and what
enters down is compared with act(gate) * up for every activation that transformers has.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from hwsim.errors import ModelError
from hwsim.record.inventory.matrices import MatrixModule, matrix_modules
from hwsim.record.inventory.small import HIDDEN, shrunk

NOT_MLP = ("attn", "attention", "mixer", "mamba", "conv", "recurrent", "temporal", "rnn", "ssm", "expert")
_TWO_INPUTS = "gate and up of its MLP read different inputs, and hwsim knows MLPs whose matrices share one"
MLP_NAMES = ("mlp", "ffn", "feed_forward")
_TOKENS = 5
_CLOSE = 1e-5  # relative
_IN_LAYER = "its matrices lie in the decoder layer itself, which does not run alone"
_AMBIGUOUS = "which of its matrices leads back to the hidden size is not known, since all have the same sizes"


class Mlp(NamedTuple):
    """The parts of an MLP; names are dotted, within the decoder layer.

    Attributes:
        up: module of the up projection; of the fused one, if `fused`.
        gate: module of the gate projection; empty if there is none, or it is fused.
        down: module of the down projection.
        act: module that activates the gate, or, without a gate, up; empty if it is a function.
        function: name in transformers' table of the function that activates the gate; empty if `act` is a module, or
            nothing was found.
        fused: how `up` holds both: ``gate-up``, ``up-gate``, or ``pairs`` (they alternate); empty if it does not.
        inner: module between the product of gate and up and down, such as a norm; empty without one.
        gated: whether the MLP has a gate.
        known: whether the trial has shown what enters down; otherwise only the inputs of matrices can be recorded.
        neurons: length of what enters down.
        seen: whether the trial has shown it.
        why: reason, if it is not known.
    """

    up: str
    gate: str
    down: str
    gated: bool
    neurons: int
    act: str = ""
    function: str = ""
    fused: str = ""
    inner: str = ""
    known: bool = False
    seen: bool = False
    why: str = ""

    @property
    def unseen(self) -> bool:
        """Whether the model's first pass must show that what enters down is an activation of up."""
        return self.known and not self.gated and not self.seen

    def names(self) -> list[str]:
        """The names of the modules with matrices."""
        return [name for name in (self.gate, self.up, self.down) if name]


def find_mlp(layer: Any, hidden: int, read: Callable[[str], bool], torch: Any) -> Mlp | None:
    """The MLP of a decoder layer; None if there is none that hwsim knows.

    Of several modules that have the sizes of an MLP, one that the trial explains comes first, then one that is called
    so, then the largest.

    Args:
        layer: the decoder layer.
        hidden: the model's hidden size.
        read: tells whether a forward pass multiplies by the matrix of a module, by its name within the layer.
        torch: the library.

    Raises:
        ModelError: which of its matrices leads back to the hidden size is not known.
    """
    found: list[tuple[tuple[bool, bool, int], Mlp]] = []
    for name, parent in layer.named_modules():
        matrices = [matrix for matrix in matrix_modules(parent, direct=True) if read(_join(name, matrix.name))]
        roles = list(shaped(matrices, hidden, name))
        if not roles:
            continue
        mlp = _tried(roles, name, parent, hidden, torch)
        if any(part in name.lower() for part in NOT_MLP) and not mlp.known:
            continue
        size = sum(matrix.inputs * matrix.outputs for matrix in matrices)
        found.append(((mlp.known and bool(name), any(part in name.lower() for part in MLP_NAMES), size), mlp))
    if not found:
        return _apart(layer, hidden, read)
    mlp = max(found, key=lambda candidate: candidate[0])[1]
    if mlp.why in (_AMBIGUOUS, _TWO_INPUTS):
        raise ModelError(f"{mlp.down}: {mlp.why}; choose another model")
    return mlp


def _apart(layer: Any, hidden: int, read: Callable[[str], bool]) -> Mlp | None:
    """An MLP whose two matrices lie in two modules, as BERT's do; all others of the layer are of attention."""
    others = [
        matrix
        for matrix in matrix_modules(layer)
        if read(matrix.name) and not any(part in matrix.name.lower() for part in NOT_MLP)
    ]
    return next(shaped(others, hidden, ""), None) if len(others) == 2 else None


def _join(parent: str, name: str) -> str:
    return f"{parent}.{name}" if parent else name


def shaped(matrices: list[MatrixModule], hidden: int, parent: str) -> Iterator[Mlp]:
    """The MLPs that the matrices of a module may be, by their sizes."""
    for down in reversed(matrices):
        if down.outputs != hidden:
            continue
        others = [matrix for matrix in matrices if matrix is not down]
        if not others or any(matrix.inputs != hidden for matrix in others):
            continue
        widths = [matrix.outputs for matrix in others]
        names = [_join(parent, matrix.name) for matrix in others]
        end = _join(parent, down.name)
        known = not parent  # there is nothing to run alone: the first pass of the model shows it
        if widths == [down.inputs]:
            yield Mlp(names[0], "", end, gated=False, neurons=down.inputs, known=known)
        elif widths == [2 * down.inputs]:
            yield Mlp(names[0], "", end, gated=True, neurons=down.inputs, fused="gate-up", why=_IN_LAYER)
        elif widths == [down.inputs] * 2:
            gate, up = names
            yield Mlp(up, gate, end, gated=True, neurons=down.inputs, why=_IN_LAYER)


# ---------------------------------------------------------------------- the trial


class _Seen(NamedTuple):
    """What a run of the copy has shown: tensors ``[tokens, width]``."""

    inputs: dict[str, Any]  # of the matrices, by name
    outputs: dict[str, Any]
    between: dict[str, tuple[Any, Any]]  # input and output of the other modules, by name
    enters_down: Any


def _tried(roles: list[Mlp], name: str, parent: Any, hidden: int, torch: Any) -> Mlp:
    """The MLP whose roles the trial explains; otherwise the first, with the reason why it is not known."""
    if not name:
        return roles[0]
    why, apart = "", False
    for role in roles:
        inside = _inside(role, name)
        try:
            seen = _run_small(parent, inside, hidden, torch)
            by_element = not role.gated and _by_element(parent, inside, hidden, torch)
        except Exception as error:
            why = why or f"{type(parent).__name__} does not run alone ({type(error).__name__})"
            continue
        apart |= bool(inside.gate) and not same(seen.inputs[inside.gate], seen.inputs[inside.up], torch)
        for trial in _trials(inside):
            found = _explained(trial, seen, torch)
            if found is not None:
                return _named(found, name)
        if by_element:
            return role._replace(known=True, seen=True)
    if len(roles) > 1:
        return roles[0]._replace(why=_AMBIGUOUS)
    if apart:
        return roles[0]._replace(why=_TWO_INPUTS)
    return roles[0]._replace(
        why=why or f"what enters {roles[0].down} is no activation of gate times up that transformers has"
    )


def _inside(mlp: Mlp, parent: str) -> Mlp:
    """The MLP with names within its own module, in place of names within the decoder layer."""
    up, gate, down = (part.removeprefix(f"{parent}.") for part in (mlp.up, mlp.gate, mlp.down))
    return mlp._replace(up=up, gate=gate, down=down, why="")


def _named(mlp: Mlp, parent: str) -> Mlp:
    """The MLP with names within the decoder layer, in place of names within its own module."""
    up, gate, down, act, inner = (
        _join(parent, part) if part else "" for part in (mlp.up, mlp.gate, mlp.down, mlp.act, mlp.inner)
    )
    return mlp._replace(up=up, gate=gate, down=down, act=act, inner=inner)


def _trials(mlp: Mlp) -> Iterator[Mlp]:
    """The MLP in each way that its parts may play."""
    if mlp.fused:
        for fused in ("gate-up", "up-gate", "pairs"):
            yield mlp._replace(fused=fused)
    elif mlp.gated:
        yield mlp
        yield mlp._replace(up=mlp.gate, gate=mlp.up)
    else:
        yield mlp


def split(mlp: Mlp, value: Any) -> tuple[Any, Any]:
    """Gate before its activation, and up, of a fused output ``[..., 2 n]``."""
    if mlp.fused == "pairs":
        return value[..., ::2], value[..., 1::2]
    first, second = value.chunk(2, dim=-1)
    return (first, second) if mlp.fused == "gate-up" else (second, first)


def _explained(mlp: Mlp, seen: _Seen, torch: Any) -> Mlp | None:
    """The MLP with activation and inner module, if they explain what enters down."""
    if mlp.gate and not same(seen.inputs[mlp.gate], seen.inputs[mlp.up], torch):
        return None
    if mlp.fused:
        raw, up = split(mlp, seen.outputs[mlp.up])
    else:
        raw, up = seen.outputs.get(mlp.gate), seen.outputs[mlp.up]
    ends = [("", seen.enters_down)]
    ends += [(name, before) for name, (before, after) in seen.between.items() if same(after, seen.enters_down, torch)]
    for inner, product in ends:
        for act, (before, after) in seen.between.items():
            start = raw if mlp.gated else up
            if act == inner or not before.shape == after.shape == start.shape:
                continue
            if same(after * up if mlp.gated else after, product, torch):
                return mlp._replace(act=act, inner=inner, known=True, seen=True)
        for function, activated in activations(raw if mlp.gated else up):
            if same(activated * up if mlp.gated else activated, product, torch):
                return mlp._replace(function=function, inner=inner, known=True, seen=True)
    return None


def activations(value: Any) -> Iterator[tuple[str, Any]]:
    """Every activation of transformers without parameters: its name, and its result."""
    from transformers.activations import ACT2CLS

    for name in ACT2CLS:
        try:
            yield name, activation(name)(value)
        except Exception:
            continue


def activation(name: str) -> Callable[[Any], Any]:
    """An activation function of transformers by its name."""
    from transformers.activations import ACT2FN

    function: Callable[[Any], Any] = ACT2FN[name]
    return function


def same(value: Any, other: Any, torch: Any) -> bool:
    """Whether two tensors of a trial differ by rounding only."""
    return value.shape == other.shape and bool(
        (value - other).abs().max() <= _CLOSE * max(1.0, float(other.abs().max()))
    )


def _run_small(parent: Any, mlp: Mlp, hidden: int, torch: Any, nudge: int | None = None) -> _Seen:
    """Run a small copy of a module on random numbers; `nudge` adds 1 to one output of up."""
    small = shrunk(parent, hidden, mlp.neurons, torch)
    matrices = {name for name in (mlp.up, mlp.gate, mlp.down) if name}
    inputs: dict[str, Any] = {}
    outputs: dict[str, Any] = {}
    between: dict[str, tuple[Any, Any]] = {}
    entered: list[Any] = []
    for name, module in small.named_modules():
        if name == mlp.down:
            module.register_forward_pre_hook(lambda _, args: entered.append(args[0].detach().clone()))
        elif name in matrices:

            def keep(_: Any, args: Any, result: Any, name: str = name) -> Any:
                inputs[name] = args[0].detach().clone()
                if nudge is not None and name == mlp.up:
                    result = result.clone()
                    result[..., nudge] += 1
                outputs[name] = result.detach().clone()
                return result

            module.register_forward_hook(keep)
        elif name and not any(True for _ in module.children()):

            def note(_: Any, args: Any, result: Any, name: str = name) -> None:
                if args and hasattr(args[0], "shape") and hasattr(result, "shape"):
                    between[name] = (args[0].detach().clone(), result.detach().clone())

            module.register_forward_hook(note)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        value = torch.randn((1, _TOKENS, HIDDEN), generator=generator)
        takes = [
            parameter
            for parameter in inspect.signature(small.forward).parameters.values()
            if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ]
        small(*[value] * len(takes))  # BLOOM and MPT also take the residual
    return _Seen(inputs, outputs, between, entered[0])


def _by_element(parent: Any, mlp: Mlp, hidden: int, torch: Any) -> bool:
    """Whether each neuron that enters down depends on its own output of up alone."""
    plain = _run_small(parent, mlp, hidden, torch).enters_down
    moved = _run_small(parent, mlp, hidden, torch, nudge=3).enters_down
    other = [index for index in range(plain.shape[-1]) if index != 3]
    return bool((plain[..., other] == moved[..., other]).all() and (plain[..., 3] != moved[..., 3]).any())

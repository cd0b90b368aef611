"""The arithmetic of experts: gate, up, glu and down of one expert, from the stacked weights of all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from hwsim.record.inventory.mlp import activation

LAYOUTS = ("gate-up", "up-gate", "pairs", "pairs-up-gate")
"""How one matrix holds gate and up: in halves, or alternating; the first one comes first."""


class ExpertWeights(NamedTuple):
    """Where the experts of a layer keep their weights, and what they compute; names are within their own module.

    Attributes:
        first: the stacks that the input enters: gate and up, or one of both, or up alone.
        down: the stack that leads back.
        biases: biases of `first` and of `down`; empty names: none.
        transposed: whether a stack is ``[experts, inputs, outputs]``, not ``[experts, outputs, inputs]``.
        gated: whether an expert has a gate.
        layout: one of `LAYOUTS` for a stack of both; empty without one, or if nothing shows it.
        method: method of the module that makes glu from the output of the stack of both; empty: `act` or `function`.
        act: attribute of the module that activates the gate, or up without a gate; empty: `function`.
        function: name in transformers' table of that function.
        after: module that the output of down passes, such as a norm; empty: none.
    """

    first: tuple[str, ...]
    down: str
    biases: tuple[str, ...]
    transposed: bool
    gated: bool
    layout: str = ""
    method: str = ""
    act: str = ""
    function: str = ""
    after: str = ""

    @property
    def fused(self) -> bool:
        """Whether one stack holds gate and up."""
        return self.gated and len(self.first) == 1


class ExpertFunctions:
    """What the experts of a layer compute, with the weights that their module has at the time of the call.

    Args:
        module: the module of the experts.
        weights: where it keeps them.
    """

    def __init__(self, module: Any, weights: ExpertWeights) -> None:
        self.module, self.weights = module, weights

    def matrix(self, name: str, expert: int) -> Any:
        """The matrix of an expert in a stack, ``[outputs, inputs]``."""
        own = self.module.get_parameter(name)[expert]
        return own.T if self.weights.transposed else own

    def _product(self, place: int, expert: int, value: Any) -> Any:
        """Value times a stack, by its place among those of `ExpertWeights.biases`."""
        weights = self.weights
        name = (*weights.first, weights.down)[place]
        result = value.to(self.module.get_parameter(name).dtype) @ self.matrix(name, expert).T
        bias = weights.biases[place]
        return result + self.module.get_parameter(bias)[expert] if bias else result

    def glu(self, expert: int, value: Any) -> Any:
        """What enters down, ``[n, width]``, of what enters the experts, ``[n, inputs]``."""
        weights = self.weights
        raw = [self._product(place, expert, value) for place in range(len(weights.first))]
        if weights.method:
            return getattr(self.module, weights.method)(raw[0])
        act = self._act()
        if not weights.gated:
            return act(raw[0])
        gate, up = parted(weights.layout, raw[0]) if weights.fused else raw
        return act(gate) * up

    def gate(self, expert: int, value: Any) -> Any:
        """Output of the gate before its activation, ``[n, width]``; needs a gate, and a known layout."""
        return self._raw(expert, value)[0]

    def up(self, expert: int, value: Any) -> Any:
        """Output of up, before its activation if there is no gate, ``[n, width]``; needs a known layout."""
        return self._raw(expert, value)[-1]

    def _raw(self, expert: int, value: Any) -> Any:
        weights = self.weights
        raw = [self._product(place, expert, value) for place in range(len(weights.first))]
        return parted(weights.layout, raw[0]) if weights.fused else raw

    def down(self, expert: int, glu: Any) -> Any:
        """Output of an expert, ``[n, inputs]``, of what enters its down, ``[n, width]``."""
        result = self._product(len(self.weights.first), expert, glu)
        return self.module.get_submodule(self.weights.after)(result) if self.weights.after else result

    def _act(self) -> Callable[[Any], Any]:
        if self.weights.act:
            own: Callable[[Any], Any] = getattr(self.module, self.weights.act)
            return own
        return activation(self.weights.function)

    def chosen_glu(self, value: Any, ids: Any) -> Any:
        """Glu of the chosen experts.

        Args:
            value: what enters the experts, ``[n, inputs]``.
            ids: the chosen experts, integers ``[n, k]``.

        Returns:
            A tensor ``[n, k, width]``.
        """
        return self._each(value[:, None].expand(*ids.shape, value.shape[-1]), ids, self.glu)

    def mixture(self, value: Any, ids: Any, weights: Any) -> Any:
        """Sum of the chosen experts' outputs times their weights.

        Args:
            value: what enters the experts, ``[n, inputs]``.
            ids: the chosen experts, integers ``[n, k]``.
            weights: theirs, ``[n, k]``.

        Returns:
            A tensor ``[n, inputs]``.
        """
        return self.summed(self.chosen_glu(value, ids), ids, weights)

    def summed(self, glu: Any, ids: Any, weights: Any) -> Any:
        """Sum of the chosen experts' outputs times their weights.

        Args:
            glu: what enters down of each chosen expert, ``[n, k, width]``.
            ids: the chosen experts, integers ``[n, k]``.
            weights: theirs, ``[n, k]``.

        Returns:
            float32 ``[n, inputs]``.
        """
        outputs = self._each(glu, ids, self.down)
        return (outputs.float() * weights.float()[..., None]).sum(1)

    def _each(self, values: Any, ids: Any, function: Callable[[int, Any], Any]) -> Any:
        """A function of (expert, rows) for the rows of each expert: ``[n, k, a]`` to ``[n, k, b]``."""
        result = None
        for expert in ids.unique().tolist():
            here = ids == expert
            rows = function(expert, values[here])
            if result is None:
                result = rows.new_zeros((*ids.shape, rows.shape[-1]))
            result[here] = rows
        return result


def parted(layout: str, value: Any) -> tuple[Any, Any]:
    """Gate and up of an output that holds both, ``[..., 2 n]``."""
    if layout.startswith("pairs"):
        first, second = value[..., ::2], value[..., 1::2]
    else:
        first, second = value.chunk(2, dim=-1)
    return (first, second) if layout in ("gate-up", "pairs") else (second, first)


def joined(layout: str, gate: Any, up: Any, torch: Any) -> Any:
    """Output that holds gate and up, each ``[..., n]``: ``[..., 2 n]``."""
    first, second = (gate, up) if layout in ("gate-up", "pairs") else (up, gate)
    if layout.startswith("pairs"):
        return torch.stack([first, second], -1).flatten(-2)
    return torch.cat([first, second], -1)


def layout_of(method: Callable[[Any], Any], torch: Any) -> str:
    """The layout under which a function of gate and up, ``[..., 2 n]``, is affine in up and not in the gate.

    Empty if none or several fit. Numbers stay small, where functions that clamp are not flat.
    """
    generator = torch.Generator().manual_seed(2)
    start, other = (torch.rand((4, 6), generator=generator) - 0.5 for _ in range(2))
    fitting = []
    for layout in LAYOUTS:
        by_up = [method(joined(layout, start, other + step, torch)) for step in (0, 1, 2)]
        by_gate = [method(joined(layout, start - 2 + step, other, torch)) for step in (0, 2, 4)]
        if any(value.shape != start.shape for value in by_up + by_gate):
            continue
        bends = [float((low - 2 * middle + high).abs().max()) for low, middle, high in (by_up, by_gate)]
        if bends[0] < 1e-5 and bends[1] > 1e-2:
            fitting.append(layout)
    return fitting[0] if len(fitting) == 1 else ""

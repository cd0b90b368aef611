"""The groups of a policy made concrete for a model: number of units, their bytes, and units of a mask."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from typing import Any, NamedTuple

import numpy as np

from hwsim.errors import ContractError
from hwsim.memory.neuron_order import AXIS, Blocks, Layout
from hwsim.model.shape import ATTENTION, MADE_BY, MLP, NORMS, Bits, Matrix, ModelShape, stored_bytes
from hwsim.policy import Group
from hwsim.util.kernels import kept

_MADE_BY = MADE_BY | dict.fromkeys(NORMS, frozenset())


@dataclass(frozen=True)
class GroupPlan:
    """A group of a policy in one layer, made concrete for a model.

    Attributes:
        layer: layer of the model.
        group: the group as the policy declares it, with the keep of this layer.
        part: label of the part of the model that its weights belong to: ``mlp`` or ``attention``.
        units: number of units.
        k: units of a mask: floor(keep x units), at least 1; 0 if the policy decides the number.
        slice_bytes: bytes of each matrix slice of one unit; each is a separate read in Flash.
        last_slice_bytes: bytes of each slice of the last unit, which may have fewer indices.
        parameters: weights of one index of the axis.
        mlp_parameters: weights of one index that belong to the MLP.
        bits: bits of one weight, on which the rate of arithmetic may depend; the mean of the part where bits differ.
        indices: size of the axis.
        block: indices of a unit.
        order: int ``[indices]``: index at each place in Flash; None: the model's own order.
        capacity: units that the group's cache holds; if groups share a cache, the units that it could hold of this
            group alone.
    """

    layer: int
    group: Group
    part: str
    units: int
    k: int
    slice_bytes: tuple[int, ...]
    last_slice_bytes: tuple[int, ...]
    parameters: int
    mlp_parameters: int
    bits: float
    indices: int
    block: int = 1
    order: np.ndarray | None = field(default=None, compare=False)
    capacity: int = 0

    @property
    def name(self) -> str:
        """Name of the group."""
        return self.group.name

    @property
    def unit_bytes(self) -> int:
        """Bytes of one unit."""
        return sum(self.slice_bytes)

    @property
    def last_bytes(self) -> int:
        """Bytes of the last unit."""
        return sum(self.last_slice_bytes)

    @property
    def short(self) -> int:
        """Number of indices by which the last unit is smaller than the others."""
        return self.units * self.block - self.indices

    @property
    def total_bytes(self) -> int:
        """Bytes of all units."""
        return (self.units - 1) * self.unit_bytes + self.last_bytes

    def sizes(self) -> np.ndarray:
        """Bytes of each unit: int64 ``[units]``."""
        sizes = np.full(self.units, self.unit_bytes, np.int64)
        sizes[-1] = self.last_bytes
        return sizes

    def held(self, size: int) -> int:
        """Number of units that fit into `size` bytes."""
        return self.units if size >= self.total_bytes else size // self.unit_bytes

    def blocks(self) -> Blocks | None:
        """How indices are grouped into units; None if each index is a unit."""
        return None if self.block == 1 else Blocks(self.indices, self.block, self.order)


class Place(NamedTuple):
    """The place of a group: its layer, its slot among the groups of that layer, and its plan."""

    layer: int
    slot: int
    plan: GroupPlan

    def __hash__(self) -> int:
        """Hash of layer and slot, because a group contains lists, which have no hash."""
        return hash((self.layer, self.slot))


@dataclass(frozen=True)
class Plans:
    """The groups of a policy, layer by layer, in the order in which a layer decides them.

    Arrays about groups have the shape ``[..., layers, slots]``: slot i of a layer is its group i. If a layer has fewer
    groups than another, its other slots hold zeros.

    Attributes:
        by_layer: the groups of each layer.
    """

    by_layer: tuple[tuple[GroupPlan, ...], ...]

    def __bool__(self) -> bool:
        """Whether any layer has a group."""
        return any(self.by_layer)

    def __iter__(self) -> Iterator[GroupPlan]:
        """All groups, layer by layer."""
        return (plan for layer in self.by_layer for plan in layer)

    def __getitem__(self, layer: int) -> tuple[GroupPlan, ...]:
        """The groups of one layer."""
        return self.by_layer[layer]

    @property
    def layers(self) -> int:
        """Layers of the model."""
        return len(self.by_layer)

    @property
    def slots(self) -> int:
        """Groups of the layer with the most groups."""
        return max(map(len, self.by_layer), default=0)

    def places(self, layers: Iterable[int] | None = None) -> list[Place]:
        """The places of some layers, or of all."""
        numbers = range(self.layers) if layers is None else layers
        return [Place(layer, slot, plan) for layer in numbers for slot, plan in enumerate(self.by_layer[layer])]

    def table(self, value: Callable[[GroupPlan], float], kind: type = np.int64) -> np.ndarray:
        """An array ``[layers, slots]`` of dtype `kind` with a number for each group."""
        numbers: np.ndarray = np.zeros((self.layers, self.slots), kind)
        for layer, slot, plan in self.places():
            numbers[layer, slot] = value(plan)
        return numbers

    def alike(self, key: Callable[[GroupPlan], Hashable]) -> list[tuple[GroupPlan, tuple[Any, ...]]]:
        """Partition the groups by a key: for each key a group, and the index of all its groups.

        The index is for arrays ``[tokens, layers, slots]``. It consists of slices if the groups are in one slot of all
        layers, so that indexing makes no copy.
        """
        members: dict[Hashable, list[Place]] = {}
        for place in self.places():
            members.setdefault(key(place.plan), []).append(place)
        indices: list[tuple[GroupPlan, tuple[Any, ...]]] = []
        for places in members.values():
            layers, slots = [place.layer for place in places], [place.slot for place in places]
            whole = len(set(slots)) == 1 and layers == list(range(self.layers))
            indices.append(
                (places[0][2], (slice(None), slice(None), slots[0]) if whole else (slice(None), layers, slots))
            )
        return indices

    def by_name(self) -> dict[str, list[GroupPlan]]:
        """The groups by name, layer by layer."""
        named: dict[str, list[GroupPlan]] = {}
        for plan in self:
            named.setdefault(plan.name, []).append(plan)
        return named

    def declared(self) -> tuple[list[Group], dict[str, list[float | None]]]:
        """The groups of the first layer that has any, and the keeps by layer of groups whose keep differs."""
        keeps = {name: [plan.group.keep for plan in plans] for name, plans in self.by_name().items()}
        differing = {name: values for name, values in keeps.items() if len(set(values)) > 1}
        first = next((layer for layer in self.by_layer if layer), ())
        return [plan.group for plan in first], differing

    def needs(self) -> set[str]:
        """All signals and norms from which groups are decided."""
        return {signal for plan in self for signal in plan.group.needs}

    def with_capacities(self, capacities: Iterable[int]) -> Plans:
        """A copy with a capacity for each group, given layer by layer."""
        given = iter(capacities)
        return Plans(tuple(tuple(replace(plan, capacity=next(given)) for plan in layer) for layer in self.by_layer))


@dataclass(frozen=True)
class Units:
    """How the indices of a group's axis become units.

    Attributes:
        bits: bits of stored weights.
        block: neighbours of a unit.
        layout: order of the neurons, which decides the neighbours; None: the model's own order.
    """

    bits: Bits = field(default_factory=Bits)
    block: int = 1
    layout: Layout | None = None


def plan_group(group: Group, model: ModelShape, units: Units, layer: int = 0) -> GroupPlan:
    """Make a group of one layer concrete; its units are blocks of neighbours.

    Raises:
        ContractError: an unknown axis, slice, signal or keep, or a mask decided from a signal that the mask changes.
    """
    where = f"group {group.name!r}"
    if not isinstance(group.name, str):
        raise ContractError(f"{where}: its name must be text")
    for name in ("slices", "needs"):
        value = getattr(group, name)
        if not isinstance(value, list | tuple) or not all(isinstance(entry, str) for entry in value):
            raise ContractError(f"{where}: {name} {value!r}; must be a list of names")
    own = model.by_layer[layer]
    axes = {
        "hidden": model.hidden_size,
        "neuron": own.intermediate_size,
        "attention": own.num_attention_heads * own.head_dim,
        "kv": own.num_key_value_heads * own.head_dim,
    }
    if not isinstance(group.axis, str) or group.axis not in axes:
        raise ContractError(f"{where}: axis {group.axis!r}; must be one of {', '.join(axes)}")
    indices = axes[group.axis]
    block = min(units.block, indices)
    count = -(-indices // block)
    last = indices - (count - 1) * block
    if not group.slices:
        raise ContractError(f"{where}: slices is empty; name at least one, such as 'down.column'")
    matrices_here = model.matrices(layer)
    for name in group.slices:
        if name.partition(".")[0] in ATTENTION and name.partition(".")[0] not in matrices_here:
            raise ContractError(f"layer {layer}: {where}: cuts {name}, which {_lacks(model, layer)}")
    elements = [_elements(name, group, matrices_here, indices, f"layer {layer}: {where}") for name in group.slices]
    matrices = [name.partition(".")[0] for name in group.slices]
    bits = [units.bits.of(matrix, layer) for matrix in matrices]
    if group.keep is not None and not (isinstance(group.keep, float | int | np.floating) and 0 < group.keep <= 1):
        raise ContractError(f"{where}: keep={group.keep!r}; must be more than 0 and at most 1")
    _check_needs(group, where, model, indices, layer)
    ordered = units.layout is not None and group.axis == AXIS
    return GroupPlan(
        layer=layer,
        group=group,
        part="mlp" if any(matrix in MLP for matrix in matrices) else "attention",
        units=count,
        k=0 if group.keep is None else kept(group.keep, count),
        slice_bytes=tuple(stored_bytes(block * size, width) for size, width in zip(elements, bits, strict=True)),
        last_slice_bytes=tuple(stored_bytes(last * size, width) for size, width in zip(elements, bits, strict=True)),
        parameters=sum(elements),
        mlp_parameters=sum(size for size, matrix in zip(elements, matrices, strict=True) if matrix in MLP),
        bits=units.bits.mean(matrices[0]),
        indices=indices,
        block=block,
        order=units.layout.orders[layer] if units.layout and ordered else None,
    )


def _elements(name: str, group: Group, matrices: dict[str, Matrix], indices: int, where: str) -> int:
    """Number of weights of one index of a slice such as ``gate.column``."""
    matrix, _, kind = name.partition(".")
    if matrix not in matrices or kind not in ("row", "column"):
        known = ", ".join(f"{m}.row, {m}.column" for m in matrices)
        raise ContractError(f"{where}: slice {name!r}; must be one of {known}")
    count, elements = matrices[matrix] if kind == "row" else reversed(matrices[matrix])
    if count != indices:
        raise ContractError(f"{where}: {name} has {count} units, axis {group.axis!r} has {indices}")
    return elements


def _check_needs(group: Group, where: str, model: ModelShape, indices: int, layer: int) -> None:
    for signal in group.needs:
        if signal not in _MADE_BY:
            raise ContractError(f"{where}: needs {signal!r}; must be one of {', '.join(_MADE_BY)}")
        width = model.signal_width(signal, layer)
        if not width:
            raise ContractError(f"layer {layer}: {where}: needs {signal!r}, which {_lacks(model, layer)}")
        if signal in NORMS and width != indices:
            raise ContractError(f"{where}: needs {signal!r} of {width} units, axis {group.axis!r} has {indices}")
        producers = _MADE_BY[signal] & {name.partition(".")[0] for name in group.slices}
        if producers and not group.oracle:
            raise ContractError(
                f"{where}: is decided from {signal!r}, which {', '.join(sorted(producers))} must produce first, "
                "and the mask cuts that; choose another signal, or say oracle=True"
            )


def _lacks(model: ModelShape, layer: int) -> str:
    own = model.by_layer[layer]
    return (
        f"this layer of {model.name} does not have: its attention is {own.attention}, without q, k, v and o; choose a "
        "policy that cuts MLPs only"
    )


def plan_groups(
    groups: list[Group], model: ModelShape, units: Units | None = None, layer: int = 0
) -> tuple[GroupPlan, ...]:
    """Make all groups of one layer concrete, in the order in which the layer can decide them.

    Raises:
        ContractError: as `plan_group`; two groups share a name or a matrix; groups wait for each other.
    """
    if not isinstance(groups, list | tuple) or not all(isinstance(group, Group) for group in groups):
        raise ContractError("groups() must return a list of hwsim.policy.Group")
    plans = [plan_group(group, model, units or Units(), layer) for group in groups]
    names = Counter(group.name for group in groups)
    cut_by = Counter(name.partition(".")[0] for group in groups for name in group.slices)
    for what, counts in (("groups are called", names), ("times a slice cuts the matrix", cut_by)):
        for name, count in counts.items():
            if count > 1:
                raise ContractError(f"{count} {what} {name!r}; it must be one")
    cuts = {plan.name: {name.partition(".")[0] for name in plan.group.slices} for plan in plans}
    waits = {
        plan.name: {
            other
            for other, cut in cuts.items()
            if other != plan.name and any(_MADE_BY[signal] & cut for signal in plan.group.needs)
        }
        for plan in plans
        if not plan.group.oracle
    }
    try:
        order = list(TopologicalSorter({name: waits.get(name, set()) for name in cuts}).static_order())
    except CycleError as error:
        raise ContractError(f"groups {', '.join(error.args[1])} wait for each other's masks") from error
    return tuple(sorted(plans, key=lambda plan: order.index(plan.name)))


def plan_layers(layers: list[list[Group]], model: ModelShape, units: Units | None = None) -> Plans:
    """Make the groups of all layers concrete; only their keep may differ between layers that have groups.

    Args:
        layers: groups of each layer, which are none in a layer without an MLP, or one list for all layers alike.
        model: shape of the model.
        units: how indices become units.

    Raises:
        ContractError: as `plan_groups`; two layers differ in more than the keep of their groups.
    """
    units, numbers = units or Units(), range(model.num_hidden_layers)
    if len(layers) == 1 and units.bits.stored:
        layers = layers * model.num_hidden_layers  # bytes of units differ between layers
    if len(layers) == 1:
        first = plan_groups(layers[0], model, units)
        return Plans(tuple(tuple(_in_layer(plan, layer, units.layout) for plan in first) for layer in numbers))
    plans = [plan_groups(groups, model, units, layer) for layer, groups in enumerate(layers)]

    def but_for_keep(own: tuple[GroupPlan, ...]) -> list[Group]:
        return [replace(plan.group, keep=None) for plan in own]

    first_with = next((layer for layer, own in enumerate(plans) if own), 0)
    for layer, layer_plans in enumerate(plans):
        if layer_plans and but_for_keep(layer_plans) != but_for_keep(plans[first_with]):
            raise ContractError(f"groups() of layer {layer} differ from layer {first_with}'s in more than keep")
    return Plans(tuple(plans))


def _in_layer(plan: GroupPlan, layer: int, layout: Layout | None) -> GroupPlan:
    """The same group in another layer, whose neurons may have another order."""
    order = plan.order if layout is None or plan.order is None else layout.orders[layer]
    return replace(plan, layer=layer, order=order)

"""The groups of a policy made concrete for a model: number of units, their bytes, and units of a mask."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from hwsim.memory.neuron_order import Blocks
from hwsim.policy import Group


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
        choice: the group that chooses the experts that these units lie in; None for units of other matrices. Unit
            e x width + i then is index i of expert e.
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
    choice: GroupPlan | None = None
    capacity: int = 0

    @property
    def name(self) -> str:
        """Name of the group."""
        return self.group.name

    @property
    def routed(self) -> bool:
        """Whether the units are experts, which a cache admits as whole events."""
        return self.group.axis == "expert"

    @property
    def width(self) -> int:
        """Units of one expert, for units that lie within experts; otherwise all units."""
        return self.units if self.choice is None else self.units // self.choice.units

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
        """The groups, each as in the first layer that has it, and the keeps by layer of groups whose keep differs."""
        by_name = self.by_name()
        keeps = {name: [plan.group.keep for plan in plans] for name, plans in by_name.items()}
        differing = {name: values for name, values in keeps.items() if len(set(values)) > 1}
        return [plans[0].group for plans in by_name.values()], differing

    @property
    def routed(self) -> bool:
        """Whether units of a group are experts."""
        return any(plan.routed for plan in self)

    @property
    def sparse(self) -> bool:
        """Whether experts are chosen, whole or in parts."""
        return any(plan.routed or plan.choice for plan in self)

    def needs(self) -> set[str]:
        """All signals and norms from which groups are decided."""
        groups = [plan.group for plan in self] + [plan.choice.group for plan in self if plan.choice]
        return {signal for group in groups for signal in group.needs}

    def with_capacities(self, capacities: Iterable[int]) -> Plans:
        """A copy with a capacity for each group, given layer by layer."""
        given = iter(capacities)
        return Plans(tuple(tuple(replace(plan, capacity=next(given)) for plan in layer) for layer in self.by_layer))

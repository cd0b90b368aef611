"""The groups of a policy made concrete for a model: how many units, of which bytes, how many of them a mask holds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter

import numpy as np

from hwsim.errors import ContractError
from hwsim.memory.neuron_order import AXIS, Blocks, Layout
from hwsim.model.shape import MADE_BY, MLP, NORMS, Bits, ModelShape, stored_bytes
from hwsim.policy import Group
from hwsim.util.kernels import kept

_MADE_BY = MADE_BY | dict.fromkeys(NORMS, frozenset())


@dataclass(frozen=True)
class GroupPlan:
    """A group of a policy, made concrete for a model; the same in every layer but for its keep.

    Attributes:
        group: as the first layer has it.
        units: how many units the group has.
        keep: of each layer; None where the policy decides.
        k: units that a mask holds, of each layer: floor(keep x units), at least 1; 0 where the policy decides.
        slice_bytes: bytes of each matrix slice of one unit: each is a read of its own in Flash.
        unit_bytes: their sum.
        parameters: weights of one index of the axis; a unit has as many times that as it has indices.
        mlp_parameters: those of them that belong to the MLP.
        capacity: units that the group's cache holds, where layers differ in the layer that holds fewest; where groups
            share a cache, those that it could hold if it held no others.
        capacities: by layer, where layers differ.
        indices: size of the axis.
        block: indices that make up a unit.
        last_slice_bytes: bytes of each slice of the last unit, which may have fewer indices.
        layout: says which neurons are neighbours; None: the model's own order.
    """

    group: Group
    units: int
    keep: tuple[float | None, ...]
    k: tuple[int, ...]
    slice_bytes: tuple[int, ...]
    unit_bytes: int
    parameters: int
    mlp_parameters: int
    capacity: int = 0
    capacities: tuple[int, ...] = ()
    indices: int = 0
    block: int = 1
    last_slice_bytes: tuple[int, ...] = ()
    layout: Layout | None = None

    @property
    def last_bytes(self) -> int:
        """Bytes of the last unit."""
        return sum(self.last_slice_bytes)

    @property
    def short(self) -> int:
        """How many indices the last unit has less than the others."""
        return self.units * self.block - self.indices

    @property
    def total_bytes(self) -> int:
        """Bytes of all units of one layer."""
        return (self.units - 1) * self.unit_bytes + self.last_bytes

    def sizes(self) -> np.ndarray:
        """Bytes of each unit: int64 ``[units]``."""
        sizes = np.full(self.units, self.unit_bytes, np.int64)
        sizes[-1] = self.last_bytes
        return sizes

    def held(self, size: int) -> int:
        """How many units `size` bytes hold."""
        return self.units if size >= self.total_bytes else size // self.unit_bytes

    def capacity_in(self, layer: int) -> int:
        """Units that the group's cache holds in one layer."""
        return self.capacities[layer] if self.capacities else self.capacity

    def blocks(self, layer: int) -> Blocks | None:
        """How indices fall into units; None where each is a unit of its own."""
        if self.block == 1:
            return None
        ordered = self.layout is not None and self.group.axis == AXIS
        return Blocks(self.indices, self.block, self.layout.orders[layer] if self.layout and ordered else None)

    def in_layer(self, layer: int) -> Group:
        """The group as a layer has it."""
        return replace(self.group, keep=self.keep[layer])


def plan_group(group: Group, model: ModelShape, bits: Bits, block: int = 1, layout: Layout | None = None) -> GroupPlan:
    """Make a group concrete; its units are blocks of `block` neighbours.

    Raises:
        ContractError: an unknown axis, slice, signal or keep, or a mask decided from what it must produce.
    """
    where = f"group {group.name!r}"
    if not isinstance(group.name, str):
        raise ContractError(f"{where}: its name must be text")
    for field in ("slices", "needs"):
        value = getattr(group, field)
        if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
            raise ContractError(f"{where}: {field} {value!r}; must be a list of names")
    axes = {
        "hidden": model.hidden_size,
        "neuron": model.intermediate_size,
        "attention": model.num_attention_heads * model.head_dim,
        "kv": model.num_key_value_heads * model.head_dim,
    }
    if not isinstance(group.axis, str) or group.axis not in axes:
        raise ContractError(f"{where}: axis {group.axis!r}; must be one of {', '.join(axes)}")
    indices, matrices = axes[group.axis], model.matrices()
    block = min(block, indices)
    units = -(-indices // block)
    last = indices - (units - 1) * block
    if not group.slices:
        raise ContractError(f"{where}: slices is empty; name at least one, such as 'down.column'")
    sizes, lasts, parameters, of_mlp = [], [], 0, 0
    for name in group.slices:
        matrix, _, kind = name.partition(".")
        if matrix not in matrices or kind not in ("row", "column"):
            known = ", ".join(f"{m}.row, {m}.column" for m in matrices)
            raise ContractError(f"{where}: slice {name!r}; must be one of {known}")
        count, elements = matrices[matrix] if kind == "row" else reversed(matrices[matrix])
        if count != indices:
            raise ContractError(f"{where}: {name} has {count} units, axis {group.axis!r} has {indices}")
        sizes.append(stored_bytes(block * elements, bits.of(matrix)))
        lasts.append(stored_bytes(last * elements, bits.of(matrix)))
        parameters += elements
        of_mlp += elements if matrix in MLP else 0
    if group.keep is not None and not (isinstance(group.keep, float | int | np.floating) and 0 < group.keep <= 1):
        raise ContractError(f"{where}: keep={group.keep!r}; must be more than 0 and at most 1")
    _check_needs(group, where, model, indices)
    k = 0 if group.keep is None else kept(group.keep, units)
    layers = model.num_hidden_layers
    return GroupPlan(
        group, units, (group.keep,) * layers, (k,) * layers, tuple(sizes), sum(sizes), parameters, of_mlp,
        indices=indices, block=block, last_slice_bytes=tuple(lasts), layout=layout,
    )  # fmt: skip


def _check_needs(group: Group, where: str, model: ModelShape, indices: int) -> None:
    for signal in group.needs:
        if signal not in _MADE_BY:
            raise ContractError(f"{where}: needs {signal!r}; must be one of {', '.join(_MADE_BY)}")
        width = model.signal_width(signal)
        if signal in NORMS and width != indices:
            raise ContractError(f"{where}: needs {signal!r} of {width} units, axis {group.axis!r} has {indices}")
        made = _MADE_BY[signal] & {name.partition(".")[0] for name in group.slices}
        if made and not group.oracle:
            raise ContractError(
                f"{where}: is decided from {signal!r}, which {', '.join(sorted(made))} must produce first, "
                "and the mask cuts that; choose another signal, or say oracle=True"
            )


def plan_groups(
    groups: list[Group], model: ModelShape, bits: Bits, block: int = 1, layout: Layout | None = None
) -> tuple[GroupPlan, ...]:
    """Make all groups of a policy concrete, in the order in which a layer can decide them.

    Raises:
        ContractError: as `plan_group`; two groups share a name or a matrix; groups that wait for each other.
    """
    if not isinstance(groups, list | tuple) or not all(isinstance(group, Group) for group in groups):
        raise ContractError("groups() must return a list of hwsim.policy.Group")
    plans = [plan_group(group, model, bits, block, layout) for group in groups]
    names = Counter(group.name for group in groups)
    cut_by = Counter(name.partition(".")[0] for group in groups for name in group.slices)
    for what, counts in (("groups are called", names), ("times a slice cuts the matrix", cut_by)):
        for name, count in counts.items():
            if count > 1:
                raise ContractError(f"{count} {what} {name!r}; it must be one")
    cuts = {plan.group.name: {name.partition(".")[0] for name in plan.group.slices} for plan in plans}
    waits = {
        plan.group.name: {
            other
            for other, cut in cuts.items()
            if other != plan.group.name and any(_MADE_BY[signal] & cut for signal in plan.group.needs)
        }
        for plan in plans
        if not plan.group.oracle
    }
    try:
        order = list(TopologicalSorter({name: waits.get(name, set()) for name in cuts}).static_order())
    except CycleError as error:
        raise ContractError(f"groups {', '.join(error.args[1])} wait for each other's masks") from error
    return tuple(sorted(plans, key=lambda plan: order.index(plan.group.name)))


def plan_layers(
    layers: list[list[Group]], model: ModelShape, bits: Bits, block: int = 1, layout: Layout | None = None
) -> tuple[GroupPlan, ...]:
    """Make the groups of a policy concrete that has others in each layer; only their keep may differ.

    Raises:
        ContractError: as `plan_groups`; two layers differ in more than the keep of their groups.
    """
    plans = [plan_groups(groups, model, bits, block, layout) for groups in layers]

    def but_for_keep(each: tuple[GroupPlan, ...]) -> list[Group]:
        return [replace(plan.group, keep=None) for plan in each]

    for layer, each in enumerate(plans):
        if but_for_keep(each) != but_for_keep(plans[0]):
            raise ContractError(f"groups() of layer {layer} differ from layer 0's in more than keep")
    return tuple(
        replace(
            plan,
            keep=tuple(each[index].keep[layer] for layer, each in enumerate(plans)),
            k=tuple(each[index].k[layer] for layer, each in enumerate(plans)),
        )
        for index, plan in enumerate(plans[0])
    )

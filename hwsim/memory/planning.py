"""Planning: which groups a policy has in each layer, what their units are, and in which order they are decided."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter

import numpy as np

from hwsim.errors import ContractError
from hwsim.memory.groups import GroupPlan, Plans
from hwsim.memory.neuron_order import AXIS, Layout
from hwsim.model.shape import (
    ATTENTION,
    EXPERT_SIGNALS,
    MADE_BY,
    MLP,
    NORMS,
    Bits,
    Matrix,
    ModelShape,
    expert_bytes,
    stored_bytes,
)
from hwsim.policy import Group
from hwsim.util.kernels import kept

_MADE_BY = MADE_BY | dict.fromkeys(NORMS, frozenset())
EXPERT_SLICE = "experts.expert"


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
    if group.axis == "expert":
        return _plan_experts(group, model, units, layer)
    own = model.by_layer[layer]
    axes = {
        "hidden": model.hidden_size,
        "neuron": own.intermediate_size,
        "attention": own.num_attention_heads * own.head_dim,
        "kv": own.num_key_value_heads * own.head_dim,
    }
    if not isinstance(group.axis, str) or group.axis not in axes:
        raise ContractError(f"{where}: axis {group.axis!r}; must be one of {', '.join([*axes, 'expert'])}")
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
    _check_keep(group)
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


def _plan_experts(group: Group, model: ModelShape, units: Units, layer: int) -> GroupPlan:
    """Make a group of experts concrete: a unit is all matrices of one expert, each a separate read in Flash."""
    where, experts = f"layer {layer}: group {group.name!r}", model.by_layer[layer].experts
    if experts is None:
        raise ContractError(f"{where}: axis 'expert', but this layer of {model.name} has no experts")
    if units.block > 1:
        raise ContractError(f"{where}: its units are experts, of which --block makes no larger ones; leave it out")
    whole = list(group.slices) == [EXPERT_SLICE]
    if not whole and group.slices:
        raise ContractError(f"{where}: slices {group.slices!r}; an expert is [{EXPERT_SLICE!r}]")
    _check_keep(group)
    _check_needs(group, where, model, experts.count, layer)
    # without slices it chooses only, and other groups say what is read of the experts
    sizes = expert_bytes(model, units.bits, layer) if whole else (0,)
    parameters = model.expert_parameters(layer) if whole else 0
    return GroupPlan(
        layer=layer,
        group=group,
        part="mlp",
        units=experts.count,
        k=0 if group.keep is None else kept(group.keep, experts.count),
        slice_bytes=sizes,
        last_slice_bytes=sizes,
        parameters=parameters,
        mlp_parameters=parameters,
        bits=units.bits.mean("expert_up"),
        indices=experts.count,
    )


def _plan_within(group: Group, choice: GroupPlan, model: ModelShape, units: Units) -> GroupPlan:
    """Make a group of units inside of experts concrete: each index of each expert is a unit."""
    layer = choice.layer
    where, experts = f"layer {layer}: group {group.name!r}", model.by_layer[layer].experts
    assert experts is not None
    if experts.bytes is not None:
        raise ContractError(f"{where}: within {choice.name!r}, but of the experts of {model.name} only bytes are known")
    axes = {"hidden": model.hidden_size, "neuron": experts.intermediate_size}
    if group.axis not in axes:
        raise ContractError(f"{where}: axis {group.axis!r}; within experts it must be one of {', '.join(axes)}")
    if group.keep is None or not group.slices:
        raise ContractError(
            f"{where}: names no {'slices' if group.keep else 'keep'}; a group within experts needs both"
        )
    if units.block > 1:
        raise ContractError(f"{where}: lies within experts, which --block knows nothing of; leave the option out")
    _check_keep(group)
    _check_needs(group, where, model, axes[group.axis], layer)
    width, matrices = axes[group.axis], model.expert_matrices(layer)
    elements = [_elements(name, group, matrices, width, where) for name in group.slices]
    names = [name.partition(".")[0] for name in group.slices]
    sizes = tuple(stored_bytes(size, units.bits.of(name, layer)) for size, name in zip(elements, names, strict=True))
    return GroupPlan(
        layer=layer,
        group=group,
        part="mlp",
        units=experts.count * width,
        k=0,
        slice_bytes=sizes,
        last_slice_bytes=sizes,
        parameters=sum(elements),
        mlp_parameters=sum(elements),
        bits=units.bits.mean("expert_up"),
        indices=experts.count * width,
        choice=choice,
    )


def _check_keep(group: Group) -> None:
    if group.keep is not None and not (isinstance(group.keep, float | int | np.floating) and 0 < group.keep <= 1):
        raise ContractError(f"group {group.name!r}: keep={group.keep!r}; must be more than 0 and at most 1")


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
        if not width and signal in EXPERT_SIGNALS:
            raise ContractError(f"layer {layer}: {where}: needs {signal!r}, but this layer has no experts")
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
    plans = _plan_all(groups, model, units or Units(), layer)
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


def _plan_all(groups: list[Group], model: ModelShape, units: Units, layer: int) -> list[GroupPlan]:
    """Make the groups of a layer concrete; a group that only chooses experts becomes the `choice` of others."""
    plans = [plan_group(group, model, units, layer) for group in groups if not group.within]
    choices = {plan.name: plan for plan in plans if plan.routed}
    inner = []
    for group in groups:
        if group.within:
            where = f"layer {layer}: group {group.name!r}"
            if group.within not in choices:
                raise ContractError(f"{where}: within {group.within!r}, but no group of experts has this name")
            if choices[group.within].group.slices:
                raise ContractError(f"{where}: within {group.within!r}, which reads whole experts; give it no slices")
            inner.append(_plan_within(group, choices[group.within], model, units))
    for name, choice in choices.items():
        cut = {part.partition(".")[0] for plan in inner if plan.group.within == name for part in plan.group.slices}
        unread = [matrix for matrix in model.expert_matrices(layer) or ("experts",) if matrix not in cut]
        if not choice.group.slices and unread:
            raise ContractError(
                f"layer {layer}: group {name!r}: no group within it says what is read of {unread[0]}; give it slices "
                f"[{EXPERT_SLICE!r}], or a group of {unread[0]}"
            )
    return [plan for plan in plans if plan.group.slices] + inner


def plan_layers(layers: list[list[Group]], model: ModelShape, units: Units | None = None) -> Plans:
    """Make the groups of all layers concrete. Groups of one name may differ between layers only in their keep.

    A group is left out in layers that lack what it cuts: experts in a dense layer, an MLP in a sparse one.

    Args:
        layers: groups of each layer, which are none in a layer without an MLP, or one list for all layers alike.
        model: shape of the model.
        units: how indices become units.

    Raises:
        ContractError: as `plan_groups`; groups of one name differ in more than keep; no layer has what a group cuts;
            nothing decides which experts are read.
    """
    units, numbers = units or Units(), range(model.num_hidden_layers)
    listed = layers[0] if isinstance(layers[0], list | tuple) else []  # anything else is refused below
    routed = next((group for group in listed if isinstance(group, Group) and group.axis == "expert"), None)
    if routed is not None and model.experts is None:
        raise ContractError(f"group {routed.name!r}: {model.name} has no experts; choose a policy that cuts MLPs")
    if len(layers) == 1 and (units.bits.stored or model.layers):
        layers = layers * model.num_hidden_layers  # layers differ in what they have, or in the bytes of units
    if len(layers) == 1:
        first = plan_groups(layers[0], model, units)
        return Plans(tuple(tuple(_in_layer(plan, layer, units.layout) for plan in first) for layer in numbers))
    plans = [plan_groups(_present(groups, model, layer), model, units, layer) for layer, groups in enumerate(layers)]
    first_of: dict[str, GroupPlan] = {}
    for plan in (plan for own in plans for plan in own):
        first_plan = first_of.setdefault(plan.name, plan)
        if replace(plan.group, keep=None) != replace(first_plan.group, keep=None):
            raise ContractError(
                f"groups() of layer {plan.layer} differ from layer {first_plan.layer}'s in more than keep"
            )
    present = first_of.keys() | {plan.choice.name for own in plans for plan in own if plan.choice}
    absent = next((group for groups in layers for group in groups if group.name not in present), None)
    if absent is not None:
        raise ContractError(
            f"group {absent.name!r}: {model.name} has no MLP that every token reads; choose a policy that decides "
            "experts, such as router"
        )
    _check_experts(plans, model)
    return Plans(tuple(plans))


def _present(groups: list[Group], model: ModelShape, layer: int) -> list[Group]:
    """The groups whose matrices a layer has; those that are no groups stay, to be refused by name."""
    own = model.by_layer[layer]

    def lacks(group: Group) -> bool:
        if group.axis == "expert" or group.within:
            return own.experts is None
        cut = {name.partition(".")[0] for name in group.slices if isinstance(name, str)}
        return bool(model.layers) and not own.intermediate_size and bool(cut) and cut <= set(MLP)

    if not isinstance(groups, list | tuple):
        return groups
    return [group for group in groups if not (isinstance(group, Group) and lacks(group))]


def _check_experts(plans: list[tuple[GroupPlan, ...]], model: ModelShape) -> None:
    """Refuse a policy that leaves the choice of experts open, because a token never reads all of them."""
    for layer, own in enumerate(model.layers):
        if own.experts and not any(plan.routed or plan.choice for plan in plans[layer]):
            raise ContractError(
                f"layer {layer}: does not decide which of its {own.experts.count} experts a token reads; choose a "
                "policy for experts, such as router, the model's own choice"
            )


def _in_layer(plan: GroupPlan, layer: int, layout: Layout | None) -> GroupPlan:
    """The same group in another layer, whose neurons may have another order."""
    order = plan.order if layout is None or plan.order is None else layout.orders[layer]
    return replace(plan, layer=layer, order=order)

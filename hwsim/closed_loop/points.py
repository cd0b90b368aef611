"""The points of a layer at which masks of a running model are decided, and where each slice can be masked."""

from __future__ import annotations

from hwsim.closed_loop.inside import check_inside
from hwsim.errors import ModelError
from hwsim.memory.groups import GroupPlan, Plans
from hwsim.model.shape import EXPERT_SIGNALS
from hwsim.record.hooks import Layer

# in the order in which a pass reaches them; the first point at which each signal is known; and the last point at which
# each slice can be masked. Experts have a point of their own: a dense MLP beside them may run before or after.
QKV, OUT, UP, PRODUCT, DOWN, EXPERTS = range(6)
KNOWN = {"attn_input": QKV, "attn_output": OUT, "input": UP, "up": PRODUCT, "gate": PRODUCT, "glu": DOWN}
MASKED = {
    "q.column": QKV, "k.column": QKV, "v.column": QKV, "o.column": OUT, "gate.column": UP, "up.column": UP,
    "gate.row": DOWN, "up.row": DOWN, "down.column": DOWN, "down.row": DOWN,
}  # fmt: skip
ROWS = ("gate.row", "up.row")  # masked before the inner norm of an MLP that has one
OF_ROUTER = ("router", "experts", "expert_weights", "expert_input")
"""Signals of experts that are known before they run."""


def of_experts(plan: GroupPlan) -> bool:
    """Whether units of a group are experts, or lie within them."""
    return plan.routed or plan.choice is not None


def known(plan: GroupPlan, first: int) -> int:
    """The point at which all signals that a group needs are known; `first` if it needs none."""
    return max((KNOWN[signal] for signal in plan.group.needs if signal in KNOWN), default=first)


def point(plan: GroupPlan, first: int, layer: Layer) -> int:
    """The point of a layer at which a group is decided."""
    if of_experts(plan):
        return EXPERTS
    at = known(plan, first)
    return DOWN if at == PRODUCT and layer.inner is None else at


def attention(plans: Plans) -> bool:
    """Whether a group cuts attention or needs its signals."""
    points = [KNOWN[signal] for plan in plans for signal in plan.group.needs if signal in KNOWN]
    points += [MASKED[name] for plan in plans for name in plan.group.slices if name in MASKED]
    return any(at < UP for at in points)


def check_order(plans: tuple[GroupPlan, ...], points: list[int], name: str) -> None:
    """Refuse groups that the running model decides in another order than a device requests them from a shared cache.

    Raises:
        ModelError: they are.
    """
    if EXPERTS in points and set(points) != {EXPERTS}:
        raise ModelError(
            f"policy {name}: cuts experts and a dense MLP, of which hwsim does not know which runs first, as a shared "
            "cache needs; choose --cache-scope matrix"
        )
    if points != sorted(points):
        names = ", ".join(plan.name for plan in plans)
        raise ModelError(
            f"policy {name}: with a shared cache, groups must come in the order in which a layer knows what they need "
            f"(attn_input, attn_output, input, then up, gate and glu); it is {names}; change it, or choose "
            "--cache-scope matrix"
        )


def check_groups(plans: tuple[GroupPlan, ...], layer: Layer, name: str) -> None:
    """Refuse groups that cannot be masked in a running model.

    Raises:
        ModelError: there is one.
    """
    for plan in plans:
        if plan.choice is not None and layer.experts is not None:
            check_inside(plan, layer.experts, name)
        if plan.routed:
            _check_experts(plan, name)
    _check_matrices(tuple(plan for plan in plans if not of_experts(plan)), layer, name)
    if attention(Plans((plans,))) and None in (layer.query, layer.key, layer.value, layer.out):
        raise ModelError(f"policy {name}: works on attention, whose projections hwsim does not find in this model")


def _check_experts(plan: GroupPlan, name: str) -> None:
    later = [signal for signal in plan.group.needs if signal in EXPERT_SIGNALS and signal not in OF_ROUTER]
    if later:
        raise ModelError(
            f"policy {name}: decides experts from {later[0]}, which the running model knows only after them; such an "
            "oracle can be replayed, not run"
        )


def _check_matrices(plans: tuple[GroupPlan, ...], layer: Layer, name: str) -> None:
    masked = MASKED | (dict.fromkeys(ROWS, PRODUCT) if layer.inner is not None else {})
    for plan in plans:
        cut, needs = plan.group.slices, plan.group.needs
        if foreign := [signal for signal in needs if signal in EXPERT_SIGNALS]:
            raise ModelError(
                f"policy {name}: group {plan.name}: cuts a dense MLP by {foreign[0]}, a signal of experts; a "
                "running model decides such groups from the MLP's own signals; choose others"
            )
        if not layer.gated and {"up", "gate"} & set(needs):
            raise ModelError(f"policy {name}: needs up or gate; a model without a gate has input and glu only")
        if layer.mlp and not layer.mlp.known and ({"up", "gate"} & set(needs) or set(ROWS) & set(cut)):
            raise ModelError(
                f"policy {name}: layer {plan.layer}: {layer.mlp.up}: {layer.mlp.why}, so rows of gate and up cannot "
                "be masked; choose a policy that cuts columns, such as dip"
            )
        if rows := sorted(slice_name for slice_name in cut if slice_name not in MASKED):
            raise ModelError(f"policy {name}: cuts {rows[0]}; of attention, the closed loop masks columns only")
        if early := sorted(slice_name for slice_name in cut if masked[slice_name] < known(plan, QKV)):
            raise ModelError(
                f"policy {name}: decides {early[0]} from {', '.join(needs)}, which the running "
                "model knows only after that matrix; such an oracle can be replayed, not run"
            )
        for fused, columns in (
            (layer.fused, ["gate.column", "up.column"]),
            (layer.fused_attention, ["q.column", "k.column", "v.column"]),
        ):
            if fused and 0 < len(set(columns) & set(cut)) < len(columns):
                alone = next(slice_name for slice_name in columns if slice_name in cut)
                stored = ", ".join(slice_name.partition(".")[0] for slice_name in columns)
                raise ModelError(f"policy {name}: cuts {alone} alone, but this model stores {stored} as one matrix")

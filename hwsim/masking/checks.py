"""Checks that a trace holds what a policy needs."""

from __future__ import annotations

from collections.abc import Callable

from hwsim.errors import TraceError
from hwsim.memory.groups import GroupPlan, Plans
from hwsim.model.shape import NORMS
from hwsim.policy import Policy
from hwsim.trace import Trace
from hwsim.trace.header import EXACT


def check_trace(trace: Trace, policy: Policy, plans: Plans, name: str) -> None:
    """Refuse a trace that lacks a signal that a policy needs, or values that its encoding dropped.

    Args:
        trace: open trace.
        policy: decides the masks.
        plans: groups of the policy.
        name: name of the policy, for messages.

    Raises:
        TraceError: a signal or values are missing.
    """
    if trace.model.by_bytes and (missing := sorted(signal for signal in plans.needs() if not trace.has(signal))):
        raise TraceError(
            f"{trace.path}: was imported without {', '.join(missing)}, which the policy needs; choose one that decides "
            "from the router's choice alone, such as router, router-k or drop-cold, or record the model"
        )
    check_signals(trace.has, plans, trace.path, trace.model.name)
    if (share := trace.header.encoding.share) is None:
        return
    name = name or type(policy).__name__
    for plan in plans:
        if set(plan.group.needs) - EXACT.keys() and (why := _needs_more(trace, policy.in_layer(plan.layer), plan)):
            raise TraceError(
                f"{trace.path}: keeps only the largest {share:.4g} of each row, but policy {name}, group "
                f"{plan.group.name}, {why}; give the trace that it was made from, or record one without --encoding top"
            )


def _needs_more(trace: Trace, policy: Policy, plan: GroupPlan) -> str:
    """Reason why a group may need values beyond the largest of their rows; empty if the stored values are enough."""
    signal, *others = plan.group.needs
    width, wanted, stored = (
        trace.model.signal_width(signal, plan.layer),
        plan.k,
        trace.header.encoding.kept(plan.indices),
    )
    rules = {
        "makes its masks itself, of all values": type(policy).select is not Policy.select,
        "names no keep": plan.group.keep is None,
        f"weighs {signal} by {', '.join(others)}": bool(others),
        f"decides {plan.indices} units by the {width} values of {signal}": width != plan.indices,
        "adds values up in blocks": plan.block > 1,
        f"needs {signal}, a product of two that were cut one by one": signal not in trace.header.signals,
        f"takes {wanted} of {plan.indices} units, of which {stored} are there": wanted > stored,
    }
    return next((why for why, broken in rules.items() if broken), "")


def check_signals(trace_has: Callable[[str], bool], plans: Plans, path: object, name: str) -> None:
    """Refuse a trace that lacks a signal; the message names the command that records it.

    Raises:
        TraceError: a signal is missing.
    """
    needed = sorted(plans.needs() | ({"experts"} if plans.sparse else set()))
    missing = [signal for signal in needed if not trace_has(signal)]
    if missing:
        signals = ",".join(signal for signal in needed if signal not in NORMS)
        options = (f" --signals {signals}" if signals else "") + (" --norms" if NORMS.keys() & set(needed) else "")
        raise TraceError(
            f"{path}: lacks {'the signal ' if missing[0] not in NORMS else ''}{', '.join(missing)}, "
            f"which the policy needs; record it: hwsim record --model {name}{options}"
        )

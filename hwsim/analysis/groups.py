"""Groups that can be counted together over all layers."""

from __future__ import annotations

from hwsim.errors import SettingError
from hwsim.memory.groups import GroupPlan, Plans


def alike_groups(plans: Plans) -> dict[str, GroupPlan]:
    """One plan for each group name, if the group has equal units and caches in all layers.

    Raises:
        SettingError: a group differs in size from layer to layer, so that its layers have no common cache size.
    """
    groups = plans.by_name()
    for name, members in groups.items():
        first = members[0]
        for plan in members:
            if (plan.units, plan.capacity) != (first.units, first.capacity):
                raise SettingError(
                    f"group {name}: layer {plan.layer} has {plan.units} units and a cache of {plan.capacity}, layer "
                    f"{first.layer} {first.units} and {first.capacity}; this statistic adds up layers of one size"
                )
    return {name: members[0] for name, members in groups.items()}

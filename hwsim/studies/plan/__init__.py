"""Plan a device for a mixture of experts: how large the cache, how many experts, how many reads at once."""

from hwsim.studies.plan.planning import Plan, Row, plan

__all__ = ["Plan", "Row", "plan"]

"""Gate pruning (arXiv 2412.01380): gate is computed whole and decides what is read of up and down."""

from __future__ import annotations

from hwsim.policy import Group, ModelShape
from hwsim_policies.up import Up, one_dense


class Gate(Up):
    """Gate pruning: gate stays dense, rows of up and columns of down by the largest |gate|, activated."""

    def groups(self, model: ModelShape) -> list[Group]:
        """Density (1 + 2 keep)/3."""
        return [one_dense("gate", "up", self.density, model)]

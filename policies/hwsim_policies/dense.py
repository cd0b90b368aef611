"""Dense: no mask at all. What does not fit into DRAM is streamed from Flash at every token."""

from __future__ import annotations

from hwsim.policy import Field, Group, ModelShape, Policy


class Dense(Policy):
    """No mask: every weight is read at every token; what fits is pinned in DRAM, the rest is streamed."""

    density: float = Field(1.0, ge=1, le=1, description="share of the MLP that a token reads; dense reads all")

    def groups(self, model: ModelShape) -> list[Group]:
        """Nothing is cut."""
        return []

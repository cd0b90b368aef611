"""Masks of units inside of experts: the policy first chooses the experts, and then what is read of each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from hwsim.cache.experts import in_order
from hwsim.errors import ContractError
from hwsim.masking.decider import Decider, Needed
from hwsim.memory.groups import GroupPlan
from hwsim.model.shape import ModelShape
from hwsim.policy import Policy
from hwsim.util import kernels

_CHOICE = 10**6  # makes the random numbers of the choice others than those of any group


class WithinDecider(Decider):
    """Asks a policy which experts a token reads, and which of their rows or columns.

    A group of ``hidden`` has one mask for all chosen experts, because they have the same input; a group of ``neuron``
    has one for each. The experts must be among those that the model chose, of which alone the signals are known.
    """

    def __init__(self, policy: Policy, name: str, plan: GroupPlan, model: ModelShape, seed: tuple[int, ...]) -> None:
        super().__init__(policy, name, plan, model, seed)
        self.masks_blocks = False
        choice, group = plan.choice, plan.group
        assert choice is not None and group.keep is not None
        self._within, self._count = plan, choice.units
        inner = replace(plan, units=plan.width, indices=plan.width, k=kernels.kept(group.keep, plan.width), choice=None)
        self._choice = Decider(policy, name, choice, model, (*seed, _CHOICE))
        self._inner = Decider(policy, name, inner, model, seed)
        self._units = np.zeros((self._count, plan.width), bool)
        self._cached_units: np.ndarray | None = None

    @property
    def token(self) -> int:
        """Number of the last decided token, from 0 in each sequence; -1 before the first."""
        return self._choice.token

    def begin(self, number: int, cached: np.ndarray | None, blind: str = "") -> None:
        """Begin a sequence; arguments as for `Decider.begin`."""
        self._choice.begin(number, None, "a choice of experts whose parts are cached has no cache of its own")
        self._inner.begin(number, cached, blind)
        self._cached_units = None if cached is None else cached.reshape(self._count, -1)

    def decide(self, signals: dict[str, np.ndarray]) -> np.ndarray:
        """Return the mask of the next token, bool ``[units]``, read-only; valid until the next call.

        Raises:
            ContractError: as `Decider.decide`; an expert was chosen that the model did not choose.
        """
        own, choice, group = signals["experts"], self._choice, self._within.group
        needs = self._within.choice.group.needs if self._within.choice else []
        chosen = in_order(choice.decide(Needed({name: signals[name] for name in needs})), own)
        if (foreign := np.setdiff1d(chosen, own)).size:
            raise ContractError(
                f"policy: group {group.name} at layer {self._within.layer}: expert {foreign[0]} was chosen, which the "
                "model did not choose, so what happens within it is not known; choose among the model's own"
            )
        self._units[:] = False
        cached = self._cached_units
        if group.axis == "hidden":
            known = None if cached is None else kernels.read_only(cached[chosen].all(axis=0))
            wanted = Needed({name: signals[name] for name in group.needs})
            self._units[chosen] = self._inner.inside(choice.token, None, wanted, known)
        else:
            ranks = {int(expert): rank for rank, expert in enumerate(own)}
            for expert in chosen.tolist():
                known = None if cached is None else cached[expert]
                wanted = Needed({name: self._of(signals, name, ranks[expert]) for name in group.needs})
                self._units[expert] = self._inner.inside(choice.token, expert, wanted, known)
        return kernels.read_only(self._units.reshape(-1))

    def save(self) -> tuple[Any, ...]:
        """The state after the last token, for `restore`."""
        return self._choice.save(), self._inner.save()

    def restore(self, saved: tuple[Any, ...]) -> None:
        """Go back to a saved state, from which nothing was saved since."""
        self._choice.restore(saved[0])
        self._inner.restore(saved[1])

    def _of(self, signals: dict[str, np.ndarray], name: str, rank: int) -> np.ndarray:
        """What a signal says of the expert with a rank."""
        values = signals[name]
        return values.reshape(-1, self._within.width)[rank] if name == "expert_glu" else values

"""What a step needs of one group of one layer: the masks of its members, united."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from hwsim.cache.experts import in_order
from hwsim.masking.decider import Block, Decider
from hwsim.masking.streams import Masking, SignalSource, signal_blocks
from hwsim.memory.groups import GroupPlan, Place
from hwsim.trace.sequences import Sequences
from hwsim.trace.steps import Steps


class Demand(NamedTuple):
    """The needs of one step.

    Attributes:
        units: int64, experts in the order of their use, each once; of other groups the mask, bool ``[units]``.
        used: units, summed over the members.
        last_used: members that need the last unit of the group.
    """

    units: np.ndarray
    used: int
    last_used: int


class Chooser:
    """Decides the masks of one place for the members of each step; each sequence has its own state.

    Args:
        source: gives the signals.
        sequences: windows of the trace.
        steps: the steps.
        masking: the policy.
        place: place of the group.
        cached: bool ``[units]``: the cached units, read-only; None: the policy may not read them, because the eviction
            must know the future.
        values: values of a signal that may be held at once.
    """

    def __init__(
        self, source: SignalSource, sequences: Sequences, steps: Steps, masking: Masking, place: Place,
        cached: np.ndarray | None, values: int,
    ) -> None:  # fmt: skip
        self._source, self._steps, self._masking, self._place = source, steps, masking, place
        self._cached, self._values = cached, values
        self._prompts = steps.prompts
        self._drafted = bool((steps.emitted < steps.sizes)[~self._prompts].any())
        self._ends = {part.number: part.rows.stop for part in sequences.decoded()}
        self._deciders: dict[int, Decider] = {}
        self._blocks: dict[int, _Rows] = {}

    def begin(self) -> None:
        """Forget the state of all sequences: the caches begin anew."""
        self._deciders, self._blocks = {}, {}

    def demand(self, step: int) -> Demand:
        """What a step needs.

        Raises:
            ContractError: the policy broke its contract.
        """
        members = self._steps.members(step)
        rows = self._steps.rows[members]
        if self._prompts[step]:
            return self._whole(rows)
        numbers = self._steps.sequences[members]
        if len(self._blocks) > len(rows):  # of sequences that have ended
            self._blocks = {number: self._blocks[number] for number in numbers.tolist() if number in self._blocks}
        if len(rows) == 1:
            return self._united([self._choice(int(numbers[0]), int(rows[0]))])
        if numbers[0] != numbers[-1]:
            return self._united([self._choice(*member) for member in zip(numbers.tolist(), rows.tolist(), strict=True)])
        return self._verified(step, int(numbers[0]), rows)

    def _verified(self, step: int, number: int, rows: np.ndarray) -> Demand:
        """What a step with drafted tokens needs; the state goes on after the last accepted one."""
        choices, saved = [], None
        decider = self._decider(number)
        for place, row in enumerate(rows.tolist(), 1):
            choices.append(self._choice(number, row))
            if place == self._steps.emitted[step]:
                saved = decider.save()
        assert saved is not None
        decider.restore(saved)
        return self._united(choices)

    def _whole(self, rows: np.ndarray) -> Demand:
        """What a chunk of a prompt needs: the model's own experts, or all units."""
        plan = self._place.plan
        read = self._source.read
        sparse = plan.routed or plan.choice is not None
        chosen = read(plan.layer, "experts", int(rows[0]), int(rows[-1]) + 1) if sparse else None
        return prompt_demand(plan, len(rows), chosen)

    def _united(self, choices: list[np.ndarray]) -> Demand:
        if self._place.plan.routed:
            if len(choices) == 1:
                return Demand(choices[0], len(choices[0]), 0)
            joined = np.concatenate(choices)
            return Demand(last_uses(joined), len(joined), 0)
        if len(choices) == 1:
            mask = choices[0]
            return Demand(mask, int(np.count_nonzero(mask)), int(mask[-1]))
        masks = np.array(choices)
        return Demand(np.asarray(masks.any(axis=0)), int(np.count_nonzero(masks)), int(np.count_nonzero(masks[:, -1])))

    def _decider(self, number: int) -> Decider:
        if number not in self._deciders:
            decider = self._masking.decider(self._place)
            decider.begin(number, self._cached)
            self._deciders[number] = decider
        return self._deciders[number]

    def _choice(self, number: int, row: int) -> np.ndarray:
        """One token's units: int64 by use for experts, else bool ``[units]``; the caller must not change them."""
        decider = self._decider(number)
        block = self._blocks.get(number)
        if block is None or not block.first <= row < block.stop:
            block = self._blocks[number] = self._read(decider, row, self._ends[number])
        at = row - block.first
        if block.decided is not None:
            return block.decided[at]
        mask = decider.decide(block.signals[at])
        return in_order(mask, block.experts[at]) if self._place.plan.routed else mask.copy()

    def _read(self, decider: Decider, row: int, end: int) -> _Rows:
        block = next(signal_blocks(self._source, self._place.plan, range(row, end), self._values))
        experts = list(block.choices())
        decided = None
        if self._place.plan.routed and decider.masks_blocks and not self._drafted:
            decided = _decided(decider, block, experts)
        return _Rows(row, row + block.tokens, [] if decided else list(block.rows()), experts, decided)


class _Rows(NamedTuple):
    """Some rows of a sequence: the signals of each, the model's experts, and what was decided at once, if it was."""

    first: int
    stop: int
    signals: list[dict[str, np.ndarray]]
    experts: list[Any]
    decided: list[np.ndarray] | None


def _decided(decider: Decider, block: Block, experts: list[Any]) -> list[np.ndarray] | None:
    """The experts of each token of a block, int64 in the order of their use; None: they are asked one by one."""
    masks = decider.masks(block)
    return None if masks is None else [in_order(mask, order) for mask, order in zip(masks, experts, strict=True)]


def prompt_demand(plan: GroupPlan, tokens: int, experts: np.ndarray | None) -> Demand:
    """What a chunk of a prompt needs: the model's own experts, or all units.

    Args:
        plan: the group.
        tokens: of the chunk.
        experts: int64 ``[tokens, used]``: the model's own choice by falling rank, -1 where there are fewer; only for
            experts and groups within them.
    """
    if experts is None:
        return Demand(np.ones(plan.units, bool), tokens * plan.units, tokens)
    chosen = experts.ravel()
    chosen = chosen[chosen >= 0]
    if plan.choice is not None:
        mask = np.zeros((plan.choice.units, plan.width), bool)
        mask[chosen] = True
        return Demand(mask.ravel(), len(chosen) * plan.width, 0)
    return Demand(last_uses(chosen), len(chosen), 0)


def last_uses(units: np.ndarray) -> np.ndarray:
    """Each unit once, in the order of its last use: int64."""
    return np.array(list(dict.fromkeys(units[::-1].tolist())), np.int64)[::-1]

"""Prompts of a pass of a running model: they are not masked, but they may go through the caches, chunk by chunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hwsim.masking.choosers import Demand, prompt_demand
from hwsim.masking.counts import Counts, Served
from hwsim.memory.groups import GroupPlan, Place, Plans


class Prompts:
    """The prompts of a pass, as steps that the caches serve.

    Args:
        rows: rows of the pass with the prompt of each sequence; empty where it has none, or is read densely.
        chunk: tokens of a step; None: the whole prompt.
        plans: the groups.

    Attributes:
        counts: requests and hits of all steps, sequence by sequence.
    """

    def __init__(self, rows: Sequence[range], chunk: int | None, plans: Plans) -> None:
        size = chunk or max(map(len, rows), default=0) or 1
        self._chunks = [[part[at : at + size] for at in range(0, len(part), size)] for part in rows]
        self._first = np.cumsum([0, *map(len, self._chunks)]).tolist()
        empty = Counts.none(self._first[-1], plans)
        shape = empty.requests.shape
        last_used = None if empty.last_requests is None else np.zeros(shape, np.int64)
        self.counts = replace(empty, used=np.zeros(shape, np.int64), last_used=last_used)

    def __bool__(self) -> bool:
        """Whether the pass has a prompt."""
        return len(self.counts.requests) > 0

    def demands(self, number: int, plan: GroupPlan, experts: np.ndarray | None) -> list[Demand]:
        """What each step of a sequence's prompt needs of a group.

        Args:
            number: of the sequence in the pass.
            plan: the group.
            experts: int64 ``[rows, used]``: the model's own choice in all rows of the pass; only for experts
                and groups within them.
        """
        return [
            prompt_demand(plan, len(part), None if experts is None else experts[part.start : part.stop])
            for part in self._chunks[number]
        ]

    def put(self, number: int, place: Place, step: int, demand: Demand, served: Served) -> None:
        """Count what a cache has served for a step, by its number in the prompt of a sequence."""
        token = self._first[number] + step
        self.counts.put(place, token, served)
        at = token, place.layer, place.slot
        assert self.counts.used is not None
        self.counts.used[at] = demand.used
        if self.counts.last_used is not None:
            self.counts.last_used[at] = demand.last_used

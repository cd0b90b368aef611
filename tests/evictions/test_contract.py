"""`check_eviction` passes the built-in rules, and tells which rule of the contract a broken one breaks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import Field

from hwsim.errors import ContractError
from hwsim.evictions import Eviction
from hwsim.evictions.lru import Lru
from hwsim.simulation.plugins import EVICTIONS
from hwsim.testing import check_eviction


@pytest.mark.parametrize("name", EVICTIONS.names())
def test_the_built_in_rules_keep_it(name):
    done = check_eviction(EVICTIONS.make(name)[1])
    assert done
    assert check_eviction(EVICTIONS.find(name)[1]) == done


class Fields(Lru):
    """Keeps its counter in a field."""

    seen: list[Any] = Field(default_factory=list)

    def use(self, state, use):
        super().use(state, use)
        self.seen.append(use.token)

    def rank(self, state):
        return np.roll(state, len(self.seen))


class Clocked(Lru):
    """Ranks by numbers that nobody seeds."""

    def rank(self, state):
        return np.random.default_rng().random(state.shape[0])


class Forgets(Lru):
    """Keeps its state from one sequence to the next."""

    kept: dict[str, Any] = Field(default_factory=dict)

    def start(self, units, capacity, future):
        return self.kept.setdefault(f"{units} {capacity}", np.zeros(units, np.int64))

    def use(self, state, use):
        state += use.mask

    def rank(self, state):
        return state


class Writes(Lru):
    """Changes the future."""

    needs_future = True

    def use(self, state, use):
        self.seen(state)

    def start(self, units, capacity, future):
        future[0] = ~future[0]
        return super().start(units, capacity, future)

    def seen(self, state):
        pass


class WritesMask(Lru):
    """Changes the mask."""

    def use(self, state, use):
        use.mask[0] = True


class KeepsAll(Eviction):
    """Lets nobody go."""

    def stay(self, state, candidates, count):
        return candidates


class Short(Lru):
    """Ranks half of the units."""

    def rank(self, state):
        return state[: len(state) // 2]


class NeedsSize(Eviction):
    """Has a parameter without a default."""

    size: int


class Undescribed(Lru):
    pass


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (Fields, "another cache|the sequence before|what another one serves"),
        (Clocked, "the same run gives another cache"),
        (Forgets, "the same run gives another cache|the sequence before"),
        (Writes, r"changes the future that start\(\) is told"),
        (WritesMask, "read-only"),
        (KeepsAll, "must return a mask of exactly"),
        (Short, r"rank\(\) returned int32 of shape \(20,\), needs numbers of shape \(40,\)"),
        (NeedsSize, "every parameter needs a default: size"),
        (Undescribed, "has no docstring"),
        (int, "is no subclass of"),
    ],
)
def test_a_broken_rule_is_named(rule, text):
    with pytest.raises(ContractError, match=text):
        check_eviction(rule)

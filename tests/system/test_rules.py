"""Rules of the contract that numbers depend on, each with a case in which a slip would show."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hwsim_policies.dip_ca import DipCa

from hwsim.evictions.lru import Lru
from hwsim.memory.placement import Room, place
from hwsim.memory.planning import plan_layers
from hwsim.model.shape import Bits
from hwsim.policy import Context, Field, Group, ModelShape, Policy
from hwsim.testing import SMALL_MODEL, RandomSignals
from hwsim.trace import Sequence
from tests.runs import Told, scan

SEQUENCES = [Sequence(tokens=6), Sequence(tokens=5, prompt=1)]


def masks_of(policy: Policy, model: ModelShape = SMALL_MODEL, seed: int = 0) -> dict[tuple[int, str, int], np.ndarray]:
    plans = place(plan_layers([policy.groups(model)], model), model, Bits(), Room("60%", 6), 0).plans
    found: dict[tuple[int, str, int], np.ndarray] = {}

    def listen(layer: int, group: str, token: int, mask: np.ndarray) -> None:
        found[layer, group, token] = mask.copy()

    source = RandomSignals(model, 11)
    scan(source, SEQUENCES, policy, plans, Lru(), model=model, seed=seed, observers=[Told(listen)])
    return found


@pytest.mark.parametrize(
    ("keep", "units", "k"),
    [
        (0.29, 100, 29),
        (0.57, 100, 57),
        (0.58, 100, 58),
        (0.001, 100, 1),
        (1e-9, 100, 1),
        (0.999, 100, 99),
        (1, 100, 100),
    ],
)
def test_k_is_the_floor_that_a_person_expects(keep: float, units: int, k: int) -> None:
    """0.29 x 100 is 28.999999999999996 in floating point."""
    model = SMALL_MODEL.model_copy(update={"intermediate_size": units})
    plans = plan_layers([[Group("g", "neuron", ["down.column"], keep=keep, needs=["glu"])]], model)
    assert [plan.k for plan in plans] == [k] * model.num_hidden_layers


class _Draws(Policy):
    """A random mask."""

    def groups(self, model: ModelShape) -> list[Group]:
        return [
            Group(name, "neuron", [part], 0.5, ["glu"], True) for name, part in (("a", "up.row"), ("b", "down.column"))
        ]

    def score(self, ctx: Context) -> np.ndarray:
        return ctx.rng.random(ctx.units).astype(np.float32)


def test_random_numbers_differ_by_layer_group_sequence_and_seed() -> None:
    found, other = masks_of(_Draws()), masks_of(_Draws(), seed=1)
    first = found[0, "a", 0]
    assert not np.array_equal(first, found[1, "a", 0])
    assert not np.array_equal(first, found[0, "b", 0])
    assert not np.array_equal(first, found[0, "a", 6])  # the first of the second sequence
    assert not np.array_equal(first, other[0, "a", 0])
    np.testing.assert_array_equal(first, masks_of(_Draws())[0, "a", 0])


class _Counts(Policy):
    """As many units as tokens were seen in this sequence."""

    def groups(self, model: ModelShape) -> list[Group]:
        return [Group("g", "neuron", ["down.column"], None, ["glu"])]

    def select(self, ctx: Context) -> np.ndarray:
        ctx.state["seen"] = ctx.state.get("seen", 0) + 1
        assert ctx.token + 1 == ctx.state["seen"]
        return np.arange(ctx.units) < ctx.state["seen"]


def test_state_is_empty_at_each_sequence() -> None:
    """And apart for each layer; prompts are no part of it."""
    found = masks_of(_Counts())
    sizes = [int(found[layer, "g", token].sum()) for layer in range(3) for token in range(10)]
    assert sizes == [1, 2, 3, 4, 5, 6, 1, 2, 3, 4] * 3


class _Fine(Policy):
    """Scores that only float64 tells apart: the later unit is larger by less than float32 can hold."""

    def groups(self, model: ModelShape) -> list[Group]:
        return [Group("g", "neuron", ["down.column"], 0.5, ["glu"])]

    def score(self, ctx: Context) -> np.ndarray:
        return 1.0 + np.arange(ctx.units) * 1e-12


def test_scores_are_float32_and_ties_go_to_the_lower_index() -> None:
    units = SMALL_MODEL.intermediate_size
    for mask in masks_of(_Fine()).values():
        np.testing.assert_array_equal(mask, np.arange(units) < units // 2)


@pytest.mark.parametrize("strongest", [1, 2, 7])
def test_all_fixed_units_are_exempt(strongest: int) -> None:
    """With gamma 0 everything that is not cached is worth nothing, except the n strongest."""

    class Spy(DipCa):
        """Remembers what it saw."""

        seen: list[Any] = Field(default_factory=list)

        def score(self, ctx: Context) -> np.ndarray:
            score = super().score(ctx)
            self.seen.append((np.abs(ctx.signals[ctx.group.needs[0]]).copy(), ctx.cached.copy(), score.copy()))
            return score

    spy = Spy(gamma=0.0, fixed_top_n=strongest)
    found = masks_of(spy)
    assert len(spy.seen) == len(found)
    for (value, cached, score), mask in zip(spy.seen, found.values(), strict=True):
        top = np.argsort(-value, kind="stable")[:strongest]
        assert mask[top].all()
        np.testing.assert_array_equal(score[top], value[top])
        others = np.setdiff1d(np.flatnonzero(~cached), top)
        assert not score[others].any()


def test_latency_is_shared_by_no_more_reads_than_the_queue_holds() -> None:
    from hwsim.device.flash_times import flash_seconds
    from tests.conftest import flat_profile

    def seconds(count: int, **flash: Any) -> float:
        device = flat_profile().flash.model_copy(update={"latency": 1e-4} | flash)
        return flash_seconds(device)(count, (1000,))

    assert seconds(100) == pytest.approx(1e-4 + 100 * 1000 / 1e9)
    assert seconds(100, queue_depth=1) == pytest.approx(100 * 1e-4)
    assert seconds(100, queue_depth=32) == pytest.approx(4 * 1e-4)
    assert seconds(1, queue_depth=32) == seconds(1)


def test_a_quality_that_no_predictor_can_have_is_refused() -> None:
    from hwsim_policies.noisy_oracle import NoisyOracle

    from hwsim.errors import PluginError

    with pytest.raises(PluginError, match=r"recall=0\.2 with precision=0\.9 is impossible"):
        masks_of(NoisyOracle(density=0.5, recall=0.2, precision=0.9))


def test_density_must_be_that_of_the_whole_mlp() -> None:
    from hwsim.errors import ContractError
    from hwsim.testing import check_policy

    class Wrong(Policy):
        """Takes the density for the keep of down."""

        density: float = Field(0.5, gt=0, le=1)

        def groups(self, model: ModelShape) -> list[Group]:
            return [Group("g", "neuron", ["down.column"], self.density, ["glu"])]

        def score(self, ctx: Context) -> np.ndarray:
            return np.abs(ctx.signals["glu"])

    with pytest.raises(ContractError, match=r"density 0\.3 reads 0\.7[0-9]* of the MLP"):
        check_policy(Wrong)

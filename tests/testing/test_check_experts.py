"""Does the check of policies know what is particular to policies for experts?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hwsim.errors import ContractError, HwsimError
from hwsim.model.shape import ModelShape
from hwsim.policy import Context, Group, PluginError, Policy
from hwsim.simulation.plugins import POLICIES
from hwsim.testing import SMALL_MODEL, SMALL_SPARSE_MODEL, RandomSignals, check_policy, decide, policy_speed
from hwsim.testing.drive import for_experts
from tests.conftest import FOR_EXPERTS, WITHOUT_A_FILE

AT_ONCE = "masks() of many tokens, where it has them, are those of select()"


class Base(Policy):
    """The model's own choice."""

    def groups(self, model: ModelShape) -> list[Group]:
        return [Group("experts", axis="expert", slices=["experts.expert"], needs=["experts", "router"])]

    def select(self, ctx: Context) -> np.ndarray:
        mask = np.zeros(ctx.units, bool)
        mask[ctx.signals["experts"]] = True
        return mask


def changed(base: type[Policy] = Base, **methods: Any) -> type[Policy]:
    return type("Changed", (base,), {"__doc__": "Changed.", **methods})


def at_once(self: Any, ctx: Context) -> np.ndarray:
    chosen = ctx.signals["experts"]
    masks = np.zeros((len(chosen), ctx.units), bool)
    for row, experts in zip(masks, chosen, strict=True):
        row[experts[experts >= 0]] = True
    return masks


@pytest.mark.parametrize("name", FOR_EXPERTS)
def test_the_built_in_ones_keep_the_contract(name: str) -> None:
    rules = check_policy(POLICIES.find(name)[1])
    assert (AT_ONCE in rules) == (name in ("router", "router-k"))
    assert policy_speed(POLICIES.make(name)[1])


def test_a_policy_for_experts_gets_a_model_with_experts() -> None:
    assert {name for name in FOR_EXPERTS + WITHOUT_A_FILE if for_experts(POLICIES.make(name)[1])} == set(FOR_EXPERTS)
    assert check_policy(Base)
    with pytest.raises(HwsimError, match="has no experts; choose a policy that cuts MLPs"):
        check_policy(Base, SMALL_MODEL)


def test_the_small_model_is_a_lawful_one() -> None:
    assert ModelShape.model_validate(SMALL_SPARSE_MODEL.model_dump(mode="json")) == SMALL_SPARSE_MODEL
    assert [bool(layer.experts) for layer in SMALL_SPARSE_MODEL.layers] == [True, False, True]


def test_its_routing_is_that_of_a_router() -> None:
    source = RandomSignals(SMALL_SPARSE_MODEL, 40)
    logits, chosen, weights = (source.read(2, name) for name in ("router", "experts", "expert_weights"))
    for row, experts, shares in zip(logits, chosen, weights, strict=True):
        own = experts[experts >= 0]
        assert own.tolist() == np.argsort(-row, kind="stable")[: len(own)].tolist()
        powers = np.exp(row[own].astype(float))
        assert shares[: len(own)] == pytest.approx(powers / powers.sum(), rel=1e-5)
    assert sorted({int((row >= 0).sum()) for row in chosen}) == [3, 4]
    assert np.array_equal(source.read(2, "experts", 5, 9), chosen[5:9])


def test_masks_of_many_tokens_are_held_to_select() -> None:
    assert AT_ONCE in check_policy(changed(masks=at_once))
    wrong = changed(masks=lambda self, ctx: np.roll(at_once(self, ctx), 1, axis=1))
    with pytest.raises(ContractError, match=r"masks\(\) at layer 0, group experts, token 0 choose other units than"):
        check_policy(wrong)
    with pytest.raises(ContractError, match=r"masks\(\) at layer 0, group experts, token 0: returned bool of shape"):
        check_policy(changed(masks=lambda self, ctx: at_once(self, ctx)[:, :5]))


def test_masks_left_behind_by_another_select_are_not_asked() -> None:
    parent = changed(masks=at_once)

    def one(self: Any, ctx: Context) -> np.ndarray:
        return np.asarray(np.arange(ctx.units) == ctx.signals["experts"][0])

    assert AT_ONCE not in check_policy(changed(parent, select=one))


def test_masks_of_many_tokens_cannot_know_the_cache() -> None:
    def aware(self: Any, ctx: Context) -> np.ndarray:
        mask = Base.select(self, ctx)
        return mask if ctx.token % 2 else mask & (ctx.cached | True)

    with pytest.raises(HwsimError, match=r"reads ctx\.cached, but masks\(\) decides many tokens at once"):
        check_policy(changed(select=aware, masks=at_once))


@pytest.mark.parametrize(
    ("select", "text"),
    [
        (lambda self, ctx: np.zeros(ctx.units, bool), "the mask holds no expert; a token needs at least one"),
        (lambda self, ctx: ctx.signals["experts"], "returned int64 of shape"),
        (
            lambda self, ctx: Base.select(self, ctx) & (ctx.signals["expert_weights"] > 0),
            "'expert_weights' is not among",
        ),
        (lambda self, ctx: ctx.signals["experts"].sort(), "read-only"),
    ],
)
def test_what_a_policy_may_not_do(select: Any, text: str) -> None:
    with pytest.raises(ContractError, match=text):
        check_policy(changed(select=select))


def test_decide_takes_routing_that_a_test_makes_up() -> None:
    chosen = np.array([[3, 1, 0, 7], [5, 2, -1, -1]])
    masks = decide(POLICIES.make("router-k", {"k": 2})[1], {"experts": chosen}, SMALL_SPARSE_MODEL)["experts"]
    assert [np.flatnonzero(mask).tolist() for mask in masks] == [[1, 3], [2, 5]]


def test_the_reason_of_a_refusal_arrives() -> None:
    with pytest.raises(PluginError, match="k=25: small-sparse has 24 experts in a layer; set k to at most 24"):
        check_policy(POLICIES.make("router-k", {"k": 25})[1])
    assert check_policy(POLICIES.make("router-k", {"k": 24})[1])


def test_a_policy_sees_the_experts_of_its_layer() -> None:
    """The threshold of drop-cold is F/k, and k may differ between layers."""
    sparse = SMALL_SPARSE_MODEL.layers[0]
    assert sparse.experts is not None
    few = sparse.model_copy(update={"experts": sparse.experts.model_copy(update={"used": 2})})
    model = SMALL_SPARSE_MODEL.model_copy(update={"layers": (few, SMALL_SPARSE_MODEL.layers[1], sparse)})
    seen: dict[int, int] = {}

    def select(self: Any, ctx: Context) -> np.ndarray:
        assert ctx.model.experts is not None
        seen[ctx.layer] = ctx.model.experts.used
        return Base.select(self, ctx)

    check_policy(changed(select=select), model)
    assert seen == {0: 2, 2: 4}

"""Do the policies for experts choose what their sources say, on contexts made by hand?"""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwsim.errors import BlindError
from hwsim.masking.context import ScanContext
from hwsim.model.layers import Experts, LayerShape
from hwsim.model.shape import ModelShape
from hwsim.policy import PluginError, Policy
from hwsim.simulation.plugins import POLICIES

CACHE_AWARE = ("drop-cold", "cache-prior", "max-rank", "cumulative")
BY_RANK = ("cache-prior", "max-rank", "cumulative")  # they need the logits of all experts


def make(name: str, **parameters: Any) -> Policy:
    return POLICIES.make(name, parameters)[1]


def sparse(experts: int, used: int) -> ModelShape:
    """One layer of experts, seen by itself."""
    layer = LayerShape(
        num_attention_heads=2, num_key_value_heads=2, head_dim=4, attention="full", kv_elements=16, macs_per_entry=16,
        experts=Experts(count=experts, used=used, intermediate_size=4),
    )  # fmt: skip
    model = ModelShape(
        name="sparse", num_hidden_layers=1, hidden_size=8, intermediate_size=0, num_attention_heads=2,
        num_key_value_heads=2, head_dim=4, vocab_size=10, layers=(layer,),
    )  # fmt: skip
    view = model.at(0)
    assert view is not None
    return view


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


class Token:
    """A token at a layer: the router's logits, the experts that are cached, and the model's choice."""

    def __init__(
        self, policy: Policy, logits: Any, cached: Any = (), used: int = 2, *, chosen: Any = None, weights: Any = None
    ) -> None:
        self.policy, self.cached = policy, np.isin(np.arange(len(logits)), list(cached))
        model = sparse(len(logits), used)
        (group,) = policy.groups(model)
        self.ctx = ScanContext(model, group, 0, len(logits), 0, np.random.default_rng(0))
        self.ctx.begin(np.random.default_rng(0), self.cached)
        self.show(logits, used, chosen=chosen, weights=weights)

    def show(self, logits: Any, used: int, *, chosen: Any = None, weights: Any = None) -> None:
        values = np.asarray(logits, np.float32)
        if chosen is None:
            chosen = sorted(range(len(values)), key=lambda expert: (-values[expert], expert))[:used]
        ids = np.asarray(chosen, np.int64)
        if weights is None:
            weights = softmax(values[ids].astype(np.float64))
        every = {"experts": ids, "router": values, "expert_weights": np.asarray(weights, np.float32)}
        self.ctx.token += 1
        self.ctx.signals = {name: every[name] for name in self.ctx.group.needs}
        for array in self.ctx.signals.values():
            array.flags.writeable = False

    def choice(self) -> set[int]:
        mask = self.policy.select(self.ctx)
        assert mask is not None
        assert mask.dtype == bool
        assert mask.shape == (self.ctx.units,)
        return set(np.flatnonzero(mask).tolist())


def choice(name: str, logits: Any, cached: Any = (), used: int = 2, **rest: Any) -> set[int]:
    signals = {key: rest.pop(key) for key in ("chosen", "weights") if key in rest}
    return Token(make(name, **rest), logits, cached, used, **signals).choice()


# ---------------------------------------------------------------------- by hand

LOGITS = [1.0, 5.0, 4.0, 0.0, 3.0, 2.0]  # by rank: 1 2 4 5 0 3


def test_router_is_the_model() -> None:
    assert choice("router", LOGITS, used=3) == {1, 2, 4}
    assert choice("router", LOGITS, chosen=[3, 0]) == {0, 3}  # whatever the logits say
    assert choice("router", LOGITS, chosen=[3]) == {3}  # a token may use fewer


def test_router_k_takes_the_first_ranks() -> None:
    assert [choice("router-k", LOGITS, used=4, k=k) for k in (1, 2, 4)] == [{1}, {1, 2}, {1, 2, 4, 5}]
    assert choice("router-k", LOGITS, used=3, k=2, chosen=[4, 0, 1]) == {0, 4}  # ranks are the model's


def test_router_k_beyond_the_choice_goes_on_by_logits() -> None:
    assert choice("router-k", LOGITS, used=2, k=4) == {1, 2, 4, 5}
    assert choice("router-k", LOGITS, used=2, k=6) == set(range(6))
    with pytest.raises(PluginError) as found:
        make("router-k", k=7).groups(sparse(6, 2))
    assert str(found.value) == "k=7: sparse has 6 experts in a layer; set k to at most 6"


def test_router_k_needs_logits_for_more_only() -> None:
    needs = {k: make("router-k", k=k).groups(sparse(6, 2))[0].needs for k in (1, 2, 3, 6)}
    assert needs == {1: ["experts"], 2: ["experts"], 3: ["experts", "router"], 6: ["experts", "router"]}


@pytest.mark.parametrize("name", ["router", "router-k", *CACHE_AWARE])
def test_dense_layers_are_no_trouble(name: str) -> None:
    """The engine asks for the groups of dense layers, too, and leaves experts out there."""
    dense = ModelShape(
        name="dense", num_hidden_layers=1, hidden_size=8, intermediate_size=8, num_attention_heads=2,
        num_key_value_heads=2, head_dim=4, vocab_size=10,
    )  # fmt: skip
    (group,) = make(name).groups(dense)
    assert (group.axis, group.slices, group.keep, group.oracle) == ("expert", ["experts.expert"], None, False)


def test_drop_cold_skips_what_is_not_cached_and_weighs_little() -> None:
    weights = [0.5, 0.26, 0.24]  # a third is the even share
    shown = {"used": 3, "weights": weights, "chosen": [2, 0, 4]}
    assert choice("drop-cold", LOGITS, cached=(), **shown) == {2}
    assert choice("drop-cold", LOGITS, cached=(0,), **shown) == {0, 2}
    assert choice("drop-cold", LOGITS, cached=(0, 4), **shown) == {0, 2, 4}
    assert choice("drop-cold", LOGITS, cached=(), factor=0.75, **shown) == {0, 2}  # a quarter
    assert choice("drop-cold", LOGITS, cached=(1, 3, 5), factor=0.5, **shown) == {0, 2, 4}
    assert choice("drop-cold", LOGITS, cached=(), factor=1000, **shown) == {2}


def test_drop_cold_keeps_a_weight_of_exactly_the_threshold() -> None:
    assert choice("drop-cold", LOGITS, weights=[0.5, 0.5]) == {1, 2}
    assert choice("drop-cold", LOGITS, used=4, weights=[0.4, 0.25, 0.25, 0.1]) == {1, 2, 4}


def test_drop_cold_divides_by_the_number_that_the_model_chooses() -> None:
    """Also where a token uses fewer: two of at most four, the threshold is a quarter."""
    assert choice("drop-cold", LOGITS, used=4, chosen=[1, 2], weights=[0.7, 0.3]) == {1, 2}
    assert choice("drop-cold", LOGITS, used=2, chosen=[1, 2], weights=[0.7, 0.3]) == {1}


def test_max_rank_takes_cached_experts_of_its_window() -> None:
    assert choice("max-rank", LOGITS, cached=(4, 3), max_rank=3) == {1, 4}
    assert choice("max-rank", LOGITS, cached=(5, 0), max_rank=3) == {1, 2}  # beyond the window
    assert choice("max-rank", LOGITS, cached=(5, 0), max_rank=4) == {1, 5}
    assert choice("max-rank", LOGITS, cached=(4, 5), max_rank=4) == {1, 4}  # the first is kept, then by rank
    assert choice("max-rank", LOGITS, cached=(0, 4), used=3, max_rank=5) == {0, 1, 4}
    assert choice("max-rank", LOGITS, cached=(0, 4), used=3, max_rank=5, top_j=2) == {1, 2, 4}
    assert choice("max-rank", LOGITS, cached=(3,), max_rank=100) == {1, 3}


def test_max_rank_looks_at_twice_the_choice_unless_told() -> None:
    assert choice("max-rank", LOGITS, cached=(5,)) == {1, 5}  # rank 4 of 2 x 2
    assert choice("max-rank", LOGITS, cached=(0,)) == {1, 2}  # rank 5


def test_cumulative_looks_at_the_ranks_that_reach_the_sum() -> None:
    logits = np.log([0.1, 0.4, 0.25, 0.15, 0.1])  # by rank: 1 2 3 0 4
    assert choice("cumulative", logits, cached=(3,), mass=0.6) == {1, 2}  # .4 + .25 reach it
    assert choice("cumulative", logits, cached=(3,), mass=0.7) == {1, 3}
    assert choice("cumulative", logits, cached=(0,), mass=0.7) == {1, 2}
    assert choice("cumulative", logits, cached=(4,), mass=1.0) == {1, 4}
    assert choice("cumulative", logits, cached=(4, 0), used=3, mass=1.0, top_j=2) == {0, 1, 2}


def test_cache_prior_adds_a_share_of_the_range() -> None:
    """The range is 5. Expert 4 is 1 below expert 2: it needs more than a fifth."""
    assert choice("cache-prior", LOGITS, cached=(4,), bonus=0.19) == {1, 2}
    assert choice("cache-prior", LOGITS, cached=(4,), bonus=0.2) == {1, 2}  # a tie goes to the higher rank
    assert choice("cache-prior", LOGITS, cached=(4,), bonus=0.21) == {1, 4}
    assert choice("cache-prior", LOGITS, cached=(3, 5), bonus=1) == {1, 5}
    assert choice("cache-prior", LOGITS, cached=(3, 5), bonus=1, top_j=2) == {1, 2}


def test_cache_prior_has_the_mean_range_of_the_tokens_so_far() -> None:
    token = Token(make("cache-prior", bonus=0.5), [0.0, 8.0, 4.0, 3.0], cached=(3,))
    assert token.choice() == {1, 3}  # half of 8
    token.show([0.0, 8.0, 4.0, 3.0], 2)
    assert token.choice() == {1, 3}
    token.show([0.0, 2.0, 1.9, 0.0], 2)  # mean 6: 3 more for expert 3
    assert token.choice() == {1, 3}
    fresh = Token(make("cache-prior", bonus=0.5), [0.0, 2.0, 1.9, 0.0], cached=(3,))
    assert fresh.choice() == {1, 2}  # its own range is 2: 1 more


@pytest.mark.parametrize("name", BY_RANK)
def test_more_that_are_kept_than_chosen_is_refused(name: str) -> None:
    with pytest.raises(PluginError) as found:
        make(name, top_j=3).groups(sparse(6, 2))
    assert str(found.value) == "top_j=3: the model chooses 2 experts for a token; set top_j to at most 2"
    assert make(name, top_j=2).groups(sparse(6, 2))


@pytest.mark.parametrize("name", BY_RANK)
def test_a_model_that_ranks_by_more_than_logits_is_refused(name: str) -> None:
    """DeepSeek-V3 adds a bias for the choice; there is no rank beyond the chosen then."""
    with pytest.raises(PluginError, match="ranks experts by more than the router's logits; choose router, router-k or"):
        choice(name, LOGITS, chosen=[1, 4])
    assert choice("router", LOGITS, chosen=[1, 4]) == {1, 4}


@pytest.mark.parametrize("name", BY_RANK)
def test_the_rounding_of_a_model_is_no_reason_to_refuse_it(name: str) -> None:
    """Experts 0 and 1 have equal probabilities after rounding, and the model takes the lower number."""
    logits = [1.0, 1.0000001, 5.0, 0.0]
    assert choice(name, logits, chosen=[2, 0]) == {0, 2}


# ---------------------------------------------------------------------- what must hold


@st.composite
def tokens(draw: Any) -> dict[str, Any]:
    count = draw(st.integers(1, 12))
    used = draw(st.integers(1, count))
    logits = draw(st.lists(st.floats(-8, 8, width=16), min_size=count, max_size=count))
    return {"logits": logits, "used": used, "cached": draw(st.sets(st.integers(0, count - 1)))}


def first(token: dict[str, Any], k: int) -> list[int]:
    logits = token["logits"]
    return sorted(range(len(logits)), key=lambda expert: (-logits[expert], expert))[:k]


@given(tokens())
def test_without_effect_they_are_the_router(token: dict[str, Any]) -> None:
    own = set(first(token, token["used"]))
    assert choice("router", **token) == own
    assert choice("router-k", **token, k=token["used"]) == own
    assert choice("drop-cold", **token, factor=0) == own
    assert choice("cache-prior", **token, bonus=0) == own
    assert choice("max-rank", **token, max_rank=token["used"]) == own
    assert choice("cumulative", **token, mass=1e-9) == own
    for name in BY_RANK:
        assert choice(name, **token, top_j=token["used"]) == own


@given(tokens(), st.floats(0, 1), st.integers(1, 12))
def test_with_everything_or_nothing_cached_they_are_the_router(
    token: dict[str, Any], share: float, max_rank: int
) -> None:
    own = set(first(token, token["used"]))
    for cached in (set(), set(range(len(token["logits"])))):
        shown = token | {"cached": cached}
        assert choice("cache-prior", **shown, bonus=share) == own
        assert choice("max-rank", **shown, max_rank=max_rank) == own
        assert choice("cumulative", **shown, mass=max(share, 1e-3)) == own
        if cached:
            assert choice("drop-cold", **shown, factor=2 * share) == own


@given(tokens(), st.floats(0, 1), st.integers(1, 12), st.data())
def test_the_size_is_the_models_and_the_first_ranks_stay(
    token: dict[str, Any], share: float, max_rank: int, data: Any
) -> None:
    top_j = data.draw(st.integers(1, token["used"]))
    kept, own = set(first(token, top_j)), set(first(token, token["used"]))
    parameters = {
        "cache-prior": {"bonus": share}, "max-rank": {"max_rank": max_rank}, "cumulative": {"mass": max(share, 1e-3)},
    }  # fmt: skip
    for name in BY_RANK:
        taken = choice(name, **token, **parameters[name], top_j=top_j)
        assert len(taken) == token["used"]
        assert kept <= taken
        assert taken - own <= token["cached"], "who steps in is cached"
        assert len(taken & token["cached"]) >= len(own & token["cached"])


@given(tokens(), st.integers(1, 12), st.data())
def test_max_rank_is_its_plain_twin(token: dict[str, Any], max_rank: int, data: Any) -> None:
    top_j, order = data.draw(st.integers(1, token["used"])), first(token, len(token["logits"]))
    taken = order[:top_j]
    taken += [expert for expert in order[:max_rank] if expert in token["cached"] and expert not in taken]
    taken += [expert for expert in order if expert not in taken]
    assert choice("max-rank", **token, max_rank=max_rank, top_j=top_j) == set(taken[: token["used"]])


@given(tokens(), st.floats(0.01, 1))
def test_cumulative_is_max_rank_with_the_window_of_the_sum(token: dict[str, Any], mass: float) -> None:
    order = first(token, len(token["logits"]))
    powers = [math.exp(token["logits"][expert] - max(token["logits"])) for expert in order]
    sums = np.cumsum(powers) / sum(powers)
    if np.abs(sums - mass).min() < 1e-9:  # at the edge rounding decides
        return
    window = int(np.argmax(sums >= mass)) + 1 if sums[-1] >= mass else len(order)
    assert choice("cumulative", **token, mass=mass) == choice("max-rank", **token, max_rank=window)


@given(tokens(), st.integers(0, 64))
def test_cache_prior_is_its_plain_twin(token: dict[str, Any], sixtyfourths: int) -> None:
    """In steps of 1/64 the sums are exact, so ties are ties."""
    bonus, logits = sixtyfourths / 64, token["logits"]
    if any(value * 2**20 % 1 for value in logits):  # halves below 2^-20 would round
        return
    order = first(token, len(logits))
    span = max(logits) - min(logits)
    score = {e: logits[e] + bonus * span * (e in token["cached"] or e == order[0]) for e in order}
    best = sorted(order, key=lambda expert: (-score[expert], order.index(expert)))
    assert choice("cache-prior", **token, bonus=bonus) == set(best[: token["used"]])


@given(tokens(), st.floats(0, 3))
def test_drop_cold_is_its_plain_twin(token: dict[str, Any], factor: float) -> None:
    own, k = first(token, token["used"]), token["used"]
    weights = softmax(np.array([token["logits"][expert] for expert in own])).astype(np.float32)
    limit = np.float32(factor) / np.float32(k)
    taken = {e for e, weight in zip(own, weights, strict=True) if e in token["cached"] or weight >= limit}
    assert choice("drop-cold", **token, factor=factor) == taken | {own[int(np.argmax(weights))]}


@given(st.lists(st.lists(st.integers(0, 9), min_size=4, max_size=4, unique=True), min_size=1, max_size=9), st.data())
def test_masks_of_many_tokens_are_those_of_each(rows: list[list[int]], data: Any) -> None:
    sizes = [data.draw(st.integers(1, 4)) for _ in rows]
    block = np.array([row[:size] + [-1] * (4 - size) for row, size in zip(rows, sizes, strict=True)], np.int64)
    for policy in (make("router"), make("router-k", k=3)):
        token = Token(policy, np.zeros(10), used=4, chosen=rows[0])
        single = []
        for row, size in zip(rows, sizes, strict=True):
            token.show(np.zeros(10), 4, chosen=row[:size])
            single.append(token.choice())
        token.ctx.begin(np.random.default_rng(0), None)
        token.ctx.signals = {"experts": block}
        masks = policy.masks(token.ctx)
        assert masks is not None
        assert masks.dtype == bool
        assert masks.shape == (len(rows), 10)
        assert [set(np.flatnonzero(mask).tolist()) for mask in masks] == single


@pytest.mark.parametrize("name", CACHE_AWARE)
def test_those_that_look_at_the_cache_say_so(name: str) -> None:
    """No rule that must know the future can serve them, and they have no masks of many tokens."""
    token = Token(make(name), LOGITS)
    assert make(name).masks(token.ctx) is None
    token.ctx.begin(np.random.default_rng(0), None)
    with pytest.raises(BlindError):
        token.policy.select(token.ctx)


# ---------------------------------------------------------------------- measured


@pytest.mark.skipif("HWSIM_MEASURED_DATA" not in os.environ, reason="HWSIM_MEASURED_DATA names no folder")
@pytest.mark.parametrize(
    ("file", "name", "parameters", "avoided", "given_up"),
    [
        ("qwen", "drop-cold", {"factor": 1.0}, 0.66, 0.095),
        ("qwen", "drop-cold", {"factor": 0.75}, 0.37, 0.044),
        ("qwen", "router-k", {"k": 5}, 0.23, 0.106),
        ("qwen", "router-k", {"k": 3}, 0.59, 0.368),
        ("gptoss", "drop-cold", {"factor": 1.0}, None, 0.25),
        ("gptoss", "router-k", {"k": 1}, None, 0.42),
    ],
)
def test_what_bigmoeonedge_says_that_it_saves(
    file: str, name: str, parameters: dict[str, Any], avoided: float | None, given_up: float
) -> None:
    """Shares of reads and of router weight on decoded tokens, with the phone's own cache flags (docs/expert-dropping.md)."""
    path = Path(os.environ["HWSIM_MEASURED_DATA"]) / "bigmoe" / f"2026-07-15-route-trace_{file}.route.csv"
    with path.open() as lines:
        rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    decoded = [row for row in rows if row["phase"] == "1"]
    used = 1 + max(int(row["slot"]) for row in decoded)
    columns = {
        key: np.array([float(row[key]) for row in decoded]).reshape(-1, used)
        for key in ("expert", "weight", "residency")
    }
    policy, reads, own_reads, kept = make(name, **parameters), 0, 0, 0.0
    for chosen, weights, flags in zip(columns["expert"].astype(np.int64), *list(columns.values())[1:], strict=True):
        cached = set(chosen[flags > 0].tolist())
        taken = Token(policy, np.zeros(128), cached, used, chosen=chosen, weights=weights).choice()
        reads, own_reads = reads + len(taken - cached), own_reads + len(set(chosen.tolist()) - cached)
        kept += float(weights[np.isin(chosen, list(taken))].sum())
    assert avoided is None or 1 - reads / own_reads == pytest.approx(avoided, abs=0.005)
    assert 1 - kept / columns["weight"].sum() == pytest.approx(given_up, abs=0.005)

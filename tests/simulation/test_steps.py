"""Steps of several members, prompts in the caches and caches of experts against a plain twin."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from hwsim.masking.counts import Counts, Served
from hwsim.masking.observers import Observer
from hwsim.masking.scan import scan
from hwsim.memory.groups import Place
from hwsim.policy import Context, Group, Policy
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.simulation.replay import count, replay
from hwsim.simulation.run import Run
from hwsim.simulation.settings import Settings
from hwsim.testing import SMALL_MODEL
from hwsim.trace import Sequence, Trace
from tests.conftest import flat_profile, write_trace
from tests.runs import run_of
from tests.simulation import step_twin as twin
from tests.simulation.routes import Routed, write

RULES = ("lru", "lfu", "fifo", "lfru", "belady", "belady-bypass")
BLIND = ("belady", "belady-bypass")
few = hypothesis_settings(max_examples=40, suppress_health_check=list(HealthCheck))


class Contents(Observer):
    """Keeps the masks of decoding, and what each cache holds at the end."""

    def __init__(self) -> None:
        self.held: dict[tuple[int, int], set[int]] = {}
        self.masks_of: dict[tuple[int, int, int], set[int]] = {}

    def masks(self, place: Place, token: int, served: Served) -> None:
        for number, mask in enumerate(served.units, token):
            self.masks_of[number, place.layer, place.slot] = set(np.flatnonzero(mask).tolist())

    def cached(self, place: Place, cached: np.ndarray) -> None:
        self.held[place.layer, place.slot] = set(np.flatnonzero(cached).tolist())


class Case:
    """A made-up router trace, and how it is replayed."""

    def __init__(self, draw: Any) -> None:
        rng = np.random.default_rng(draw(st.integers(0, 10**6)))
        self.layers, self.experts = draw(st.integers(1, 3)), draw(st.integers(2, 7))
        self.used = draw(st.integers(1, min(3, self.experts)))
        self.sequences = [
            (prompt + decoded, prompt)
            for prompt, decoded in draw(
                st.lists(st.tuples(st.integers(0, 5), st.integers(1, 7)), min_size=1, max_size=4)
            )
        ]
        tokens = sum(tokens for tokens, _ in self.sequences)
        logits = rng.normal(size=(self.layers, tokens, self.experts)).astype(np.float32)
        for token in range(1, tokens):  # correlated, so that there are hits
            logits[:, token] = np.float32(0.7) * logits[:, token - 1] + logits[:, token]
        self.logits = logits
        chosen = np.argsort(-logits, axis=2, kind="stable")[:, :, : self.used].astype(np.int64)
        if self.used > 1:
            chosen[rng.random(chosen.shape[:2]) < 0.2, -1] = -1
        self.chosen = chosen
        self.weights = rng.random(chosen.shape).astype(np.float32)
        self.sizes = draw(st.lists(st.integers(1, 9), min_size=self.layers, max_size=self.layers))
        self.accepted = rng.random(tokens) < draw(st.sampled_from([0.0, 0.5, 1.0]))
        self.scope = draw(st.sampled_from(["matrix", "layer", "global"]))
        self.cache = draw(st.integers(0, self.experts * sum(self.sizes) + 5))
        self.options = draw(
            st.sampled_from([
                {}, {"lockstep": 2}, {"lockstep": 3}, {"speculate": 1, "accept": "trace"},
                {"speculate": 3, "accept": "trace"}, {"speculate": 2, "accept": 0.5, "seed": 3},
            ])
        ) | draw(st.sampled_from([{}, {"keep_cache": True}]))  # fmt: skip
        self.prefill = draw(st.sampled_from([{"prefill": "dense"}, {}, {"prefill_chunk": 1}, {"prefill_chunk": 3}]))

    @contextmanager
    def trace(self) -> Iterator[Trace]:
        with tempfile.TemporaryDirectory() as folder:
            routed = Routed(
                self.experts, self.sizes, [0] * self.layers, self.chosen, self.sequences, None, self.weights,
                self.accepted, self.logits,
            )  # fmt: skip
            with Trace(write(Path(folder) / "t.npz", routed)) as opened:
                yield opened

    def run(self, trace: Trace, policy: str, rule: str, **parameters: Any) -> Run:
        settings = Settings(cache=self.cache, cache_scope=self.scope, **self.options, **self.prefill)
        return run_of(trace, flat_profile(), POLICIES.make(policy, parameters)[1], EVICTIONS.make(rule)[1], settings)

    def steps(self) -> list[twin.Step]:
        rng = np.random.default_rng(self.options.get("seed", 0))
        flags = self.options.get("accept") == "trace"

        def right(drafts: int, rows: list[int]) -> list[bool]:
            draws = rng.random(drafts)
            return [bool(self.accepted[row]) for row in rows] if flags else [draw < 0.5 for draw in draws]

        return twin.steps_of(
            self.sequences, prompts=self.prefill.get("prefill") != "dense", chunk=self.prefill.get("prefill_chunk"),
            lockstep=self.options.get("lockstep", 1), drafts=self.options.get("speculate", 0), right=right,
            keep="keep_cache" in self.options,
        )  # fmt: skip

    def rounds(self, rule: str) -> list[tuple[twin.EventCache, list[int]]]:
        layers = list(range(self.layers))
        whole = [self.experts * size for size in self.sizes]

        def cache(size: int) -> twin.EventCache:
            return twin.EventCache(size, rule, lambda unit: self.sizes[unit[0]])

        if self.scope == "global":
            return [(cache(self.cache), layers)]
        share = self.cache // self.layers
        if self.scope == "layer":
            return [(cache(min(share, whole[layer])), [layer]) for layer in layers]
        return [(cache(min(share, whole[layer]) // self.sizes[layer] * self.sizes[layer]), [layer]) for layer in layers]

    def ranks(self, layer: int, row: int) -> list[int]:
        return [int(expert) for expert in self.chosen[layer, row] if expert >= 0]

    def choose(self, policy: str, layer: int, row: int, cached: set[int], state: dict[str, Any]) -> list[int]:
        own = self.ranks(layer, row)
        if policy == "router":
            return own
        if policy == "router-k":
            return own[:1]
        if policy == "drop-cold":
            weights = self.weights[layer, row, : len(own)]
            largest = int(np.argmax(weights))
            least = np.float32(0.9) / np.float32(self.used)
            return [e for at, e in enumerate(own) if e in cached or weights[at] >= least or at == largest]
        logits = self.logits[layer, row].astype(float).tolist()
        others = sorted(set(range(self.experts)) - set(own), key=lambda e: (-logits[e], e))
        state["ranges"] = [*state.get("ranges", []), max(logits) - min(logits)]
        mean = sum(state["ranges"]) / len(state["ranges"])
        order = own + others
        bonus = {e: 0.4 * mean * (e in cached or at == 0) for at, e in enumerate(order)}
        best = sorted(order, key=lambda e: (-(logits[e] + bonus[e]), order.index(e)))[: len(own)]
        return sorted(set(best) - set(own)) + [e for e in own if e in best]


POLICY_PARAMETERS = {"router": {}, "router-k": {"k": 1}, "drop-cold": {"factor": 0.9}, "cache-prior": {"bonus": 0.4}}


@st.composite
def cases(draw: Any) -> Case:
    return Case(draw)


def compare(run: Run, steps: list[twin.Step], served: dict[Any, twin.Served], rounds: Any, slot_of: Any) -> Contents:
    """Hold every event and the final contents against the twin's."""
    contents = Contents()
    counts = count(run, [contents])
    decoded = [number for number, step in enumerate(steps) if step.emitted]
    prompts = [number for number, step in enumerate(steps) if not step.emitted]
    assert counts.tokens == len(decoded)
    assert (counts.prompt is None) == (not prompts)
    assert run.steps.emitted.tolist() == [step.emitted for step in steps]
    for numbers, part in ((decoded, counts), (prompts, counts.prompt)):
        for at, number in enumerate(numbers):
            for _, places in rounds:
                for place in places:
                    layer, slot = slot_of(place)
                    expected = served[number, place]
                    assert part is not None
                    assert part.requests[at, layer, slot] == len(expected.units)
                    assert part.hits[at, layer, slot] == len(expected.hits), (number, place)
                    assert part.used is None or part.used[at, layer, slot] == expected.used
                    if part.used is None:
                        assert expected.used == len(expected.units)
                    if part is counts:
                        assert contents.masks_of[at, layer, slot] == {unit_of(unit) for unit in expected.units}
    return contents


def unit_of(unit: Any) -> int:
    return unit[1] if isinstance(unit, tuple) else unit


@pytest.mark.parametrize("policy", POLICY_PARAMETERS)
@pytest.mark.parametrize("rule", RULES)
@given(case=cases())
@few
def test_experts_are_served_as_by_the_twin(policy: str, rule: str, case: Case) -> None:
    if rule in BLIND and policy in ("drop-cold", "cache-prior"):
        return
    steps, rounds = case.steps(), case.rounds(rule)

    def choose(layer: int, row: int, cached: set[int], state: dict[str, Any]) -> list[tuple[int, int]]:
        return [(layer, expert) for expert in case.choose(policy, layer, row, cached, state)]

    served = twin.replay(
        steps, rounds, choose, lambda layer, row: [(layer, expert) for expert in case.ranks(layer, row)],
        lambda cache, layer: {expert for own, expert in cache.held if own == layer}, foresight=rule in BLIND,
    )  # fmt: skip
    with case.trace() as trace:
        run = case.run(trace, policy, rule, **POLICY_PARAMETERS[policy])
        contents = compare(run, steps, served, rounds, lambda layer: (layer, 0))
        for cache, layers in rounds:
            for layer in layers:
                assert contents.held[layer, 0] == {expert for own, expert in cache.held if own == layer}
        result = replay(run)
        missed = {
            bool(steps[number].emitted): 0 for number in range(len(steps))
        } | {True: 0}  # fmt: skip
        for (number, layer), event in served.items():
            missed[bool(steps[number].emitted)] += case.sizes[layer] * (len(event.units) - len(event.hits))
        assert result.flash_bytes == missed[True]
        assert (result.prompt is None) == (False not in missed)
        assert result.prompt is None or result.prompt.flash_bytes == missed[False]
        assert result.tokens == sum(tokens - prompt for tokens, prompt in case.sequences)


@given(case=cases(), rule=st.sampled_from(sorted(EVICTIONS.names())))
@few
def test_bytes_are_conserved_whatever_the_rule(case: Case, rule: str) -> None:
    alone = rule not in (*RULES, "random", "lfu-aged", "none")
    case.scope = "matrix" if alone else case.scope
    contents = Contents()
    with case.trace() as trace:
        run = case.run(trace, "router", rule)
        counts = count(run, [contents])
        plans = run.placement.plans
        for part in [counts, *([counts.prompt] if counts.prompt else [])]:
            asked = part.requests * plans.table(lambda plan: plan.unit_bytes)
            assert (part.hit_bytes(plans) + part.miss_bytes(plans) == asked).all()
            assert (part.hits <= part.requests).all()
        rule_of = run.eviction.admission
        for cache, layers in case.rounds("lru"):
            held = sum(case.sizes[layer] * len(contents.held[layer, 0]) for layer in layers)
            last = [
                {expert for _, row in case.steps()[-1].members for expert in case.ranks(layer, row)} for layer in layers
            ]
            event = case.sizes[layers[-1]] * len(last[-1])
            assert held <= max(cache.size, event if rule_of == "always" else 0)


@given(case=cases(), rule=st.sampled_from(["lru", "lfu", "fifo"]))
@few
def test_bypass_admits_newcomers_by_rank_alone(case: Case, rule: str) -> None:
    case.options |= {"admission": "bypass"}
    rounds = case.rounds(rule)
    for cache, _ in rounds:
        cache.bypass = True
    served = twin.replay(
        case.steps(), rounds, lambda layer, row, cached, state: [(layer, expert) for expert in case.ranks(layer, row)],
        lambda layer, row: [(layer, expert) for expert in case.ranks(layer, row)], lambda cache, layer: set(),
    )  # fmt: skip
    with case.trace() as trace:
        compare(case.run(trace, "router", rule), case.steps(), served, rounds, lambda layer: (layer, 0))


@given(case=cases(), scope=st.sampled_from(["matrix", "layer", "global"]), rule=st.sampled_from(["lru", "lfu", "fifo"]))
@few
def test_a_step_of_one_token_is_what_the_driver_of_tokens_does(case: Case, scope: str, rule: str) -> None:
    case.options, case.prefill, case.scope = {}, {"prefill": "dense"}, scope
    for policy, parameters in POLICY_PARAMETERS.items():
        one, other = Contents(), Contents()
        with case.trace() as trace:
            run = case.run(trace, policy, rule, **parameters)
            steps, tokens = count(run, [one]), scan(trace, run.sequences, run.masking, observers=[other])
        assert (steps.requests == tokens.requests).all()
        assert (steps.hits == tokens.hits).all()
        assert one.masks_of == other.masks_of
        assert one.held == other.held


def same(first: Counts, second: Counts) -> bool:
    return bool((first.requests == second.requests).all() and (first.hits == second.hits).all())


@given(case=cases(), rule=st.sampled_from(["lru", "lfu", "belady"]))
@few
def test_a_batch_of_identical_sequences_reads_as_one(case: Case, rule: str) -> None:
    case.options = {}
    tokens, prompt = case.sequences[0]
    for name in ("chosen", "weights", "logits"):
        setattr(case, name, np.tile(getattr(case, name)[:, :tokens], (1, 3, 1)))
    case.accepted, case.sequences = np.tile(case.accepted[:tokens], 3), [(tokens, prompt)] * 3
    with case.trace() as trace:
        case.prefill = {"prefill": "dense"}
        alone = count(case.run(trace, "router", rule))
        case.options = {"lockstep": 3}
        batch = count(case.run(trace, "router", rule))
    assert same(batch, alone.part(slice(0, batch.tokens)))
    assert (batch.used == 3 * batch.requests).all()


@given(case=cases())
@few
def test_a_union_is_no_smaller_than_its_largest_member_and_no_larger_than_their_sum(case: Case) -> None:
    with case.trace() as trace:
        run = case.run(trace, "router", "lru")
        counts, steps = count(run), run.steps.part(~run.steps.prompts)
    for step in range(len(steps)):
        for layer in range(case.layers):
            members = [len(case.ranks(layer, row)) for row in steps.rows[steps.members(step)]]
            assert max(members) <= counts.requests[step, layer, 0] <= sum(members)


@pytest.mark.parametrize("accept", [0, "trace"])
@given(case=cases(), drafts=st.integers(1, 4))
@few
def test_no_accepted_draft_is_plain_decoding_with_wasted_reads(accept: Any, case: Case, drafts: int) -> None:
    case.options, case.accepted = {}, np.zeros_like(case.accepted)
    with case.trace() as trace:
        plain = case.run(trace, "cache-prior", "lru", bonus=0)
        case.options = {"speculate": drafts, "accept": accept}
        wasted = case.run(trace, "cache-prior", "lru", bonus=0)
        one, other = Contents(), Contents()
        before, after = count(plain, [one]), count(wasted, [other])
        assert replay(plain).tokens == replay(wasted).tokens
    assert before.tokens == after.tokens
    assert (before.requests <= after.requests).all()
    for at, mask in one.masks_of.items():
        assert mask <= other.masks_of[at]


@given(case=cases(), drafts=st.integers(1, 4))
@few
def test_accepted_drafts_are_decoded_once(case: Case, drafts: int) -> None:
    case.options = {}
    with case.trace() as trace:
        plain = count(case.run(trace, "router", "lru"))
        case.options = {"speculate": drafts, "accept": 1}
        run = case.run(trace, "router", "lru")
        verified = count(run)
        assert replay(run).tokens == plain.tokens
    assert verified.tokens == sum(-(-(tokens - prompt) // (1 + drafts)) for tokens, prompt in case.sequences)
    used = verified.requests if verified.used is None else verified.used
    assert used.sum() == plain.requests.sum()


class Counting(Policy):
    """Asks for the experts by a count of the tokens so far, and by random numbers."""

    def groups(self, model: Any) -> list[Group]:
        return [Group("experts", axis="expert", slices=["experts.expert"], needs=["experts"])]

    def select(self, ctx: Context) -> np.ndarray:
        ctx.state.setdefault("seen", []).append(ctx.token)
        assert ctx.state["seen"] == list(range(ctx.token + 1))
        mask = np.zeros(ctx.units, bool)
        mask[[len(ctx.state["seen"]) % ctx.units, int(ctx.rng.integers(ctx.units))]] = True
        return mask


@pytest.mark.parametrize("accept", [0, 0.5, 1])
@given(case=cases(), drafts=st.integers(1, 3))
@few
def test_the_state_of_a_policy_forgets_rejected_drafts(accept: float, case: Case, drafts: int) -> None:
    case.options = {}
    with case.trace() as trace:
        masks = []
        for options in ({}, {"speculate": drafts, "accept": accept}):
            settings = Settings(cache=case.cache, prefill="dense", **options)
            run = run_of(trace, flat_profile(), Counting(), EVICTIONS.make("lru")[1], settings)
            seen = Contents()
            count(run, [seen])
            masks.append((seen.masks_of, run.steps))
    (plain, single), (drafted, steps) = masks
    row_of = {int(row): number for number, row in enumerate(single.rows)}
    for number in range(len(steps)):
        members = steps.rows[steps.members(number)][: steps.emitted[number]]
        for layer in range(case.layers):  # what is accepted is what plain decoding asks for
            for row in members.tolist():
                assert plain[row_of[row], layer, 0] <= drafted[number, layer, 0]


# ------------------------------------------------------------------ rows and columns

DENSE_OPTIONS = st.sampled_from([
    {"lockstep": 2}, {"speculate": 2, "accept": 0.5}, {"prefill": "cached"}, {"prefill": "cached", "prefill_chunk": 2},
    {"keep_cache": True}, {"keep_cache": True, "lockstep": 2, "prefill": "cached"},
])  # fmt: skip
LENGTHS = [(9, 4), (5, 0), (7, 2)]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trace]:
    sequences = [Sequence(tokens=tokens, prompt=prompt) for tokens, prompt in LENGTHS]
    path = write_trace(tmp_path_factory.mktemp("dense") / "t.npz", SMALL_MODEL, sequences)
    with Trace(path) as opened:
        yield opened


@pytest.mark.parametrize("policy", ["dip", "dip-ca"])
@pytest.mark.parametrize("rule", ["lru", "lfu", "fifo", "belady"])
@given(options=DENSE_OPTIONS, cache=st.integers(0, 60_000))
@hypothesis_settings(max_examples=8, suppress_health_check=list(HealthCheck))
def test_rows_and_columns_are_served_as_by_the_twin(
    dense: Trace, policy: str, rule: str, options: dict[str, Any], cache: int
) -> None:
    if policy == "dip-ca" and rule == "belady":
        return
    parameters = {"gamma": 0.5} if policy == "dip-ca" else {}
    run = run_of(
        dense, flat_profile(), POLICIES.make(policy, parameters)[1], EVICTIONS.make(rule)[1],
        Settings(cache=cache, **options),
    )  # fmt: skip
    places = run.placement.plans.places()
    rng = np.random.default_rng(0)
    steps = twin.steps_of(
        LENGTHS, prompts=options.get("prefill") == "cached", chunk=options.get("prefill_chunk"),
        lockstep=options.get("lockstep", 1), drafts=options.get("speculate", 0), keep=options.get("keep_cache", False),
        right=lambda drafts, rows: [bool(draw < 0.5) for draw in rng.random(drafts)],
    )  # fmt: skip

    def choose(place: Place, row: int, cached: set[int], state: Any) -> list[int]:
        values = abs(dense.read(place.layer, place.plan.group.needs[0], row, row + 1)[0])
        scores = [
            float(value if policy == "dip" or unit in cached else value * np.float32(0.5))
            for unit, value in enumerate(values)
        ]
        return sorted(range(place.plan.units), key=lambda unit: (-scores[unit], unit))[: place.plan.k]

    rounds = [(Units(place.plan.capacity, rule), [place]) for place in places]
    served = twin.replay(
        steps, rounds, choose, lambda place, row: list(range(place.plan.units)), lambda cache, place: cache.held,
        foresight=rule == "belady",
    )  # fmt: skip
    contents = compare(run, steps, served, rounds, lambda place: (place.layer, place.slot))
    for cache_, (place,) in rounds:
        assert contents.held[place.layer, place.slot] == cache_.held


class Units(twin.UnitCache):
    """Serves the units of a step in any order."""

    def serve(self, order: Any) -> set[int]:
        return super().serve(set(order))

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


@given(case=cases(), rule=st.sampled_from(EVICTIONS.names()))
@few
def test_bytes_are_conserved_whatever_the_rule(case: Case, rule: str) -> None:
    alone = rule not in (*RULES, "random", "lfu-aged", "none")
    case.scope = "matrix" if alone else case.scope
    with case.trace() as trace:
        run = case.run(trace, "router", rule)
        counts = count(run)
        plans = run.placement.plans
        for part in [counts, *([counts.prompt] if counts.prompt else [])]:
            asked = part.requests * plans.table(lambda plan: plan.unit_bytes)
            assert (part.hit_bytes(plans) + part.miss_bytes(plans) == asked).all()
            assert (part.hits <= part.requests).all()

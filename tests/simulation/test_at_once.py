"""Steps that are served at once: the same counts and the same contents as those served one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from hwsim.masking import at_once
from hwsim.masking.counts import Counts
from hwsim.masking.observers import Observer
from hwsim.memory.groups import Place
from hwsim.policy import Context, PluginError
from hwsim.simulation.plugins import POLICIES
from hwsim.simulation.replay import count
from hwsim.simulation.run import Run
from tests.conftest import flat_profile
from tests.runs import run_of
from tests.simulation.test_steps import Case, cases

pytest.importorskip("numba", reason="the compiled loop needs the extra `fast`")

few = hypothesis_settings(max_examples=60, suppress_health_check=list(HealthCheck))
Router: Any = POLICIES.find("router")[1]


class Held(Observer):
    """Keeps what each cache holds at the end."""

    def __init__(self) -> None:
        self.held: list[tuple[int, int, list[int]]] = []

    def cached(self, place: Place, cached: np.ndarray) -> None:
        self.held.append((place.layer, place.slot, np.flatnonzero(cached).tolist()))


def counted(run: Run, monkeypatch: pytest.MonkeyPatch, events: int) -> tuple[Counts, Held, list[bool]]:
    """The counts of a run of which `events` events are served at once; 0: none."""
    held, used = Held(), []
    original = at_once.AtOnce.serve

    def serve(self: Any, episode: range) -> Any:
        yield from original(self, episode)
        used.append(self.knows)

    with monkeypatch.context() as patch:
        patch.setattr(at_once, "worth_compiling", lambda *_: events > 0)
        patch.setattr(at_once, "_EVENTS", events)
        patch.setattr(at_once.AtOnce, "serve", serve)
        return count(run, [held]), held, used


def same(first: Counts, second: Counts) -> bool:
    for name in ("requests", "hits", "used"):
        a, b = getattr(first, name), getattr(second, name)
        if (a is None) != (b is None) or (a is not None and not np.array_equal(a, b)):
            return False
    if first.prompt is None or second.prompt is None:
        return first.prompt is second.prompt
    return same(first.prompt, second.prompt)


@few
@given(cases(), st.sampled_from(["lru", "lfu", "fifo", "belady", "lfru"]), st.sampled_from([1, 5, 1000]))
@pytest.mark.parametrize("policy", ["router", "router-k", "drop-cold"])
def test_at_once_is_one_by_one(policy: str, case: Case, rule: str, events: int) -> None:
    if policy == "drop-cold" and rule == "belady":
        return
    with pytest.MonkeyPatch.context() as patch, case.trace() as trace:
        run = case.run(trace, policy, rule)
        plain, before, _ = counted(run, patch, 0)
        ours, after, used = counted(case.run(trace, policy, rule), patch, events)
        assert same(plain, ours)
        assert before.held == after.held
        if policy == "drop-cold" or rule == "lfru":
            assert not used
        elif case.scope == "global" and case.cache >= 1 and "speculate" not in case.options:
            assert used
            assert all(used)


class Sometimes(Router):  # type: ignore[misc]
    """Decides many tokens at once, unless the first of them is odd."""

    def masks(self, ctx: Context) -> np.ndarray | None:
        return None if ctx.signals["experts"][0, 0] % 2 else super().masks(ctx)


@few
@given(cases(), st.sampled_from(["lru", "belady"]), st.sampled_from([1, 5, 1000]))
def test_a_policy_may_refuse_to_decide_at_once(case: Case, rule: str, events: int) -> None:
    with pytest.MonkeyPatch.context() as patch, case.trace() as trace:
        wanted, before, _ = counted(case.run(trace, "router", rule), patch, 0)
        run = case.run(trace, "router", rule)
        ours = run_of(trace, flat_profile(), Sometimes(), run.eviction, run.settings)
        found, after, _ = counted(ours, patch, events)
        assert same(wanted, found)
        assert before.held == after.held


class Peeks(Router):  # type: ignore[misc]
    """Reads the cache where the masks of many tokens are decided."""

    def masks(self, ctx: Context) -> np.ndarray | None:
        assert ctx.cached is not None
        return super().masks(ctx)


@few
@given(cases(), st.sampled_from([0, 1000]))
def test_masks_of_many_tokens_may_not_depend_on_the_cache(case: Case, events: int) -> None:
    case.options = {}
    with pytest.MonkeyPatch.context() as patch, case.trace() as trace:
        run = case.run(trace, "router", "lru")
        peeking = run_of(trace, flat_profile(), Peeks(), run.eviction, run.settings)
        with pytest.raises(PluginError, match=r"masks\(\).*reads ctx.cached, but masks\(\) decides many tokens"):
            counted(peeking, patch, events)

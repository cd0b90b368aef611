"""Tasks on small models: run whole, or their requests alone, in loops whose caches evict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="tasks need the extra `record`")
pytest.importorskip("lm_eval", reason="tasks need the extra `tasks`")

from hwsim.closed_loop import Candidate, TaskSettings, evaluate_tasks
from hwsim.closed_loop.harness import build_requests, load_tasks
from hwsim.closed_loop.masking import ClosedLoop
from hwsim.memory.placement import GroupPlan, place, plan_groups
from hwsim.model.shape import Bits
from hwsim.record.extras import libraries
from hwsim.record.hooks import find_layers
from hwsim.record.loading import read_structure
from hwsim.record.sources import find_source
from hwsim.simulation.metrics import TaskEvaluation
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.simulation.replay import Settings
from tests.conftest import flat_profile

TASKS = Path(__file__).parent / "tasks"
SCORED = ("persuasion_endings", "persuasion_letters", "persuasion_sentences")
ALL = (*SCORED, "persuasion_names")
QUESTIONS = 4  # of each task


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What datasets makes of data files stays in the tests' folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.getbasetemp() / "datasets"))


def run(
    model: Path, names: tuple[str, ...], policies: dict[str, dict[str, Any]], eviction: str = "lfu", **options: Any
) -> list[TaskEvaluation]:
    candidates = [Candidate(name, POLICIES.make(name, fields)[1]) for name, fields in policies.items()]
    tasks = TaskSettings(names, **({"folder": TASKS, "limit": QUESTIONS} | options))
    rule = EVICTIONS.make(eviction)[1]
    return evaluate_tasks(str(model), tasks, flat_profile(), candidates, rule, settings=Settings(dram="70%"))


def requests_of(*names: str) -> dict[str, list[Any]]:
    found = load_tasks(list(names), TASKS, None, lambda done, total: None)
    return build_requests(found, QUESTIONS)[0]


def loop_of(
    model: Any, folder: Path, policy: str, sink: Any = None, fields: dict[str, Any] | None = None
) -> tuple[ClosedLoop, tuple[GroupPlan, ...]]:
    """A policy with caches that evict, on a model."""
    shape = read_structure(find_source(str(folder)), libraries()).shape
    made = POLICIES.make(policy, fields or {})[1]
    plans = place(plan_groups(made.groups(shape), shape, Bits()), shape, Bits(), "70%", 64, 0).groups
    layers = find_layers(model, shape.num_hidden_layers)[1]
    rule = EVICTIONS.make("lfu")[1]
    return ClosedLoop(layers, shape, made, plans, rule, name=policy, seed=3, sink=sink), plans


def silent() -> None:
    return None

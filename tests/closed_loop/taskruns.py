"""Tasks on small models: run whole, or their requests alone, in loops whose caches evict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="tasks need the extra `record`")
pytest.importorskip("lm_eval", reason="tasks need the extra `tasks`")

from hwsim.closed_loop import TaskSettings, evaluate_tasks
from hwsim.closed_loop.harness import build_requests, load_tasks
from hwsim.closed_loop.masking import ClosedLoop
from hwsim.masking.observers import Observer
from hwsim.memory.groups import Plans
from hwsim.simulation.metrics import TaskEvaluation
from hwsim.simulation.run import Conditions
from hwsim.simulation.settings import Settings
from tests.closed_loop.loops import candidate, masking_of, rule, shape_of
from tests.conftest import flat_profile
from tests.record.conftest import layers_in

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
    candidates = [candidate(name, **fields) for name, fields in policies.items()]
    tasks = TaskSettings(names, **({"folder": TASKS, "limit": QUESTIONS} | options))
    return evaluate_tasks(str(model), tasks, conditions(Settings(dram="70%"), eviction), candidates)


def conditions(settings: Settings, eviction: str = "lfu") -> Conditions:
    """On a flat device."""
    return Conditions(flat_profile(), rule(eviction), settings)


def requests_of(*names: str, questions: int = QUESTIONS) -> dict[str, list[Any]]:
    found = load_tasks(list(names), TASKS, None, lambda done, total: None)
    return build_requests(found, questions)[0]


def loop_of(
    model: Any, folder: Path, policy: str, *observers: Observer, longest: int = 64, seed: int = 3
) -> tuple[ClosedLoop, Plans]:
    """A policy with caches that evict, on a model."""
    shape, settings = shape_of(folder), Settings(dram="70%", seed=seed)
    masking = masking_of(candidate(policy).policy, shape, longest, settings, name=policy)
    return ClosedLoop(layers_in(model), masking, observers), masking.plans


def silent() -> None:
    return None

"""Short trainings of adapters, and what a model is worth with one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="training needs the extra `train`")
pytest.importorskip("peft", reason="training needs the extra `train`")

from hwsim.record import Settings as Reading
from hwsim.simulation.metrics import Evaluation
from hwsim.simulation.run import Conditions
from hwsim.simulation.settings import Settings
from hwsim.train.lora import Target, Trained, train_lora
from hwsim.train.trainer import Training
from tests.closed_loop.loops import candidate, rule
from tests.conftest import flat_profile
from tests.runs import evaluate

SMALL = Training(tokens=192, validation=48, context=24, batch=2, rank=4, learning_rate=5e-3, every=2)
READING = Reading(tokens=56, context=24)


def train(
    folder: Path, model: Path, policy: str = "dip", training: Training = SMALL, *, fields: dict[str, Any] | None = None,
    overwrite: bool = False, progress: Callable[[str, int, int], None] | None = None,
) -> Trained:  # fmt: skip
    conditions = Conditions(flat_profile(), rule(), Settings(dram="70%"))
    return train_lora(
        Target(folder, overwrite), str(model), "persuasion", conditions, candidate(policy, **fields or {}), training,
        progress=progress,
    )  # fmt: skip


def judge(model: Path, lora: Path | None, policy: str = "dip", *, merged: bool = False, batch: int = 1) -> Evaluation:
    return judge_all(model, lora, (policy,), merged=merged, batch=batch)[0]


def judge_all(
    model: Path, lora: Path | None, policies: tuple[str, ...], *, merged: bool = False, batch: int = 1
) -> list[Evaluation]:
    """Several policies, which share a dense pass."""
    settings, candidates = Settings(dram="70%", lora=lora, lora_merged=merged), [candidate(name) for name in policies]
    return evaluate(model, "persuasion", flat_profile(), candidates, rule(), READING, settings, batch=batch)


@pytest.fixture(scope="session")
def adapters(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A trained adapter for a model of each shape of MLP."""
    root = tmp_path_factory.mktemp("adapters")
    made = {family: root / family for family in ("llama", "phi3", "opt")}
    for family, folder in made.items():
        train(folder, checkpoints[family])
    return made

"""Short trainings of adapters, and what a model is worth with one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="training needs the extra `train`")
pytest.importorskip("peft", reason="training needs the extra `train`")

from hwsim.closed_loop import Candidate, evaluate
from hwsim.record import Settings as Reading
from hwsim.simulation.metrics import Evaluation
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.simulation.replay import Settings
from hwsim.train.lora import Trained, train_lora
from hwsim.train.trainer import Training
from tests.conftest import flat_profile

SMALL = Training(tokens=192, validation=48, context=24, batch=2, rank=4, learning_rate=5e-3, every=2)
READING = Reading(tokens=56, context=24)


def train(
    folder: Path, model: Path, policy: str = "dip", training: Training = SMALL, *, fields: dict[str, Any] | None = None,
    overwrite: bool = False, progress: Callable[[str, int, int], None] | None = None,
) -> Trained:  # fmt: skip
    candidate = Candidate(policy, POLICIES.make(policy, fields or {})[1])
    return train_lora(
        folder, str(model), "persuasion", flat_profile(), candidate, EVICTIONS.make("lfu")[1], training,
        settings=Settings(dram="70%"), overwrite=overwrite, progress=progress,
    )  # fmt: skip


def judge(model: Path, lora: Path | None, policy: str = "dip", *, merged: bool = False, batch: int = 1) -> Evaluation:
    candidate = Candidate(policy, POLICIES.make(policy)[1])
    settings = Settings(dram="70%", lora=lora, lora_merged=merged)
    rule = EVICTIONS.make("lfu")[1]
    return evaluate(str(model), "persuasion", flat_profile(), [candidate], rule, READING, settings, batch=batch)[0]


@pytest.fixture(scope="module")
def adapters(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A trained adapter for a model of each shape of MLP."""
    root = tmp_path_factory.mktemp("adapters")
    made = {family: root / family for family in ("llama", "phi3", "opt")}
    for family, folder in made.items():
        train(folder, checkpoints[family])
    return made

"""What runs a model gives on a GPU what it gives on a CPU; skipped where torch sees none.

Sums on a GPU are made in another order, so values agree to rounding and not to the bit. What decides on them (a top-k in
float16) may then differ in single units.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="recording needs the extra `record`")

import torch

from hwsim.closed_loop import generate
from hwsim.closed_loop.generation import Writing
from hwsim.record import Settings as Reading
from hwsim.record import record
from hwsim.simulation.metrics import Evaluation
from hwsim.simulation.run import Conditions
from hwsim.simulation.settings import Settings
from hwsim.trace import Trace
from tests.closed_loop.loops import candidate, rule
from tests.conftest import flat_profile
from tests.record.conftest import FAMILIES, checkpoints, smollm2
from tests.runs import evaluate

__all__ = ["checkpoints", "smollm2"]

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")


def compare(one: Path, other: Path) -> None:
    """Two traces of one model differ by what rounding leaves."""
    with Trace(one) as a, Trace(other) as b:
        assert a.model == b.model
        assert a.header.sequences == b.header.sequences
    with np.load(one) as left, np.load(other) as right:
        assert left.files == right.files
        for name in left.files:
            if name == "header":
                continue
            if left[name].dtype.kind != "f":
                assert (left[name] == right[name]).all(), name
                continue
            x, y = (np.nan_to_num(each[name].astype(float)) for each in (left, right))  # a first token has no loss
            assert np.abs(x - y).max() <= 4e-3 * max(np.abs(x).max(), 1e-3), name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_recording(family: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    for device in ("cpu", "cuda"):
        record(tmp_path / f"{device}.npz", str(checkpoints[family]), settings=Reading(80, 40, device=device))
    compare(tmp_path / "cpu.npz", tmp_path / "cuda.npz")


def test_a_recording_is_the_same_twice_and_resumes(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    def stop(phase: str, done: int, total: int) -> None:
        if phase == "recording" and done >= 60:
            raise KeyboardInterrupt

    model, settings = str(checkpoints["llama"]), Reading(80, 20, device="cuda")
    record(tmp_path / "a.npz", model, settings=settings)
    with pytest.raises(KeyboardInterrupt):
        record(tmp_path / "b.npz", model, settings=settings, progress=stop)
    assert record(tmp_path / "b.npz", model, settings=settings).resumed >= 20
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def judge(model: str, device: str, policy: str, **more: Any) -> Evaluation:
    reading = Reading(tokens=more.pop("tokens", 96), context=more.pop("context", 48), device=device, **more)
    settings = Settings(dram="70%")
    return evaluate(model, "persuasion", flat_profile(), [candidate(policy)], rule(), reading, settings)[0]


@pytest.mark.parametrize("policy", ["dip", "dip-ca", "magnitude"])
def test_a_closed_loop(policy: str, checkpoints: dict[str, Path]) -> None:
    for family in ("llama", "phi3"):
        cpu, gpu = (judge(str(checkpoints[family]), device, policy) for device in ("cpu", "cuda"))
        assert gpu.dense_perplexity == pytest.approx(cpu.dense_perplexity, rel=1e-4)
        assert gpu.perplexity == pytest.approx(cpu.perplexity, rel=2e-2)


def test_the_real_model(smollm2: Path, tmp_path: Path) -> None:
    for device in ("cpu", "cuda"):
        settings = Reading(64, 64, device=device, dtype="float32")
        record(tmp_path / f"{device}.npz", str(smollm2), settings=settings)
    compare(tmp_path / "cpu.npz", tmp_path / "cuda.npz")
    # rounding decides between nearly equal activations, and all later layers feel it: docs/explanation/limits.md
    for policy in ("dip", "dip-ca"):
        cpu, gpu = (
            judge(str(smollm2), device, policy, tokens=256, context=128, dtype="float32") for device in ("cpu", "cuda")
        )
        assert gpu.dense_perplexity == pytest.approx(cpu.dense_perplexity, rel=1e-4)
        assert gpu.perplexity == pytest.approx(cpu.perplexity, rel=0.1)
        assert gpu.hit_rate == pytest.approx(cpu.hit_rate, abs=0.01)


def test_a_generation(checkpoints: dict[str, Path]) -> None:
    conditions, model = Conditions(flat_profile(), rule(), Settings(dram="70%")), str(checkpoints["llama"])
    made = [
        generate(model, "Sir Walter Elliot", conditions, candidate("dip-ca"), Writing(12), Reading(device=device))
        for device in ("cpu", "cuda")
    ]
    assert made[0].text[:1] == made[1].text[:1]
    assert re.search(r"\S", made[1].text)


def test_predictors_are_trained(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    from hwsim.train.predictor import Settings as Training
    from hwsim.train.predictor import train

    record(tmp_path / "t.npz", str(checkpoints["llama"]), settings=Reading(192, 48))
    for device in ("cpu", "cuda"):
        train(tmp_path / f"{device}.npz", tmp_path / "t.npz", Training(device=device))
    with np.load(tmp_path / "cpu.npz") as cpu, np.load(tmp_path / "cuda.npz") as gpu:
        assert cpu.files == gpu.files


def test_an_adapter_is_trained(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="training needs the extra `train`")
    from hwsim.train.lora import Target, train_lora
    from hwsim.train.trainer import Training

    conditions = Conditions(flat_profile(), rule(), Settings(dram="70%"))
    training = Training(tokens=192, validation=48, context=24, batch=2, rank=4, learning_rate=5e-3, every=2)
    kl = []
    for device in ("cpu", "cuda"):
        made = train_lora(
            Target(tmp_path / device), str(checkpoints["llama"]), "persuasion", conditions, candidate("dip"), training,
            Reading(device=device),
        )  # fmt: skip
        kl.append([look.kl for look in made.curve])
    assert kl[0] == pytest.approx(kl[1], rel=5e-2)

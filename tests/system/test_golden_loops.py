"""Closed loops decide the masks that are committed, and a recording holds the signals that are committed.

The golden is written by ``python -m tests.system.golden.make loops`` and never by a test. That command also changes the
weights by a millionth, three times, and goes on only if all masks stay what they are: no scores are so near to each
other that another processor or version of torch would order them otherwise. So masks must be identical everywhere.

What torch computes, a loss or a signal, is compared bit for bit where torch rounds as it did for the golden, which the
logits of a checkpoint show without hwsim. Elsewhere losses may differ by a ten-thousandth, and one in a hundred values
of a signal by one step of float16.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="closed loops need the extra `record`")
pytest.importorskip("transformers", reason="closed loops need the extra `record`")

import hwsim
from tests.system import compare
from tests.system.checkpoints import arithmetic
from tests.system.loops import LOOPS, checkpoints, loop, recorded
from tests.system.run import GOLDEN as FOLDER
from tests.system.run import INPUTS, read

pytestmark = pytest.mark.xdist_group("golden loops")
GOLDEN = read("loops.json")
ARITHMETIC = GOLDEN.pop("arithmetic")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def same(models: Path) -> bool:
    """Whether torch rounds as it did for the golden."""
    return arithmetic(models / "llama") == ARITHMETIC


def test_every_loop_has_a_golden_result() -> None:
    assert list(GOLDEN) == list(LOOPS)


@pytest.mark.parametrize("name", LOOPS)
def test_the_loop_is_the_golden_one(name: str, models: Path, same: bool, tmp_path: Path) -> None:
    found = loop(LOOPS[name], models, tmp_path / "masks.npz")
    compare.check(GOLDEN[name]["masks"], found["masks"])
    compare.check(GOLDEN[name]["result"], found["result"], 0.0 if same else 1e-4)


def test_python_gives_the_result_of_the_command_line(models: Path, same: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(INPUTS)
    result: dict[str, Any] = hwsim.closed_loop(
        models / "llama", "rich.yaml", "dip-ca", text="text.txt", tokens=48, context=24, prompt=3, dram="80%",
        eviction="lru",
    ).plain()  # fmt: skip
    golden = GOLDEN["llama, dip-ca, lru"]["result"]
    compare.check(golden, result, 0.0 if same else 1e-4)


def test_the_recording_is_the_golden_one(models: Path, same: bool, tmp_path: Path) -> None:
    found = recorded(models, tmp_path / "recorded.npz")
    with np.load(FOLDER / "recorded.npz") as archive:
        golden = {name: archive[name] for name in archive.files}
    assert list(found) == list(golden)
    for name, values in golden.items():
        now = found[name]
        if name == "header":  # later versions add fields
            compare.check(json.loads(str(values)), json.loads(str(now)))
            continue
        assert (now.dtype, now.shape) == (values.dtype, values.shape), name
        if same or values.dtype.kind != "f":
            assert now.tobytes() == values.tobytes(), name  # losses hold NaN
        elif values.dtype == np.float16:
            steps = np.abs(now.astype(np.float32) - values.astype(np.float32)) / np.spacing(np.abs(values))
            assert steps.max() <= 1 and np.mean(steps > 0) <= 0.01, name
        else:
            np.testing.assert_allclose(now, values, rtol=1e-4, err_msg=name)

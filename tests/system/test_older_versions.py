"""An older hwsim and the traces of today: it reads those of plain models, and refuses others in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hwsim.model.catalog import known_shape
from hwsim.model.layers import LayerShape
from hwsim.model.shape import ModelShape
from hwsim.trace.synth import synthesize
from hwsim.util.files import data_folder
from tests.conftest import REPOSITORY

OLD = "82dddd5"  # hwsim 0.1.0
PLAIN = known_shape("smollm2-135m").model_copy(update={"num_hidden_layers": 2, "vocab_size": 100})


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources of version 0.1.0."""
    folder = tmp_path_factory.mktemp("old")
    parts = ["hwsim", "policies", "hw_profiles", "traces"]
    archive = subprocess.run(["git", "-C", str(REPOSITORY), "archive", OLD, *parts], capture_output=True, check=False)
    if archive.returncode:
        pytest.skip("the history of the repository is not here")
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    version = run(folder, "--version")
    assert "0.1.0" in version.stdout
    return folder


def _env(folder: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{folder / 'policies'}", "COLUMNS": "200"}


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hwsim", *map(str, arguments)],
        cwd=folder,
        env=_env(folder),
        capture_output=True,
        text=True,
        check=False,
    )


def replayed(folder: Path, trace: Path) -> subprocess.CompletedProcess[str]:
    return run(folder, "replay", trace, "--hw", "pixel8", "--dram", "70%", "--policy", "dip-ca", "--json", "-")


def test_a_trace_of_a_plain_model_is_read_with_the_same_numbers(old: Path, tmp_path: Path) -> None:
    synthesize(tmp_path / "t.npz", PLAIN, 20, signals=["input", "glu"])
    found = [replayed(folder, tmp_path / "t.npz") for folder in (old, REPOSITORY)]
    assert [done.returncode for done in found] == [0, 0]
    before, after = (json.loads(done.stdout) for done in found)
    assert {key: after[key] for key in before.keys() - {"provenance", "notes"}} == {
        key: before[key] for key in before.keys() - {"provenance", "notes"}
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"lm_head_parameters": 50, "outside_parameters": 7},
        {"inner_norm": True},
        {"layers": (LayerShape(attention="window", window=4, kv_elements=384, macs_per_entry=1152, num_attention_heads=9,
                               num_key_value_heads=3, head_dim=64, intermediate_size=1536),) * 2},
    ],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_what_it_would_count_wrongly_is_refused_in_one_line(old: Path, tmp_path: Path, changes: dict) -> None:
    model = ModelShape(**{**dict(PLAIN), **changes})
    synthesize(tmp_path / "t.npz", model, 20, signals=["input", "glu"])
    assert replayed(REPOSITORY, tmp_path / "t.npz").returncode == 0
    done = replayed(old, tmp_path / "t.npz")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert f"header.model.{next(iter(changes))}" in done.stderr


def test_the_sample_is_read_by_both(old: Path) -> None:
    sample = data_folder("traces") / "smollm2-135m-sample.npz"
    assert [replayed(folder, sample).returncode for folder in (old, REPOSITORY)] == [0, 0]

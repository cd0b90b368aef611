"""The same replay gives the same bytes whatever hash seed, locale, time zone or number of threads surrounds it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hwsim.trace import Sequence
from tests.conftest import write_trace

SURROUNDINGS = [
    {"PYTHONHASHSEED": "1"},
    {"PYTHONHASHSEED": "99", "LC_ALL": "C", "TZ": "Asia/Tokyo"},
    {"LC_ALL": "de_DE.UTF-8", "OMP_NUM_THREADS": "2"},
]


def replayed(trace: Path, options: list[str], surroundings: dict[str, str], threads: int = 1) -> bytes:
    words = [sys.executable, "-m", "hwsim", "replay", str(trace), "--hw", "oneplus15r", "--dram", "50%", *options]
    words += ["--threads", str(threads), "--json", "-"]
    return subprocess.run(words, env=os.environ | surroundings, capture_output=True, check=True).stdout


@pytest.mark.parametrize(
    ("tokens", "options"),
    [
        (1800, ["--policy", "dip-ca,dip"]),  # as many masks as pay for the compiled scan and its threads
        (60, ["--policy", "random", "--eviction", "random", "--overlap", "pipeline"]),
    ],
    ids=["dip-ca", "random"],
)
def test_same_bytes_in_other_surroundings(tokens: int, options: list[str], tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "t.npz", sequences=[Sequence(tokens=tokens, prompt=20)], signals=("input", "glu"))
    first = replayed(trace, options, {"PYTHONHASHSEED": "0"})
    assert len(first) > 1000
    for threads, surroundings in enumerate(SURROUNDINGS, 1):
        assert replayed(trace, options, surroundings, threads) == first, surroundings


def test_the_package_runs_as_a_module(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hwsim", "--version"], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.startswith("hwsim ")

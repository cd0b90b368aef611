"""The same replay gives the same bytes whatever hash seed, locale, time zone or number of threads surrounds it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SURROUNDINGS = [
    {"PYTHONHASHSEED": "1"},
    {"PYTHONHASHSEED": "99", "LC_ALL": "C", "TZ": "Asia/Tokyo"},
    {"LC_ALL": "de_DE.UTF-8", "OMP_NUM_THREADS": "2"},
]


def replayed(options: list[str], surroundings: dict[str, str]) -> bytes:
    words = [sys.executable, "-m", "hwsim", "replay", "sample", "--hw", "oneplus15r", "--dram", "50%", *options]
    done = subprocess.run([*words, "--json", "-"], env=os.environ | surroundings, capture_output=True, check=True)
    return done.stdout


@pytest.mark.parametrize(
    "options",
    [["--policy", "dip-ca,dip"], ["--policy", "random", "--eviction", "random", "--overlap", "pipeline"]],
    ids=["dip-ca", "random"],
)
def test_same_bytes_in_other_surroundings(options: list[str]) -> None:
    first = replayed(options, {"PYTHONHASHSEED": "0"})
    assert len(first) > 1000
    for surroundings in SURROUNDINGS:
        assert replayed(options, surroundings) == first, surroundings
    assert replayed([*options, "--threads", "2"], {}) == first


def test_the_package_runs_as_a_module(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hwsim", "--version"], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.startswith("hwsim ")

"""A sweep stores the results that are committed, under the keys that are committed.

A key is the hash of all that decides a result, the source of the plug-ins and the version of hwsim among it. Here the
plug-ins are files in tests/system/golden/inputs, which import `hwsim.policy` and `hwsim.evictions` only, and the
version is the one of the golden. So a key changes only where hwsim names or computes differently what it is made of,
and then no store that users have is of use any more.

The golden is written by ``python -m tests.system.golden.make store`` and never by a test.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.system import compare
from tests.system.run import INPUTS, read, run_json, swept

GOLDEN = read("store.json")
RELATIVE = 0.0 if GOLDEN.pop("arithmetic") == compare.arithmetic() else compare.RELATIVE
VERSION = GOLDEN.pop("version")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, Any]:
    return swept(folder / "runs.db", VERSION)


def test_the_keys_are_the_golden_ones(runs: dict[str, Any]) -> None:
    assert len(GOLDEN) == 72
    lost, new = GOLDEN.keys() - runs.keys(), runs.keys() - GOLDEN.keys()
    assert not lost and not new, f"{len(lost)} of {len(GOLDEN)} keys are gone, {len(new)} are new"


def test_the_results_are_the_golden_ones(runs: dict[str, Any]) -> None:
    """Whatever their keys are: the runs are in the order of the grids."""
    assert sum("groups" in result for result in GOLDEN.values()) == 12
    compare.check(list(GOLDEN.values()), list(runs.values()), RELATIVE)


def test_the_command_shows_what_is_stored(runs: dict[str, Any], folder: Path) -> None:
    shown = run_json(f"runs {folder / 'runs.db'}")["results"]
    assert len(shown) == len(runs)
    assert all(result in runs.values() for result in shown)


def test_content_decides_the_key_and_names_do_not(folder: Path) -> None:
    """Of a run of the first grid, with its files in another folder: else equal keys would prove little."""
    files = {"small.npz": "other.npz", "rich.yaml": "other.yaml"}
    for name in ("small.npz", "rich.yaml", "nearest_policy.py", "steady_eviction.py"):
        shutil.copy(INPUTS / name, folder / files.get(name, name))
    arguments = "--trace other.npz --hw other.yaml --policy nearest_policy.py --eviction steady_eviction.py --dram 65%"

    def key(number: int, version: str = VERSION) -> str:
        (found,) = swept(folder / f"{number}.db", version, arguments, folder)
        return found

    assert key(1) in GOLDEN
    assert key(2, VERSION + ".1") not in GOLDEN
    with (folder / "nearest_policy.py").open("a") as file:
        file.write("# a comment\n")
    assert key(3) not in GOLDEN

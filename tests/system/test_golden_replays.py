"""Replays of frozen traces on frozen devices give the results that are committed, bit for bit.

The golden results are written by ``python -m tests.system.golden.make replays`` and never by a test. A difference is
a changed result: either a mistake, or a change that must be explained in docs/log.md.

All of it goes through the command line. Results are compared key by key with the rules of `tests.system.compare`:
further keys are allowed, the version of hwsim and the hashes of plug-ins' sources are left out. Where numpy computes
exponentials or products otherwise than on the machine of the golden, floats may differ by 1e-12 of their size; counts
must be equal everywhere.
"""

from __future__ import annotations

import copy

import pytest

from tests.system import compare
from tests.system.replays import REPLAYS
from tests.system.run import read, run_json

GOLDEN = read("replays.json")
RELATIVE = 0.0 if GOLDEN.pop("arithmetic") == compare.arithmetic() else compare.RELATIVE


def test_every_replay_has_a_golden_result() -> None:
    assert list(GOLDEN) == REPLAYS


@pytest.mark.parametrize("line", REPLAYS, ids=REPLAYS)
def test_the_result_is_the_golden_one(line: str) -> None:
    compare.check(GOLDEN[line], run_json(f"replay {line}"), RELATIVE)


def test_the_number_of_threads_changes_nothing() -> None:
    """Of the golden results themselves."""
    lines = [line for line in REPLAYS if "--threads 1" in line]
    assert lines
    for line in lines:
        compare.check(GOLDEN[line], GOLDEN[line.replace("--threads 1", "--threads 2")])


def test_the_comparison_tells_each_difference_by_its_path() -> None:
    golden = GOLDEN[REPLAYS[1]]
    assert compare.differences(golden, copy.deepcopy(golden)) == []
    result = copy.deepcopy(golden) | {"added": 1}
    result["provenance"]["hwsim"] = "other"
    result["provenance"]["policy"]["sha256"] = None
    assert compare.differences(golden, result) == []
    result["groups"][2]["hits"] += 1
    result["time_s"]["total"] *= 1 + 2**-52
    result["tokens"] = float(golden["tokens"])
    del result["busy_s"]["flash"]
    result["notes"].append("more")
    result["provenance"]["policy"]["name"] = "other"
    paths = [text.partition(":")[0] for text in compare.differences(golden, result)]
    expected = ["busy_s.flash", "groups[2].hits", "notes", "provenance.policy.name", "time_s.total", "tokens"]
    assert sorted(paths) == expected
    assert "time_s.total" not in " ".join(compare.differences(golden, result, relative=1e-12))

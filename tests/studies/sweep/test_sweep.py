"""Sweeps: the same results as single replays, kept once by all that makes them, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hwsim.device.profile import load_profile
from hwsim.errors import SettingError
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.simulation.settings import Settings
from hwsim.studies.sweep.backends import run_tasks
from hwsim.trace import Trace
from tests.conftest import write_trace
from tests.runs import replay
from tests.studies.sweep.grid import content, grid, here, run, swept

__all__ = ["here"]


# ---------------------------------------------------------------------- the results


def test_results_are_those_of_single_replays(here):
    found, results = swept("runs.db", grid())
    assert (found.done, found.stored, found.failed) == (5, 0, [])
    expected = []
    with Trace(here / "t.npz") as trace:
        for name, fields in [("dense", {}), *((n, {"density": d}) for n in ("dip", "dip-ca") for d in (0.5, 0.7))]:
            policy, rule = POLICIES.make(name, fields)[1], EVICTIONS.make("lfu")[1]
            settings = Settings(dram="60%")
            expected.append(
                replay(
                    trace, load_profile("pixel8"), policy, rule, settings, policy_name=name, eviction_name="lfu"
                ).plain()
            )
    assert results == json.loads(json.dumps(expected))


def test_the_second_time_nothing_is_run(here):
    first, results = swept("runs.db", grid())
    again, same = swept("runs.db", grid())
    assert (again.done, again.stored, again.keys, same) == (0, 5, first.keys, results)
    more, _ = swept("runs.db", grid(density=[0.5, 0.6, 0.7]))
    assert (more.done, more.stored) == (2, 5)


def test_processes_find_the_same(here):
    swept("one.db", grid())
    swept("two.db", grid(), jobs=2)
    assert content("one.db") == content("two.db")


def test_what_is_asked_for_twice_is_run_once(here):
    found, _ = swept("runs.db", grid(dram=["60%", "60%"]) + grid())
    assert (found.done, len(found.keys)) == (5, 5)


def test_a_renamed_trace_is_the_same_a_changed_one_is_not(here):
    swept("runs.db", grid())
    (here / "t.npz").rename(here / "u.npz")
    assert swept("runs.db", grid(trace="u.npz"))[0].done == 0
    write_trace(here / "u2.npz", seed=1)
    assert swept("runs.db", grid(trace="u2.npz"))[0].done == 5


@pytest.fixture(scope="module")
def plain_keys(tmp_path_factory):
    """Keys of a sweep, to be held against those of others."""
    folder = tmp_path_factory.mktemp("plain")
    trace = write_trace(folder / "t.npz")
    return set(swept(folder / "runs.db", grid(policy="dip-ca", trace=str(trace)))[0].keys)


@pytest.mark.parametrize(
    "change",
    [
        {"hw": "oneplus12"}, {"dram": "70%"}, {"eviction": "lru"}, {"overlap": "group"}, {"timing": "closed-form"},
        {"bits": "mlp=8"}, {"kv_tokens": 1000}, {"seed": 1}, {"per_token": True}, {"set": {"dip-ca.gamma": 0.3, "dip.weighted": False}},
        {"block": 2}, {"cache_scope": "layer", "eviction": "lru"}, {"cache_shares": "traffic"}, {"admission": "bypass"},
    ],
)  # fmt: skip
def test_every_setting_is_part_of_the_key(here, plain_keys, change):
    second = set(
        swept(
            "runs.db", grid(policy="dip-ca", **{k: ({"gamma": 0.3} if k == "set" else v) for k, v in change.items()})
        )[0].keys
    )
    assert len(plain_keys) == len(second) == 2
    assert plain_keys.isdisjoint(second)


def test_the_file_of_a_policy_is_part_of_the_key(here):
    text = (
        "from hwsim.policy import *\nimport numpy as np\nclass Mine(Policy):\n    '''Mine.'''\n"
        "    def groups(self, model):\n        return [Group('down', axis='neuron', slices=['down.column'], keep=0.5, needs=['glu'])]\n"
        "    def score(self, ctx):\n        return np.abs(ctx.signals['glu'])\n"
    )
    (here / "mine.py").write_text(text)
    first = swept("runs.db", grid(policy="mine.py"))[0].keys
    (here / "mine.py").write_text(text + "# changed\n")
    second = swept("runs.db", grid(policy="mine.py"))[0].keys
    assert len(first) == len(second) == 1
    assert first != second


# ---------------------------------------------------------------------- the command


def test_the_command_and_what_it_keeps(here):
    options = (
        "--trace",
        "t.npz",
        "--hw",
        "pixel8",
        "--policy",
        "dip,dip-ca",
        "--set",
        "gamma=0.2,0.5",
        "--dram",
        "60%",
        "-o",
        "runs.db",
        "--jobs",
        1,
    )
    code, out, err = run("sweep", *options, "--json", "found.json")
    assert code == 0
    assert "gamma" in out
    assert "3 run now, 0 stored before, 0 failed; all in runs.db" in err
    written = json.loads(Path("found.json").read_text())
    assert (written["format"], len(written["results"])) == ("hwsim-results", 3)
    code, out, _ = run("runs", "runs.db", "--where", "policy=dip-ca", "--json", "-")
    assert code == 0
    assert [row["provenance"]["policy"]["parameters"]["gamma"] for row in json.loads(out)["results"]] == [0.2, 0.5]
    code, _, err = run("runs", "runs.db", "--where", "colour=red")
    assert code == 1
    assert err.startswith("hwsim: --where colour: no run has such a setting")
    code, out, _ = run("runs", "runs.db", "--where", "gamma=0.5", "--json", "-")  # dip, which has none, is there, too
    assert (code, len(json.loads(out)["results"])) == (0, 1)
    code, out, err = run("runs", "runs.db", "--limit", 2)
    assert "3 runs, 1 more than are shown" in err
    assert len(out.strip().splitlines()) == 1 + 1 + 1 + 2  # what all share, a gap, the heads, two rows
    for where, found in (("policy=dip-ca", 2), ("gamma=0.2", 1), ("policy=dip", 1), ("policy=dense", 0)):
        assert f"{found} runs" in run("runs", "runs.db", "--where", where)[2]


def test_the_command_fails_where_a_run_does(here):
    code, _, err = run(
        "sweep",
        "--trace",
        "t.npz",
        "--hw",
        "pixel8",
        "--policy",
        "magnitude",
        "--density",
        "0.4,0.5,0.8",
        "-o",
        "r.db",
        "--jobs",
        1,
    )
    assert code == 1
    assert "1 run now, 0 stored before, 2 failed; all in r.db" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--trace", "t.npz", "--hw", "pixel8", "--policy", "dip", "-o", "t.npz"),
            "t.npz: cannot be written: the command reads it",
        ),
        (
            ("--trace", "t.npz", "--hw", "pixel8", "--policy", "dip", "-o", "r.db", "--json", "r.db"),
            "r.db: cannot be written",
        ),
        (
            ("--trace", "t.npz", "--policy", "dip", "-o", "r.db"),
            "options: hw is missing; a sweep needs hw, policy, and trace or model",
        ),
        (
            ("--trace", "t.npz", "--hw", "pixel8", "--policy", "dip", "-o", "r.db", "--address", "tcp://x:1"),
            "--address tcp://x:1: is for --backend",
        ),
    ],
)
def test_what_the_command_refuses(here, options, message):
    code, _, err = run("sweep", *options)
    assert code == 1
    assert err.startswith(f"hwsim: {message}")
    assert len(err.splitlines()) == 1


def test_an_unknown_backend_is_told():
    with pytest.raises(SettingError, match="--backend cloud: must be one of local, dask, ray"):
        run_tasks([], print, jobs=1, backend="cloud")

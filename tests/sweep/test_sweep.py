"""Sweeps: the same results as single replays, kept once, whatever dies in between."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hwsim.cli.app import app
from hwsim.errors import OutputError, SettingError
from hwsim.plugins import EVICTIONS, POLICIES
from hwsim.profile import load_profile
from hwsim.simulation import Settings, replay
from hwsim.sweep import Store, make_spec, sweep
from hwsim.sweep.backends import run_tasks
from hwsim.sweep.runs import expand
from hwsim.sweep.work import Task, perform
from hwsim.trace import Trace
from tests.conftest import write_trace

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def here(tmp_path, monkeypatch):
    write_trace(tmp_path / "t.npz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def grid(**change):
    least = {
        "trace": "t.npz",
        "hw": "pixel8",
        "policy": ["dense", "dip", "dip-ca"],
        "density": [0.5, 0.7],
        "dram": "60%",
    }
    return [make_spec(least | change, "here")]


def swept(path, specs, **options):
    path = Path(path)
    with Store(path) as store:
        found = sweep(specs, store, **options)
        return found, list(store.results(found.keys))


def content(path):
    """All that a store holds but when and how long."""
    with sqlite3.connect(path, timeout=60) as db:
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'runs'").fetchone():
            return []  # it is just being made
        return db.execute("SELECT key, request, result FROM runs ORDER BY key").fetchall()


def process(*arguments, cwd, wait=True):
    command = [sys.executable, "-c", "from hwsim.cli import main; main()", *map(str, arguments)]
    started = subprocess.Popen(
        command,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        # where the tests run in the background of a shell, SIGINT is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    if not wait:
        return started
    out, err = started.communicate(timeout=120)
    return started.returncode, out, err


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


@pytest.mark.parametrize(
    "change",
    [
        {"hw": "oneplus12"}, {"dram": "70%"}, {"eviction": "lru"}, {"overlap": "group"}, {"timing": "closed-form"},
        {"bits": "mlp=8"}, {"kv_tokens": 1000}, {"seed": 1}, {"per_token": True}, {"set": {"dip-ca.gamma": 0.3, "dip.weighted": False}},
        {"block": 2}, {"cache_scope": "layer", "eviction": "lru"}, {"cache_shares": "traffic"}, {"admission": "bypass"},
    ],
)  # fmt: skip
def test_every_setting_is_part_of_the_key(here, change):
    first = set(swept("runs.db", grid(policy="dip-ca"))[0].keys)
    second = set(
        swept(
            "runs.db", grid(policy="dip-ca", **{k: ({"gamma": 0.3} if k == "set" else v) for k, v in change.items()})
        )[0].keys
    )
    assert len(first) == len(second) == 2
    assert first.isdisjoint(second)


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


# ---------------------------------------------------------------------- what goes wrong


def test_a_run_that_fails_is_kept_and_the_others_go_on(here):
    (here / "bad.py").write_text(
        "from hwsim.policy import *\nclass Bad(Policy):\n    '''Bad.'''\n"
        "    def groups(self, model):\n        return [Group('down', axis='neuron', slices=['down.column'], keep=0.5, needs=['glu'])]\n"
        "    def score(self, ctx):\n        raise RuntimeError('no\\nsuch luck')\n"
    )
    found, results = swept("runs.db", grid(policy=["bad.py", "magnitude", "dip"]))
    assert [result["provenance"]["policy"]["name"] for result in results] == ["magnitude", "dip", "dip"]
    told = [error for _, error in found.failed]
    assert len(told) == 2
    assert all("\n" not in error for error in told)
    assert any("raised RuntimeError: no such luck" in error for error in told)
    assert any("must be above 2/3" in error for error in told)
    with Store(Path("runs.db")) as store:
        assert sorted(error for _, error in store.failures()) == sorted(told)


def test_a_failure_is_forgotten_once_the_run_succeeds(here):
    assert len(swept("runs.db", grid(trace="later.npz"))[0].failed) == 5
    write_trace(here / "later.npz")
    assert swept("runs.db", grid(trace="later.npz"))[0].done == 5
    with Store(Path("runs.db")) as store:
        assert store.failures() == []


def test_a_file_that_changes_under_the_sweep_is_told(here):
    run = next(expand(grid()))
    (outcome,) = perform(Task((("another key", run),)))
    assert outcome.result is None
    assert outcome.error == "t.npz: it, or another file of this run, changed under the sweep"


DEADLY = """
import os, pathlib, signal
from hwsim.policy import *
import numpy as np
class Deadly(Policy):
    '''Kills its process as often as the file says.'''
    density: float = Field(0.5)
    def groups(self, model):
        return [Group('down', axis='neuron', slices=['down.column'], keep=0.5, needs=['glu'])]
    def score(self, ctx):
        left = pathlib.Path('deaths')
        if left.exists() and int(left.read_text()):
            left.write_text(str(int(left.read_text()) - 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return np.abs(ctx.signals['glu'])
"""


@pytest.mark.parametrize(("deaths", "failed"), [(2, 0), (3, 1)])
def test_a_worker_that_dies_costs_its_present_run_which_is_tried_again(here, deaths, failed):
    (here / "deadly.py").write_text(DEADLY)
    (here / "deaths").write_text(str(deaths))
    specs = grid(policy=["deadly.py"], density=[0.5], dram="50%") + grid(policy="dip", dram=["60%", "70%", "80%"])
    found, results = swept("runs.db", specs, jobs=2)
    assert len(found.failed) == failed
    assert len(results) == 7 - failed
    if failed:
        assert found.failed[0][1] == "the process died 3 times (killed; out of memory?)"


def test_no_store_is_damaged_and_no_run_lost_by_ten_kills(here):
    specs = [
        "--trace",
        "t.npz",
        "--hw",
        "pixel8",
        "--policy",
        "dip,dip-ca",
        "--density",
        "0.4,0.5,0.6,0.7,0.8",
        "--dram",
        "50%,60%,70%",
    ]
    assert process("sweep", *specs, "-o", "whole.db", cwd=here)[0] == 0
    draw = random.Random(0)
    for _ in range(10):
        started = process("sweep", *specs, "-o", "killed.db", "--jobs", 2, cwd=here, wait=False)
        time.sleep(draw.uniform(0.3, 2.5))
        os.kill(started.pid, signal.SIGKILL)
        started.communicate()
        if Path("killed.db").exists():
            before = {key: rest for key, *rest in content("killed.db")}
            assert before.items() <= {key: rest for key, *rest in content("whole.db")}.items()
    code, _, err = process("sweep", *specs, "-o", "killed.db", cwd=here)
    assert code == 0, err
    assert content("killed.db") == content("whole.db")
    assert _left_over(here) == []


def test_two_sweeps_may_fill_one_store(here):
    """At the same time, half of each grid the other's: together they hold what one sweep of all holds."""
    least = ["sweep", "--trace", "t.npz", "--hw", "pixel8", "--policy", "dip,dip-ca", "--density", "0.4,0.5,0.6"]
    drams = ("50%,60%,70%", "60%,70%,80%")
    both = [process(*least, "--dram", dram, "-o", "both.db", "--jobs", 2, cwd=here, wait=False) for dram in drams]
    for started in both:
        _, err = started.communicate(timeout=240)
        assert started.returncode == 0, err
    assert process(*least, "--dram", "50%,60%,70%,80%", "-o", "one.db", cwd=here)[0] == 0
    assert content("both.db") == content("one.db")
    assert len(content("one.db")) == 24


def test_a_full_disk_is_told_and_leaves_a_whole_store(here):
    """A limit on the size of files stands for it."""
    specs = [
        "--trace",
        "t.npz",
        "--hw",
        "pixel8",
        "--policy",
        "dip",
        "--density",
        ",".join(f"{0.3 + n / 100:.2f}" for n in range(60)),
    ]
    code = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\nfrom hwsim.cli import main\nmain()"
    command = [sys.executable, "-c", code, "sweep", *specs, "-o", "runs.db", "--jobs", "1"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert done.stderr.startswith("hwsim: runs.db: cannot be read or written: ")
    assert len(done.stderr.splitlines()) == 1
    kept = content("runs.db")
    assert 0 < len(kept) < 60
    assert process("sweep", *specs, "-o", "runs.db", cwd=here)[0] == 0
    assert len(content("runs.db")) == 60
    assert set(kept) <= set(content("runs.db"))


def _left_over(folder):
    """Processes that still work in a folder, a while after their parent was killed."""
    for _ in range(50):
        found = []
        for each in Path("/proc").glob("[0-9]*"):
            try:
                if (each / "cwd").resolve() == folder.resolve() and int(each.name) != os.getpid():
                    found.append((each / "cmdline").read_bytes())
            except OSError:
                continue
        if not found:
            return []
        time.sleep(0.1)
    return found


SLOW = """
import time
from hwsim.policy import *
import numpy as np
class Slow(Policy):
    '''Takes its time, so that there is a middle.'''
    density: float = Field(0.5)
    def groups(self, model):
        return [Group('down', axis='neuron', slices=['down.column'], keep=self.density, needs=['glu'])]
    def score(self, ctx):
        time.sleep(0.003)
        return np.abs(ctx.signals['glu'])
"""


def test_ctrl_c_says_how_to_go_on(here):
    (here / "slow.py").write_text(SLOW)
    densities = ",".join(str(0.3 + n / 1000) for n in range(300))
    specs = ["--trace", "t.npz", "--hw", "pixel8", "--policy", "slow.py", "--density", densities]
    started = process("sweep", *specs, "-o", "runs.db", "--jobs", 2, cwd=here, wait=False)
    for _ in range(1200):
        time.sleep(0.1)
        if Path("runs.db").exists() and len(content("runs.db")) > 5:
            break
    os.killpg(started.pid, signal.SIGINT)  # as a terminal does: workers get it, too
    _, err = started.communicate(timeout=60)
    assert started.returncode == 130
    assert err.startswith("hwsim: interrupted; ")
    assert err.endswith(" runs are in runs.db; the same command goes on\n")
    assert len(err.splitlines()) == 1
    assert int(err.split()[2]) == len(content("runs.db"))
    assert _left_over(here) == []


# ---------------------------------------------------------------------- the store


def test_another_file_is_no_store(here):
    with pytest.raises(SettingError, match=r"t\.npz: is no store of runs"):
        Store(Path("t.npz"))
    with sqlite3.connect("other.db") as db:
        db.execute("CREATE TABLE x (y)")
    with pytest.raises(SettingError, match=r"other\.db: is no store of runs; name another file"):
        Store(Path("other.db"))
    with pytest.raises(SettingError, match=r"none\.db: no such store of runs"):
        Store(Path("none.db"), create=False)
    with pytest.raises(OutputError, match="cannot be read or written"):
        Store(here / "nowhere" / "runs.db")


def test_a_damaged_store_is_told(here):
    swept("runs.db", grid())
    data = bytearray(Path("runs.db").read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    Path("runs.db").write_bytes(data)
    with (
        pytest.raises(SettingError, match=r"runs\.db: is no store of runs, or a damaged one"),
        Store(Path("runs.db")) as store,
    ):
        list(store.results())


def test_a_store_of_another_version_is_told(here):
    swept("runs.db", grid())
    with sqlite3.connect("runs.db") as db:
        db.execute("PRAGMA user_version = 2")
    with pytest.raises(SettingError, match="is a store of version 2; this hwsim reads version 1"):
        Store(Path("runs.db"))


# ---------------------------------------------------------------------- the command


def run(*arguments):
    """Run hwsim in this process: exit code, standard output, standard error."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


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


def test_the_store_is_asked_by_columns_without_the_groups(here):
    run("sweep", "--trace", "t.npz", "--hw", "pixel8", "--policy", "dip,dip-ca", "--dram", "60%", "-o", "r.db")
    with Store(Path("r.db")) as store:
        whole = list(store.results())
        assert list(store.find()) == whole
        assert [each["provenance"]["policy"]["name"] for each in store.find(policy="dip-ca")] == ["dip-ca"]
        assert (store.count(), store.count(policy="dip"), store.count(policy="dip", device="none")) == (2, 1, 0)
        assert list(store.find(whole=False, limit=1)) == [
            {key: value for key, value in whole[0].items() if key not in ("groups", "per_token")}
        ]
        with pytest.raises(TypeError, match="no such column: colour"):
            store.count(colour="red")


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

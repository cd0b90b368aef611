"""Sweeps go on: nothing is lost or damaged, whatever fails or dies in between."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hwsim.studies.sweep import Store
from hwsim.studies.sweep.cells import expand
from hwsim.studies.sweep.work import Task, perform
from tests.conftest import write_trace
from tests.studies.sweep.grid import SLOW, content, grid, here, run, swept

__all__ = ["here"]


def process(*arguments, cwd):
    """Begin hwsim as a process of its own."""
    command = [sys.executable, "-c", "from hwsim.cli import main; main()", *map(str, arguments)]
    return subprocess.Popen(
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
    assert run("sweep", *specs, "-o", "whole.db", "--jobs", 1)[0] == 0
    draw = random.Random(0)
    for _ in range(10):
        started = process("sweep", *specs, "-o", "killed.db", "--jobs", 2, cwd=here)
        time.sleep(draw.uniform(0.3, 2.5))
        os.kill(started.pid, signal.SIGKILL)
        started.communicate()
        if Path("killed.db").exists():
            before = {key: rest for key, *rest in content("killed.db")}
            assert before.items() <= {key: rest for key, *rest in content("whole.db")}.items()
    code, _, err = run("sweep", *specs, "-o", "killed.db", "--jobs", 1)
    assert code == 0, err
    assert content("killed.db") == content("whole.db")
    assert _left_over(here) == []


def test_two_sweeps_may_fill_one_store(here):
    """At the same time, half of each grid the other's: together they hold what one sweep of all holds."""
    least = ["sweep", "--trace", "t.npz", "--hw", "pixel8", "--policy", "dip,dip-ca", "--density", "0.4,0.5,0.6"]
    drams = ("50%,60%,70%", "60%,70%,80%")
    both = [process(*least, "--dram", dram, "-o", "both.db", "--jobs", 2, cwd=here) for dram in drams]
    for started in both:
        _, err = started.communicate(timeout=240)
        assert started.returncode == 0, err
    assert run(*least, "--dram", "50%,60%,70%,80%", "-o", "one.db", "--jobs", 1)[0] == 0
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
    assert run("sweep", *specs, "-o", "runs.db", "--jobs", 1)[0] == 0
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


def test_ctrl_c_says_how_to_go_on(here):
    (here / "slow.py").write_text(SLOW)
    densities = ",".join(str(0.3 + n / 1000) for n in range(300))
    specs = ["--trace", "t.npz", "--hw", "pixel8", "--policy", "slow.py", "--density", densities]
    started = process("sweep", *specs, "-o", "runs.db", "--jobs", 2, cwd=here)
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

"""On a cluster: Dask's own scheduler and two workers, one of which is killed in the middle."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hwsim.errors import SettingError
from hwsim.studies.sweep import Store, make_spec, sweep
from tests.conftest import write_trace
from tests.studies.sweep.grid import SLOW

pytest.importorskip("distributed")
pytest.importorskip("joblib")
# the libraries' own, while workers come and go
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def cluster(tmp_path):
    """Address of a scheduler, and its workers' processes."""
    started = []

    def start(module, *arguments):
        command = [sys.executable, "-m", f"distributed.cli.{module}", *arguments]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(sys.path),
            "DASK_DISTRIBUTED__ADMIN__LOW_LEVEL_LOG_LENGTH": "0",
        }
        started.append(
            subprocess.Popen(
                command,
                cwd=tmp_path,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
        )
        return started[-1]

    start(
        "dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", "scheduler.json"
    )
    wait_for((tmp_path / "scheduler.json").exists)
    workers = [
        start(
            "dask_worker",
            "--scheduler-file",
            "scheduler.json",
            "--nthreads",
            "1",
            "--no-nanny",
            "--no-dashboard",
            "--name",
            str(number),
        )
        for number in range(2)
    ]
    from distributed import Client

    with Client(scheduler_file=str(tmp_path / "scheduler.json"), set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)
        address = client.scheduler.address
    yield address, workers
    for each in started:
        each.kill()
        each.wait()


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def content(path):
    with sqlite3.connect(path) as db:
        return db.execute("SELECT key, request, result FROM runs ORDER BY key").fetchall()


def test_a_cluster_that_loses_a_worker_finds_the_same(tmp_path, monkeypatch, cluster):
    address, workers = cluster
    monkeypatch.chdir(tmp_path)
    write_trace(tmp_path / "t.npz")
    (tmp_path / "slow.py").write_text(SLOW)
    specs = [
        make_spec({"trace": "t.npz", "hw": "pixel8", "policy": ["slow.py", "dip-ca"], "density": [0.3 + n / 50 for n in range(20)], "dram": "50%"}, "here")
    ]  # fmt: skip
    killed = []

    def kill_one():
        def some_are_done():
            try:
                return len(content("far.db")) >= 5
            except sqlite3.OperationalError:  # not there, or without its tables
                return False

        wait_for(some_are_done)
        os.killpg(workers[0].pid, signal.SIGKILL)
        killed.append(len(content("far.db")))

    killer = threading.Thread(target=kill_one)
    killer.start()
    with Store(Path("far.db")) as store:
        found = sweep(specs, store, backend="dask", address=address)
    killer.join()
    assert (found.done, found.failed) == (40, [])
    assert killed[0] < 40  # there was something left to do
    with Store(Path("near.db")) as store:
        sweep(specs, store)
    assert content("far.db") == content("near.db")


def test_a_scheduler_that_is_not_there_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_trace(tmp_path / "t.npz")
    monkeypatch.setattr("hwsim.studies.sweep.backends.CONNECT_S", 1)
    with (
        Store(Path("r.db")) as store,
        pytest.raises(SettingError, match=r"--backend dask: tcp://127\.0\.0\.1:9 cannot be reached"),
    ):
        sweep(
            [make_spec({"trace": "t.npz", "hw": "pixel8", "policy": "dip"}, "here")],
            store,
            backend="dask",
            address="tcp://127.0.0.1:9",
        )

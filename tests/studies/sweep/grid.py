"""A small grid of runs, swept in this process or by the command, and what a store holds of it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hwsim.cli.app import app
from hwsim.studies.sweep import Store, make_spec, sweep
from tests.conftest import write_trace

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


def run(*arguments):
    """Run hwsim in this process: exit code, standard output, standard error."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr

"""The command line, run in this process or in one of its own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from hwsim.cli.app import app
from tests.device.test_profile import LEAST


@pytest.fixture
def here(tmp_path, monkeypatch, small_trace):
    """An empty folder with a trace t.npz and a device flat.yaml."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(small_trace, "t.npz")
    Path("flat.yaml").write_text(LEAST)
    return tmp_path


def run(*arguments, code=0):
    """Run hwsim in this process: (standard output, standard error)."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    return done.stdout, done.stderr


def refused(*arguments):
    """The one line that a mistake is told in."""
    out, err = run(*arguments, code=1)
    assert out == ""
    assert err.endswith("\n")
    assert len(err.splitlines()) == 1, err
    assert err.startswith("hwsim: ")
    return err.removeprefix("hwsim: ").rstrip("\n")


def replay(*more, trace="t.npz", hw="flat.yaml", policy="dip"):
    return ["replay", trace, "--hw", hw, "--policy", policy, *more]


def result(*more, **other):
    return json.loads(run(*replay("--json", "-", *more, **other))[0])


def process(*arguments, cwd, **environment):
    command = [sys.executable, "-c", "from hwsim.cli import main; main()", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, env=os.environ | environment, timeout=60
    )


def rewritten(change, path="bad.npz"):
    """t.npz, written again by numpy alone with some members changed."""
    with np.load("t.npz") as file:
        members = {name: file[name] for name in file.files}
    change(members)
    np.savez(path, **members)
    return path

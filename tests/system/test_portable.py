"""Reading, replaying and comparing traces do without what only POSIX systems have, as docs/explanation/limits.md says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hwsim.studies.sweep.backends import _cause

WITHOUT = """
import os, signal, sys
for name in ("pwrite", "pread", "sched_getaffinity", "fchmod", "getuid", "geteuid"):
    delattr(os, name)
del signal.SIGKILL
for module in ("fcntl", "resource", "grp", "pwd", "termios"):
    sys.modules[module] = None
from hwsim.cli import main
main()
"""


@pytest.mark.parametrize(
    "command",
    [
        ["trace", "verify", "sample"],
        ["replay", "sample", "--hw", "pixel8", "--dram", "60%", "--policy", "dip,dip-ca", "--json", "new.json"],
        ["compare", "old.json", "old.json"],
        [
            "sweep",
            "--trace",
            "sample",
            "--hw",
            "pixel8",
            "--dram",
            "60%",
            "--policy",
            "dip",
            "--store",
            "s.db",
            "--jobs",
            "1",
        ],
    ],
    ids=lambda command: command[0],
)
def test_replays_need_no_posix(tmp_path: Path, command: list[str]) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

    def run(program: list[str], *words: str) -> subprocess.CompletedProcess[str]:
        started = [sys.executable, *program, *words]
        return subprocess.run(started, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)

    if command[0] == "compare":
        replay = ["replay", "sample", "--hw", "pixel8", "--dram", "60%", "--policy", "dip", "--json", "old.json"]
        assert run(["-m", "hwsim"], *replay).returncode == 0
    done = run(["-c", WITHOUT], *command)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert "Error" not in done.stderr


def test_causes_of_death_have_words_where_the_signal_has_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("signal.SIGKILL")
    assert [_cause(code) for code in (-9, -11, 1)] == ["killed; out of memory?", "signal 11", "exit code 1"]

"""Run ``hwsim ...`` in this process, in a folder, as the tests and `tests.system.golden.make` do alike."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from typer import testing

from hwsim.cli.app import app

GOLDEN = Path(__file__).parent / "golden"
INPUTS = GOLDEN / "inputs"
COLUMNS = "110"


# typer builds all commands anew for each run, which takes longer than most replays
command = cache(testing._get_command)


def run(arguments: list[str], folder: Path = INPUTS) -> str:
    """Standard output of a command that must succeed."""
    environment = {"COLUMNS": COLUMNS, "LINES": "50", "NO_COLOR": "1"}
    with contextlib.chdir(folder), mock.patch.object(testing, "_get_command", command):
        done = testing.CliRunner().invoke(app, arguments, env=environment)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, f"hwsim {' '.join(arguments)}: exit code {done.exit_code}\n{done.stdout}{done.stderr}"
    return done.stdout


def run_json(line: str, folder: Path = INPUTS) -> Any:
    """What ``hwsim LINE --json -`` prints."""
    return json.loads(run([*line.split(), "--json", "-"], folder))


def sha256(path: Path) -> str:
    """Of the bytes of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read(name: str) -> Any:
    """A golden file."""
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


def write(name: str, entries: dict[str, Any]) -> None:
    """Write a golden file: one line for each key of each entry, so that a change shows where it is."""
    (GOLDEN / name).write_text("\n".join(_lines(entries)) + "\n", encoding="utf-8")


def _lines(entries: dict[str, Any]) -> Iterator[str]:
    def compact(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))

    yield "{"
    for place, (key, value) in enumerate(entries.items()):
        end = "," if place < len(entries) - 1 else ""
        if isinstance(value, dict) and value:
            yield f"{compact(key)}:{{"
            yield ",\n".join(f" {compact(name)}:{compact(part)}" for name, part in value.items())
            yield f"}}{end}"
        elif isinstance(value, list) and value:
            yield f"{compact(key)}:["
            yield ",\n".join(f" {compact(part)}" for part in value)
            yield f"]{end}"
        else:
            yield f"{compact(key)}:{compact(value)}{end}"
    yield "}"

"""Run ``hwsim ...`` in this process, in a folder, as the tests and `tests.system.golden.make` do alike."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import sqlite3
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from typer import testing

import hwsim
from hwsim.cli.app import app
from hwsim.testing import SMALL_MODEL, decide
from hwsim.trace import Trace

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
    assert done.exit_code == 0, f"hwsim {' '.join(arguments)}: exit code {done.exit_code}\n{done.stderr}"
    return done.stdout


def run_json(line: str, folder: Path = INPUTS) -> Any:
    """What ``hwsim LINE --json -`` prints."""
    return json.loads(run([*line.split(), "--json", "-"], folder))


def written(line: str, folder: Path) -> dict[str, Any]:
    """What the file holds that a command writes at the place of OUT in its line."""
    folder.mkdir()
    word = next(word for word in line.split() if word.startswith("OUT."))
    path = folder / word.replace("OUT.", "out.")
    run([str(path) if each == word else each for each in line.split()])
    return contents(path)


def contents(path: Path) -> dict[str, Any]:
    """What a file of hwsim holds: of arrays the names and one hash, the header as it is.

    The hash of the whole file belongs to it only where the file names no version of hwsim.
    """
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    digest = hashlib.sha256()
    with np.load(path, allow_pickle=False) as archive:
        names = archive.files
        text = str(archive["header"])
        for name in names:
            if name != "header":
                array = archive[name]
                digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode() + array.tobytes())
    found = {"header": json.loads(text), "members": names, "arrays": digest.hexdigest()}
    return found if '"hwsim"' in text else found | {"file": hashlib.sha256(path.read_bytes()).hexdigest()}


def swept(store: Path, version: str, arguments: str = "grids.yaml", folder: Path = INPUTS) -> dict[str, Any]:
    """Sweep with a pinned version of hwsim, as it is part of the keys: the results by their keys, in order of the runs."""
    with mock.patch.object(hwsim, "__version__", version):
        run(["sweep", *arguments.split(), "--store", str(store), "--jobs", "1"], folder)
    with contextlib.closing(sqlite3.connect(store)) as database:
        rows = database.execute("SELECT key, result FROM runs ORDER BY rowid").fetchall()
    return {key: json.loads(result) for key, result in rows}


def decided() -> dict[str, list[str]]:
    """Masks of the policy in a file on the signals of a trace, by `hwsim.testing.decide`: the bits of each token."""
    spec = importlib.util.spec_from_file_location("nearest_policy", INPUTS / "nearest_policy.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["nearest_policy"] = module  # pydantic looks up annotations there
    spec.loader.exec_module(module)
    with Trace(INPUTS / "small.npz") as trace:
        signals = {name: trace.read(1, name, 0, 20) for name in ("input", "up")}
    signals["glu"] = signals["up"]
    masks = decide(module.Nearest(bonus=2.0), signals, SMALL_MODEL, capacity=0.4)
    return {group: [np.packbits(row).tobytes().hex() for row in mask] for group, mask in masks.items()}


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

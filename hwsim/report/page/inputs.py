"""What a report is made of: result files, stores of sweeps, and curves of LRU."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hwsim.errors import SettingError, one_line

Row = dict[str, Any]
"""A result as the result file holds it."""
ReadStore = Callable[[Path], Iterable[Row]]
_SQLITE = b"SQLite format 3\x00"
_NEEDED = {
    "provenance", "notes", "tokens", "throughput_tok_s", "latency_s", "time_s", "hit_rate", "mlp_density",
    "flash_bytes", "dram_bytes", "energy_j", "groups",
}  # fmt: skip


@dataclass
class Inputs:
    """What was read.

    Attributes:
        results: in the order of the files; what is in several is there once.
        curves: of `hwsim trace curve --json`.
        files: their names.
    """

    results: list[Row] = field(default_factory=list)
    curves: list[Row] = field(default_factory=list)
    files: list[str] = field(default_factory=list)


def read_inputs(paths: list[Path], read_store: ReadStore) -> Inputs:
    """Read result files, of one result or several, stores of `hwsim sweep`, and curves of `hwsim trace curve`.

    Args:
        paths: of the files.
        read_store: the results of a store.

    Raises:
        SettingError: one cannot be read, or is something else; there is no result at all.
    """
    found, seen = Inputs(), set()
    for path in paths:
        found.files.append(path.name)
        for row in _read(path, read_store):
            kind = row.get("format")
            text = json.dumps(row, sort_keys=True)
            if text in seen:
                continue
            seen.add(text)
            if kind == "hwsim-result" and row.keys() >= _NEEDED:
                found.results.append(row)
            elif kind == "hwsim-curve":
                found.curves.append(row)
            else:
                raise SettingError(f"{path}: holds no result of hwsim; give what --json wrote, or a store of a sweep")
    if not found.results:
        raise SettingError(f"{', '.join(found.files)}: no result in it; a report needs at least one")
    return found


def _read(path: Path, read_store: ReadStore) -> Iterator[Row]:
    try:
        with path.open("rb") as file:
            start = file.read(len(_SQLITE))
            if start == _SQLITE:
                yield from read_store(path)
                return
            data = json.loads(start + file.read())
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or f"is no JSON: {one_line(error)[:80]}"
        raise SettingError(f"{path}: cannot be read: {reason}") from error
    if not isinstance(data, dict):
        raise SettingError(f"{path}: holds no result of hwsim; give what --json wrote, or a store of a sweep")
    rows = data.get("results") if data.get("format") == "hwsim-results" else [data]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise SettingError(f"{path}: results must be a list of results")
    yield from rows

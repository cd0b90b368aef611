"""Inputs of a report: result files, stores of sweeps, and curves of LRU."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hwsim.errors import SettingError, one_line
from hwsim.model.shape import ModelShape
from hwsim.util.explain import problem

Row = dict[str, Any]
"""A result as it stands in a result file."""
ReadStore = Callable[[Path], Iterable[Row]]
_SQLITE, _ARCHIVE = b"SQLite format 3\x00", b"PK\x03\x04"


class _Open(BaseModel):
    """A model with required fields that allows further fields."""

    model_config = ConfigDict(extra="allow")


_Number = Annotated[float, Field(allow_inf_nan=False, ge=0, le=1e300)]
_Count = Annotated[int, Field(ge=0, le=10**30)]


class _Named(_Open):
    name: str


class _Plugin(_Named):
    parameters: dict[str, Any]


class _Trace(_Named):
    origin: str


class _Chosen(_Open):
    dram_budget_bytes: _Count
    bits: dict[str, Any]
    pinned: Any
    warm: Any


class _Rate(_Open):
    bandwidth: _Number


class _Read(_Open):
    read_bandwidth: _Number


class _Device(_Named):
    dram: _Rate
    flash: _Read


class _Provenance(_Open):
    hwsim: str
    trace: _Trace
    model: ModelShape
    policy: _Plugin
    eviction: _Plugin
    device: _Device
    settings: _Chosen
    seed: int


class _Latency(_Open):
    mean: _Number
    p50: _Number
    p95: _Number
    p99: _Number
    max: _Number


class _Times(_Open):
    total: Annotated[_Number, Field(gt=0)]
    resident: _Number
    kv_cache: _Number
    streamed: _Number
    mlp: _Number
    attention: _Number
    compute: _Number


class _Energy(_Open):
    flash: _Number
    dram_read: _Number
    dram_write: _Number | None
    compute: _Number | None
    base: _Number | None


class _Group(_Open):
    layer: _Count
    group: str
    units: _Count
    requests: _Count
    hits: _Count


class _Token(_Open):
    latency_s: _Number


class _Result(_Open):
    """The fields that a report needs of a result, whichever version of hwsim wrote it."""

    provenance: _Provenance
    notes: list[str]
    tokens: Annotated[int, Field(gt=0)]
    throughput_tok_s: Annotated[_Number, Field(gt=0)]
    latency_s: _Latency
    time_s: _Times
    hit_rate: _Number | None
    mlp_density: _Number
    flash_bytes: _Count
    dram_bytes: _Count
    energy_j: _Number | None
    energy_by_source_j: _Energy | None = None
    groups: list[_Group]
    per_token: list[_Token] | None = None
    perplexity: _Number | None = None
    dense_perplexity: _Number | None = None


@dataclass
class Inputs:
    """The content of the input files.

    Attributes:
        results: results in the order of the files, without duplicates.
        curves: curves of `hwsim trace curve --json`.
        files: names of the files.
    """

    results: list[Row] = field(default_factory=list)
    curves: list[Row] = field(default_factory=list)
    files: list[str] = field(default_factory=list)


def read_inputs(paths: list[Path], read_store: ReadStore) -> Inputs:
    """Read result files, of one result or several, stores of `hwsim sweep`, and curves of `hwsim trace curve`.

    Args:
        paths: paths of the files.
        read_store: function that reads the results of a store.

    Raises:
        SettingError: a file cannot be read or has another content, or the files hold no result.
    """
    inputs, texts = Inputs(), set()
    for path in paths:
        inputs.files.append(path.name)
        for row in _read(path, read_store):
            kind = row.get("format")
            text = json.dumps(row, sort_keys=True)
            if text in texts:
                continue
            texts.add(text)
            if kind == "hwsim-result":
                _check(path, row)
                inputs.results.append(row)
            elif kind == "hwsim-curve":
                inputs.curves.append(row)
            else:
                raise SettingError(f"{path}: holds no result of hwsim; give what --json wrote, or a store of a sweep")
    if not inputs.results:
        raise SettingError(f"{', '.join(inputs.files)}: no result in it; a report needs at least one")
    return inputs


def _check(path: Path, row: Row) -> None:
    """Refuse a result with missing or invalid fields."""
    try:
        _Result.model_validate(row)
    except ValidationError as error:
        raise SettingError(f"{path}: holds no result of hwsim, or a damaged one: {problem(error).text}") from error


def _read(path: Path, read_store: ReadStore) -> Iterator[Row]:
    try:
        with path.open("rb") as file:
            start = file.read(len(_SQLITE))
            if start == _SQLITE:
                yield from read_store(path)
                return
            if start.startswith(_ARCHIVE):
                raise SettingError(
                    f"{path}: is an archive, such as a trace, and no result; hwsim replay {path} --json FILE makes one"
                )
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

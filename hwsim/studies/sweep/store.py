"""The store of finished runs: one SQLite file with each result under the hash of everything that decides it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from hwsim.errors import OutputError, SettingError, one_line
from hwsim.studies.sweep.cells import Cell

_APPLICATION = 0x68777369  # "hwsi": SQLite keeps it in the file's header
_VERSION = 1
_ORDER = "model, trace, device, policy, parameters, eviction, budget_bytes, key"
COLUMNS = ("model", "trace", "device", "policy", "eviction")
"""Columns by which runs can be selected without reading their results."""
_NOW = "strftime('%Y-%m-%dT%H:%M:%SZ', 'now')"
_TABLES = """
CREATE TABLE runs (
    key TEXT PRIMARY KEY,          -- SHA-256 of all that decides the result
    model TEXT, trace TEXT, device TEXT, policy TEXT, parameters TEXT, eviction TEXT, budget_bytes INTEGER,
    mlp_density REAL, throughput_tok_s REAL, hit_rate REAL, perplexity REAL,  -- of the result, to look for
    request TEXT NOT NULL,         -- JSON of what was asked for
    result TEXT NOT NULL,          -- JSON, the result file
    seconds REAL NOT NULL,         -- that it took
    finished TEXT NOT NULL         -- UTC
);
CREATE TABLE failures (
    request TEXT PRIMARY KEY,
    error TEXT NOT NULL,
    finished TEXT NOT NULL
);
"""


class Store:
    """Finished runs in a file. Each is stored by one transaction, so that killed processes leave no partial results.

    Args:
        path: path of the file.
        create: whether to create a missing file; otherwise it is an error.

    Raises:
        SettingError: the file is missing, or is no store.
        OutputError: the file cannot be created or written.
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        self.path = path
        if not create and not path.is_file():
            raise SettingError(f"{path}: no such store of runs; `hwsim sweep` makes one")
        new = not path.exists() or path.stat().st_size == 0
        with self._guard():
            self._db = sqlite3.connect(path, timeout=60, isolation_level=None)
            if new:
                with self._transaction():
                    # another process may have created the tables first
                    if not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                        for statement in _TABLES.split(";"):
                            self._db.execute(statement)
                        self._db.execute(f"PRAGMA application_id = {_APPLICATION}")
                        self._db.execute(f"PRAGMA user_version = {_VERSION}")
            header = [self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
        if header[0] != _APPLICATION:
            raise SettingError(f"{path}: is no store of runs; name another file")
        if header[1] != _VERSION:
            raise SettingError(f"{path}: is a store of version {header[1]}; this hwsim reads version {_VERSION}")

    def __contains__(self, key: str) -> bool:
        return self._db.execute("SELECT 1 FROM runs WHERE key = ?", (key,)).fetchone() is not None

    def __len__(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM runs").fetchone()[0])

    def put(self, key: str, run: Cell, result: dict[str, Any], seconds: float) -> None:
        """Store a result; a run that is already stored is not changed."""
        origin, request = result["provenance"], _request(run)
        row = (
            key, origin["model"]["name"], origin["trace"]["name"], origin["device"]["name"], origin["policy"]["name"],
            json.dumps(origin["policy"]["parameters"], sort_keys=True), origin["eviction"]["name"],
            result["budget_bytes"], result["mlp_density"], result["throughput_tok_s"], result["hit_rate"],
            result.get("perplexity"), request, json.dumps(result, ensure_ascii=False), seconds,
        )  # fmt: skip
        with self._guard(), self._transaction():
            marks = ", ".join("?" * len(row))
            self._db.execute(f"INSERT OR IGNORE INTO runs VALUES ({marks}, {_NOW})", row)
            self._db.execute("DELETE FROM failures WHERE request = ?", (request,))

    def fail(self, run: Cell, error: str) -> None:
        """Store the error of a run; the run is tried again the next time."""
        with self._guard(), self._transaction():
            self._db.execute(
                f"INSERT OR REPLACE INTO failures VALUES (?, ?, {_NOW})",
                (_request(run), error),
            )

    def count(self, **wanted: str) -> int:
        """Number of runs with these values in `COLUMNS`."""
        where, values = _where(wanted)
        with self._guard():
            return int(self._db.execute(f"SELECT count(*) FROM runs {where}", values).fetchone()[0])

    def results(self, keys: list[str] | None = None) -> Iterator[dict[str, Any]]:
        """Yield the results of `keys` in their order, or all results ordered by their request.

        Raises:
            SettingError: the store is damaged.
        """
        if keys is None:
            yield from self.find()
            return
        with self._guard():
            for key in keys:
                row = self._db.execute("SELECT result FROM runs WHERE key = ?", (key,)).fetchone()
                if row is not None:
                    yield json.loads(row[0])

    def find(self, *, whole: bool = True, limit: int = -1, **wanted: str) -> Iterator[dict[str, Any]]:
        """Yield the results of runs with these values in `COLUMNS`, as `numbered`, but without numbers."""
        for _, result in self.numbered(whole=whole, limit=limit, **wanted):
            yield result

    def numbered(self, *, whole: bool = True, limit: int = -1, **wanted: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the results of runs with these values in `COLUMNS`, ordered by their request.

        Args:
            whole: whether to include the data of each group and token, which is most of a result.
            limit: most results; -1: all.
            wanted: values of `COLUMNS`.

        Yields:
            The number among all results of the store, from 1, and the result.

        Raises:
            SettingError: the store is damaged.
        """
        where, values = _where(wanted)
        # select the keys in order first, because sorting long results would be slow
        names = ", ".join(("key", *COLUMNS))
        every = f"SELECT {names}, row_number() OVER (ORDER BY {_ORDER}) AS number FROM runs"
        keys = f"SELECT number, key FROM ({every}) {where} ORDER BY number LIMIT ?"
        shown = "result" if whole else "json_remove(result, '$.groups', '$.per_token')"
        with self._guard():
            for number, key in self._db.execute(keys, (*values, limit)).fetchall():
                row = self._db.execute(f"SELECT {shown} FROM runs WHERE key = ?", (key,)).fetchone()
                if row is not None:
                    yield number, json.loads(row[0])

    def failures(self) -> list[tuple[dict[str, Any], str]]:
        """The requests that failed, with their errors."""
        with self._guard():
            rows = self._db.execute("SELECT request, error FROM failures ORDER BY request").fetchall()
        return [(json.loads(request), error) for request, error in rows]

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """A context in which errors of SQLite become one line."""
        try:
            yield
        except (sqlite3.NotSupportedError, sqlite3.DatabaseError, ValueError) as error:
            damaged = isinstance(error, ValueError) or not isinstance(error, sqlite3.OperationalError)
            if damaged:
                raise SettingError(f"{self.path}: is no store of runs, or a damaged one: {one_line(error)}") from error
            raise OutputError(f"{self.path}: cannot be read or written: {one_line(error)}") from error


def _where(wanted: dict[str, str]) -> tuple[str, list[str]]:
    unknown = wanted.keys() - set(COLUMNS)
    if unknown:
        raise TypeError(f"no such column: {', '.join(sorted(unknown))}")
    return ("WHERE " + " AND ".join(f"{name} = ?" for name in wanted) if wanted else ""), list(wanted.values())


def _request(run: Cell) -> str:
    return json.dumps(run.plain(), sort_keys=True, ensure_ascii=False)

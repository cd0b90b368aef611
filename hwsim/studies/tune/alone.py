"""Lock for studies: one search at a time, because the next point depends on the trials before it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from hwsim.errors import SettingError, one_line
from hwsim.util.files import is_at, lock


@contextlib.contextmanager
def alone(study: Path) -> Iterator[None]:
    """Hold a study for this process, by a lock on a file beside it (a lock on SQLite's own file would disturb SQLite).

    Raises:
        SettingError: another process holds it, or the folder cannot be written.
    """
    beside = study.with_name(f".{study.name}.lock")
    with _one_line_errors(study):
        handle = os.open(beside, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with _one_line_errors(study):
            free = lock(handle) and is_at(handle, beside)
        if not free:
            raise SettingError(f"--study {study}: another process is tuning into it; wait for it, or name another")
        try:
            yield
        finally:
            beside.unlink(missing_ok=True)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _one_line_errors(study: Path) -> Iterator[None]:
    """A context in which errors of the operating system become one line."""
    try:
        yield
    except OSError as error:
        raise SettingError(f"--study {study}: cannot be used: {error.strerror or one_line(error)}") from error

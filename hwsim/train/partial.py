"""The finished layers of a training that runs layer by layer, in ``FILE.partial`` beside the file to write.

The file is a row of frames, each a length, a checksum and a ``.npz``: first the settings, then one frame for each
finished layer, appended and flushed to disk. A frame that a kill cut off is dropped; nothing is written twice.
"""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from hwsim.errors import OutputError, one_line
from hwsim.util.files import check_new_file, is_at, lock

_MAGIC = b"hwsim-partial-1\n"
_FRAME = struct.Struct("<QI")


class Layer(NamedTuple):
    """One finished layer: its arrays and its measured quality as JSON data."""

    arrays: dict[str, np.ndarray]
    result: dict[str, Any]


def partial_of(path: Path) -> Path:
    """Path that holds the layers of a file until all are finished."""
    return path.with_name(path.name + ".partial")


class Partial:
    """The finished layers of one training; use as a context manager, call `finish` when the file itself is written.

    Args:
        path: the file to write in the end.
        settings: everything that decides the result; a training does not resume from layers of other settings.
        overwrite: begin anew if the file holds layers of other settings.

    Attributes:
        layers: those that are finished, in order.

    Raises:
        OutputError: the file cannot be written, holds something else or layers of other settings, or another process
            is writing it.
    """

    def __init__(self, path: Path, settings: dict[str, Any], *, overwrite: bool = False) -> None:
        self.path = partial_of(path)
        self.layers: list[Layer] = []
        self._settings = settings
        check_new_file(self.path)
        try:
            # neither truncates what is there nor fails where nothing is
            self._file = open(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")  # noqa: PTH123, SIM115
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written: {error.strerror}") from error
        try:
            self._lock()
            self._resume(overwrite)
        except BaseException:
            self._file.close()
            raise

    def add(self, arrays: dict[str, np.ndarray], result: dict[str, Any]) -> None:
        """Append a finished layer and flush it to disk.

        Raises:
            OutputError: the disk is full.
        """
        self._append(arrays, result)
        self.layers.append(Layer(arrays, result))

    def finish(self) -> None:
        """Delete the partial file, once the file itself is written."""
        self.path.unlink(missing_ok=True)
        self._file.close()

    def __enter__(self) -> Partial:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None and not self.layers and not self._file.closed:
            self.path.unlink(missing_ok=True)  # nothing to resume from: it would only block the name
        self._file.close()

    # ------------------------------------------------------------------ the file

    def _lock(self) -> None:
        try:
            alone = lock(self._file.fileno()) and is_at(self._file.fileno(), self.path)
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written: {error.strerror or one_line(error)}") from error
        if not alone:
            raise OutputError(f"{self.path}: another process is writing it; wait for it, or name another file with -o")

    def _resume(self, overwrite: bool) -> None:
        length = os.fstat(self._file.fileno()).st_size
        if length and self._file.read(len(_MAGIC)) != _MAGIC[:length]:
            raise OutputError(f"{self.path}: is there and is no unfinished training; name another file with -o")
        end = self._file.tell()
        frames: list[Layer] = []
        while (frame := self._frame()) is not None:
            frames.append(frame)
            end = self._file.tell()
        if (
            frames
            and (difference := _difference(frames[0].result, self._settings))
            and len(frames) > 1
            and not overwrite
        ):
            raise OutputError(
                f"{self.path}: holds layers that were trained otherwise ({difference}); run that command to its end, "
                f"name another file with -o, give --overwrite, or delete {self.path.name}"
            )
        if frames and frames[0].result == self._settings:
            self.layers = frames[1:]
            self._cut(end)
            return
        self._cut(0)
        self._write(_MAGIC)
        self._append({}, self._settings)

    def _frame(self) -> Layer | None:
        """The next frame; None if there is no complete one."""
        head = self._file.read(_FRAME.size)
        if len(head) < _FRAME.size:
            return None
        size, crc = _FRAME.unpack(head)
        if size > os.fstat(self._file.fileno()).st_size:
            return None
        data = self._file.read(size)
        if len(data) < size or zlib.crc32(data) != crc:
            return None
        with np.load(io.BytesIO(data), allow_pickle=False) as members:
            arrays = dict(members)
        return Layer(arrays, json.loads(str(arrays.pop("result"))))

    def _append(self, arrays: dict[str, np.ndarray], result: dict[str, Any]) -> None:
        data = io.BytesIO()
        members: dict[str, Any] = {**arrays, "result": np.array(json.dumps(result, sort_keys=True))}
        np.savez(data, **members)
        payload = data.getvalue()
        self._write(_FRAME.pack(len(payload), zlib.crc32(payload)) + payload)

    def _write(self, data: bytes) -> None:
        try:
            self._file.write(data)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written: {error.strerror or one_line(error)}") from error

    def _cut(self, end: int) -> None:
        self._file.seek(end)
        self._file.truncate()


def _difference(stored: dict[str, Any], settings: dict[str, Any]) -> str:
    """The first setting that differs, as ``rank 32, not 64``; empty if all are equal."""
    for name in sorted({*stored, *settings}):
        old, new = stored.get(name), settings.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            if difference := _difference(old, new):
                return difference
        elif old != new:
            return f"{name} {old}, not {new}"
    return ""

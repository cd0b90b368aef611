"""A text file in blocks of whole lines, with the numbers of the lines, and its SHA-256."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

from hwsim.errors import TraceError, one_line
from hwsim.util.units import shorten

_BLOCK = 4 * 2**20  # bytes that are held at once


class Block(NamedTuple):
    """Some lines, without their line ends.

    Attributes:
        first: number of the first line, from 1.
        lines: their text.
    """

    first: int
    lines: list[str]


class LineFile:
    """A text file that is read several times from its beginning.

    Args:
        path: of a regular file.

    Attributes:
        size: of the file, in bytes.
        ended: whether the last line has a line end.
        sha256: of the content; known once all blocks were read.

    Raises:
        TraceError: there is no such file, or it is empty or no regular file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.sha256 = Path(path), ""
        try:
            state = self.path.stat()
            if not stat.S_ISREG(state.st_mode):
                raise self.error("is no regular file; the import reads it twice, so save it as one first")
            self.size = state.st_size
            if not self.size:
                raise self.error("is empty; it must have a preamble and rows")
            with self.path.open("rb") as file:
                file.seek(-1, os.SEEK_END)
                self.ended = file.read(1) == b"\n"
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from error

    def error(self, text: str, line: int | None = None) -> TraceError:
        """An error that names the file and the line."""
        place = "" if line is None else f"line {line}: "
        return TraceError(f"{self.path}: {place}{text}")

    def blocks(self, skip: int = 0) -> Generator[Block, None, None]:
        """All lines in order, except the first `skip`, which must lie in the first block.

        Raises:
            TraceError: the file cannot be read, is not UTF-8, has a line of megabytes, or is not what it was when it
                was read before.
        """
        digest, first, rest = hashlib.sha256(), 1, b""
        try:
            with self.path.open("rb") as file:
                while data := file.read(_BLOCK):
                    digest.update(data)
                    whole, end, rest = (rest + data).rpartition(b"\n")
                    if end:
                        block = self._block(whole, first)
                        first += len(block.lines)
                        yield self._without(block, skip)
                    elif len(rest) >= _BLOCK:
                        raise self.error(f"is longer than {_BLOCK} bytes; this is no file of rows", first)
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from error
        if rest:
            yield self._without(self._block(rest, first), skip)
        if self.sha256 not in ("", digest.hexdigest()):
            raise self.error("was changed while it was read; import it again when it is complete")
        self.sha256 = digest.hexdigest()

    def _block(self, data: bytes, first: int) -> Block:
        try:
            text = data.decode("utf-8-sig" if first == 1 else "utf-8")
        except UnicodeDecodeError as error:
            line = first + data[: error.start].count(b"\n")
            text = f"holds the byte {data[error.start]:#04x}, which is not UTF-8; save the file as UTF-8"
            raise self.error(text, line) from error
        lines = text.split("\n")
        return Block(first, [line.removesuffix("\r") for line in lines] if "\r" in text else lines)

    @staticmethod
    def _without(block: Block, skip: int) -> Block:
        cut = max(0, skip + 1 - block.first)
        return Block(block.first + cut, block.lines[cut:])

    def _unreadable(self, error: Exception) -> TraceError:
        reason = getattr(error, "strerror", None) or one_line(error)
        return TraceError(f"{self.path}: cannot be read: {shorten(reason)}")

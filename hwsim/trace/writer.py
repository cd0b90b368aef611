"""Writing a trace in place: its size is known from the start, members fill block by block, checksums come last.

Until it is complete the file is called ``NAME.partial``; ``NAME.progress.json`` says how many tokens are safe on disk.
A writer that is opened again with the same header resumes there; the finished file is the same, byte for byte.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from hwsim.errors import OutputError, TraceError, one_line
from hwsim.model.shape import NORMS
from hwsim.trace.encoding import FLOAT16_MAX
from hwsim.trace.header import ACCEPTED, EXACT, RESIDENCY, TraceHeader, member_name
from hwsim.trace.zip import Slot, directory_end, directory_entry, local_header, npy_head
from hwsim.util import kernels
from hwsim.util.files import check_new_file, is_at, lock, sweep, write_atomic
from hwsim.util.units import show_size

_CHUNK = 4 * 2**20
_AHEAD = 64 * 2**20  # bytes that may wait to be written


def unfinished(path: Path) -> tuple[Path, Path]:
    """Paths of an unfinished trace: the data written so far, and the file that says how far it is."""
    return path.with_name(path.name + ".partial"), path.with_name(path.name + ".progress.json")


class TraceWriter:
    """Writes one trace; use as a context manager, call `finish` at the end.

    Args:
        path: the finished file. ``PATH.partial`` is used until then.
        header: everything that is known beforehand. A writer with an equal header resumes; stored bytes do
            not count, because earlier versions did not have them.
        tokens: whether token ids are going to be written.
        nll: whether losses are going to be written.
        norms: whether norms of weights are going to be written, before the first commit.
        residency: whether the cache flags of a device are going to be written, for each chosen expert.
        accepted: whether it is going to be written which drafts of tokens would be right.
        overwrite: begin anew if another command has left an unfinished trace.

    Attributes:
        done: tokens that are already safe on disk; continue writing from there.
        clipped: values beyond float16 that were clipped to +-65504 so far.

    Raises:
        OutputError: the place cannot be written, is too small, holds another unfinished trace, or something that is
            no regular file.
    """

    def __init__(
        self,
        path: str | Path,
        header: TraceHeader,
        *,
        tokens: bool = False,
        nll: bool = False,
        norms: bool = False,
        residency: bool = False,
        accepted: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.path, self.header = Path(path), header
        self.done = self.clipped = 0
        self._overwrite = overwrite
        check_new_file(self.path)
        self._partial, self._progress = unfinished(self.path)
        self._fingerprint = hashlib.sha256(str(header.without_additions().to_array()[()]).encode()).hexdigest()
        self._slots: dict[str, Slot] = {}
        self._end = 0
        self._keeper = ThreadPoolExecutor(1)  # makes commits safe while the next block is computed: disks are slow
        self._safe: Future[None] | None = None  # the last commit
        self._hand = ThreadPoolExecutor(1)  # writes pieces while the next layer is computed
        self._waiting: deque[tuple[Future[None], int]] = deque()  # pieces still to be written, and their bytes
        self._ahead = 0
        self._sums: dict[str, tuple[int, int]] = {}  # of members written without a gap so far: checksum, end
        for name, (shape, dtype) in header.members().items():
            self._place(name, shape, dtype)
        if tokens:
            self._place("tokens", (header.tokens,), np.dtype("<i4"))
        if nll:
            self._place("nll", (header.tokens,), np.dtype("<f4"))
        for layer in range(header.model.num_hidden_layers) if norms else ():
            for name in NORMS:
                if units := header.model.signal_width(name, layer):
                    self._place(member_name(layer, name), (units,), np.dtype("<f4"))
        for layer in header.model.layers_with("experts") if residency else ():
            width = header.model.signal_width("experts", layer)
            self._place(member_name(layer, RESIDENCY), (header.tokens, width), np.dtype("u1"))
        if accepted:
            self._place(ACCEPTED, (header.tokens,), np.dtype("u1"))
        self._open()

    # ------------------------------------------------------------------ writing

    def write(self, layer: int, signal: str, start: int, values: np.ndarray) -> None:
        """Put `values`, any float ``[n, width]``, at tokens `start` to `start + n` of a layer's signal.

        ``experts`` are integers.

        They are copied, and written while the caller goes on; the next `commit` waits for that.

        Raises:
            TraceError: a value is NaN or infinite, or the shape is wrong.
            OutputError: the disk is full; a later call may raise it, at the latest `commit`.
        """
        name = member_name(layer, signal)
        self._check_shape(name, (self.header.model.signal_width(signal, layer),), start, values)
        if signal in EXACT:
            if not np.isfinite(values).all():
                raise TraceError(f"{name}: the model produced NaN or infinity")
            self._put(self._slots[name], start, values)
            return
        half = values.dtype == np.float16
        worst = 0.0 if half else float(np.abs(values).max(initial=0.0))
        if not (kernels.all_finite(values) if half else np.isfinite(worst)):
            token = start + int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
            raise TraceError(f"{name}: the model produced NaN or infinity at token {token}")
        if worst > FLOAT16_MAX:
            # values from 65504 to 65520 round to 65504 anyway; they are counted, too
            self.clipped += int(np.count_nonzero(np.abs(values) > FLOAT16_MAX))
            values = np.clip(values, -FLOAT16_MAX, FLOAT16_MAX)
        for part, stored in self.header.encoding.encode(values).items():
            self._put(self._slots[name + part], start, stored)

    def write_tokens(self, start: int, ids: np.ndarray) -> None:
        """Put token ids, integers ``[n]``, at `start`."""
        self._check_shape("tokens", (), start, ids)
        self._put(self._slots["tokens"], start, ids)

    def write_nll(self, start: int, nats: np.ndarray) -> None:
        """Put losses in nats, floats ``[n]``, at `start`; NaN where nothing predicts the token."""
        self._check_shape("nll", (), start, nats)
        self._put(self._slots["nll"], start, nats)

    def write_residency(self, layer: int, start: int, flags: np.ndarray) -> None:
        """Put the cache flags of a device, bool ``[n, used]``, at `start`."""
        name = member_name(layer, RESIDENCY)
        self._check_shape(name, (self.header.model.signal_width("experts", layer),), start, flags)
        self._put(self._slots[name], start, flags)

    def write_accepted(self, start: int, flags: np.ndarray) -> None:
        """Put whether drafts of tokens would be right, bool ``[n]``, at `start`."""
        self._check_shape(ACCEPTED, (), start, flags)
        self._put(self._slots[ACCEPTED], start, flags)

    def write_norm(self, layer: int, name: str, values: np.ndarray) -> None:
        """Put the norms of a layer's units, one of `hwsim.model.shape.NORMS`, floats ``[units]``.

        Raises:
            TraceError: the shape is wrong, or one is negative or not finite.
        """
        slot, units = self._slots[member_name(layer, name)], self.header.model.signal_width(name, layer)
        if values.shape != (units,) or not np.isfinite(values).all() or (values < 0).any():
            raise TraceError(f"{slot.name}: needs {units} finite norms from 0, got {values.dtype} {values.shape}")
        self._put(slot, 0, values)

    def commit(self, done: int) -> None:
        """Declare that all members hold their first `done` tokens.

        A thread makes them safe against a kill while the caller goes on. They are safe once the next `commit`, `finish`
        or `close` returns; an error on the way is raised there.
        """
        self._drain()
        self._settle()
        self.done = done
        state = {"fingerprint": self._fingerprint, "done": done, "clipped": self.clipped}
        self._safe = self._keeper.submit(self._keep, json.dumps(state))

    def finish(self, provenance: dict[str, Any] | None = None) -> None:
        """Add the header and the checksums and give the file its name.

        Args:
            provenance: facts that became known while writing; added to the header's provenance.
        """
        if self.done != self.header.tokens:
            raise OutputError(
                f"{self.path}: {self.done} of {self.header.tokens} tokens were written; it cannot be finished"
            )
        self._drain()
        self._settle()
        extra = {"clipped_values": self.clipped} | (provenance or {})
        header = self.header.model_copy(update={"provenance": self.header.provenance | extra}).to_array()
        slots = list(self._slots.values())
        slots.append(self._slot("header", (), header.dtype))
        last = slots[-1]
        self._pwrite(last.head + header.tobytes(), last.start)
        directory = b""
        for slot in slots:
            crc = self._crc(slot)
            self._pwrite(local_header(slot.name, slot.size, crc, slot.local), slot.local)
            directory += directory_entry(slot, crc)
        at = last.start + last.size
        tail = directory + directory_end(len(slots), len(directory), at)
        self._pwrite(tail, at)
        with self._guard():
            os.ftruncate(self._file.fileno(), at + len(tail))
            os.fsync(self._file.fileno())
            self._partial.replace(self.path)
        self._progress.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Close the file; a later writer can resume from what was committed."""
        self._hand.shutdown()  # a piece that failed was never committed
        try:
            self._settle()
        finally:
            self._keeper.shutdown()
            self._file.close()

    def discard(self) -> None:
        """Close the file and delete all that was written, if no writer can resume from it."""
        self._hand.shutdown()
        self._keeper.shutdown()  # it must not write the progress file again after this
        self._safe = None
        self._partial.unlink(missing_ok=True)
        self._progress.unlink(missing_ok=True)
        self.close()

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None and self.done == 0 and not self._file.closed:
            self.discard()  # nothing to resume from: it would only block the name
        self.close()

    # ------------------------------------------------------------------ the file

    def _slot(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> Slot:
        head = npy_head(shape, dtype)
        size = len(head) + math.prod(shape) * dtype.itemsize
        start = self._end + len(local_header(name, size, 0, self._end))
        return Slot(name, head, dtype, math.prod(shape[1:]), size, self._end, start)

    def _place(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        slot = self._slot(name, shape, dtype)
        self._slots[name] = slot
        self._end = slot.start + slot.size

    def _open(self) -> None:
        for path in (self._partial, self._progress):
            check_new_file(path)
        while True:
            with self._guard():
                # neither truncates what is there nor fails where nothing is
                self._file = open(os.open(self._partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b")  # noqa: PTH123, SIM115
            try:
                with self._guard():
                    alone = lock(self._file.fileno())
                if not alone:
                    raise OutputError(f"{self.path}: another process is writing it; wait for it, or name another file")
                if not is_at(self._file.fileno(), self._partial):  # another writer finished it, or gave up
                    self._file.close()
                    continue
                sweep(self._progress)
                if not self._resume():
                    self._begin()
                return
            except BaseException:
                self._file.close()
                raise

    def _resume(self) -> bool:
        try:
            state = json.loads(self._progress.read_bytes())
            fingerprint, done, clipped = str(state["fingerprint"]), int(state["done"]), int(state["clipped"])
        except (OSError, ValueError, KeyError, TypeError):
            return False
        length = os.fstat(self._file.fileno()).st_size
        if length == 0:  # the partial file was deleted, its progress was left
            return False
        if fingerprint != self._fingerprint:
            if self._overwrite or done <= 0:  # at 0 there is nothing to lose
                return False
            raise OutputError(
                f"{self._partial}: is the unfinished trace of another command; run that one to its end, "
                f"name another file with -o, give --overwrite, or delete {self._partial.name}"
            )
        if length < self._end or not 0 <= done <= self.header.tokens:
            return False
        self.done, self.clipped = done, clipped
        return True

    def _begin(self) -> None:
        try:
            self._start()
        except BaseException:
            self.discard()
            raise

    def _keep(self, progress: str) -> None:
        """Flush the data to disk, then write the progress file."""
        with self._guard():
            os.fsync(self._file.fileno())
        write_atomic(self._progress, progress)

    def _settle(self) -> None:
        """Wait until the last commit is safe on disk."""
        safe, self._safe = self._safe, None
        if safe is not None:
            safe.result()

    def _start(self) -> None:
        free = shutil.disk_usage(self.path.parent).free + os.fstat(self._file.fileno()).st_size
        if self._end > free:
            raise OutputError(
                f"{self.path}: needs {show_size(self._end)}, the disk has {show_size(free)} free; record fewer tokens"
            )
        self._progress.unlink(missing_ok=True)
        with self._guard():
            os.ftruncate(self._file.fileno(), 0)
            os.ftruncate(self._file.fileno(), self._end)
        for slot in self._slots.values():
            self._sums[slot.name] = (0, slot.start)
            self._append(slot.name, slot.head, slot.start)
        self.commit(0)

    def _check_shape(self, name: str, row: tuple[int, ...], start: int, values: np.ndarray) -> None:
        expected = (len(values), *row)
        if values.shape != expected or start < 0 or start + len(values) > self.header.tokens:
            raise TraceError(
                f"{name}: shape {values.shape} at token {start}; needs {expected} within {self.header.tokens} tokens"
            )

    def _put(self, slot: Slot, start: int, values: np.ndarray) -> None:
        at = slot.start + len(slot.head) + start * slot.width * slot.dtype.itemsize
        data = np.array(values, slot.dtype, order="C")  # a copy: the model may change its own array
        piece = data.reshape(-1).view(np.uint8).data
        self._waiting.append((self._hand.submit(self._append, slot.name, piece, at), data.nbytes))
        self._ahead += data.nbytes
        self._drain(_AHEAD)

    def _append(self, name: str, data: bytes | memoryview, at: int) -> None:
        """Write a piece of a member; update its checksum as long as each piece begins where the last one ended."""
        self._pwrite(data, at)
        crc, end = self._sums.get(name, (0, -1))
        self._sums[name] = (zlib.crc32(data, crc), at + len(data)) if end == at else (0, -1)

    def _drain(self, least: int = 0) -> None:
        """Wait until at most `least` bytes are still to be written."""
        while self._waiting and (self._ahead > least or self._waiting[0][0].done()):
            self._waiting[0][0].result()  # a failed piece stays first, so that nothing can be committed after it
            self._ahead -= self._waiting.popleft()[1]

    def _pwrite(self, data: bytes | memoryview, at: int) -> None:
        view = memoryview(data)
        with self._guard():
            while view:
                count = os.pwrite(self._file.fileno(), view, at)
                view, at = view[count:], at + count

    def _crc(self, slot: Slot) -> int:
        crc, end = self._sums.get(slot.name, (0, -1))
        if end == slot.start + slot.size:
            return crc
        crc = 0
        for piece in self._pieces(slot.start, slot.size):
            crc = zlib.crc32(piece, crc)
        return crc

    def _pieces(self, at: int, size: int) -> Iterator[bytes]:
        end = at + size
        while at < end:
            with self._guard():
                piece = os.pread(self._file.fileno(), min(_CHUNK, end - at), at)
            if not piece:
                raise OutputError(f"{self._partial}: was shortened while it was being written")
            yield piece
            at += len(piece)

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """Turn an OSError of the block into an OutputError of one line."""
        try:
            yield
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written: {error.strerror or one_line(error)}") from error

"""Reading a trace block by block: memory use does not grow with the number of tokens.

A trace is a ``.npz`` without compression, so every signal lies in one piece of the file and a block of tokens is one
read. Everything that the file says about itself is checked against the file before it is used.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from hwsim.errors import TraceError, did_you_mean
from hwsim.model.shape import NORMS, ModelShape
from hwsim.trace.encoding import RowError
from hwsim.trace.header import ACCEPTED, EXACT, RESIDENCY, TraceHeader, member_name, parse_header
from hwsim.trace.sequences import Sequences
from hwsim.util.units import shorten

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_MAX_HEADER_BYTES = 64 * 2**20
# what zipfile raises for a broken directory
_NO_ZIP = (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, EOFError, OverflowError, struct.error)
_UTF8 = 0x800  # flag of a zip entry whose name is UTF-8
_CHUNK = 4 * 2**20


class _Member(NamedTuple):
    offset: int  # of the first value in the file, bytes
    dtype: np.dtype
    shape: tuple[int, ...]
    crc: int
    start: int  # of the whole .npy in the file, bytes
    size: int  # of the whole .npy, bytes


def _hint(path: Path) -> str:
    """Advice where a trace is missing: files with similar names, or how to record one."""
    if path.is_dir():
        return "; hwsim record --model FOLDER makes a trace of a model"
    try:
        if path.exists():
            return ""
        if not path.parent.is_dir():
            return f"; there is no folder {path.parent}"
        return did_you_mean(path.name, [*(file.name for file in path.parent.glob("*.npz")), "sample"])
    except (OSError, ValueError):  # a name that no file can have
        return ""


class Trace:
    """An open trace file.

    Attributes:
        header: what the file holds.
        path: where it is.

    Raises:
        TraceError: on opening: missing, foreign, truncated, or at odds with its own header.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        try:
            self._file: io.BufferedReader = self.path.open("rb", buffering=0)  # type: ignore[assignment]
            self._length = os.fstat(self._file.fileno()).st_size
        except OSError as error:
            raise TraceError(f"{path}: cannot be opened: {error.strerror}{_hint(self.path)}") from error
        try:
            self._members = self._directory()
            self._text = self._header_text()
            self.header: TraceHeader = parse_header(self._text, self.path)
            self._check_members()
        except BaseException:
            self._file.close()
            raise

    # ------------------------------------------------------------------ what is in it

    @property
    def model(self) -> ModelShape:
        """The shape of the recorded model."""
        return self.header.model

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._length

    @property
    def hash(self) -> str:
        """SHA-256 over the header and the checksums of all members: identifies the content without a full read."""
        digest = hashlib.sha256(self._text.encode())
        for name, member in sorted(self._members.items()):
            digest.update(f"{name} {member.size} {member.crc}\n".encode())
        return digest.hexdigest()

    def has(self, signal: str) -> bool:
        """Whether the trace has a signal or norm, or can compute it (``glu`` = ``up`` x ``gate``)."""
        if signal in NORMS:
            return any(member_name(layer, signal) in self._members for layer in self.model.layers_with(signal)[:1])
        recorded = self.header.signals
        product = signal == "glu" and not self.model.inner_norm
        return signal in recorded or (product and "up" in recorded and "gate" in recorded)

    def read(self, layer: int, signal: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Tokens `start` to `stop` of a layer's signal: float32 ``[stop - start, width]``; ``experts``: int64.

        Raises:
            TraceError: there is no such layer, signal or token, the file is closed or shorter than it was, or a value
                is not finite.
        """
        stop = self.header.tokens if stop is None else stop
        self._check_range(layer, start, stop)
        if signal == "glu" and "glu" not in self.header.signals and self.has("glu"):
            # two float16 values: their float32 product is exact and finite
            return self.read(layer, "up", start, stop) * self.read(layer, "gate", start, stop)
        if not self.has(signal):
            raise TraceError(f"{self.path}: has no signal {signal!r}; it holds {', '.join(self.header.signals)}")
        width, encoding = self._width(layer, signal), self.header.encoding
        if signal in EXACT:
            return self._exact(layer, signal, start, stop)
        with self._located(layer, signal, start):
            return encoding.decode(self._parts(layer, signal, start, stop), width)

    def read_halves(self, layer: int, signal: str, start: int = 0, stop: int | None = None) -> np.ndarray | None:
        """As `read`, but float16 ``[stop - start, width]`` as stored, read-only; None if it is not stored as float16.

        Raises:
            TraceError: as `read`.
        """
        stop = self.header.tokens if stop is None else stop
        self._check_range(layer, start, stop)
        if signal not in self.header.signals or self.header.encoding.name != "float16" or signal in EXACT:
            return None
        self._width(layer, signal)
        with self._located(layer, signal, start):
            return self.header.encoding.halves(self._parts(layer, signal, start, stop))

    def _exact(self, layer: int, signal: str, start: int, stop: int) -> np.ndarray:
        """Rows of a signal that is stored as it is, checked."""
        name = member_name(layer, signal)
        values = self._rows(name, start, stop)
        if signal != "experts":
            wrong = ~np.isfinite(values).all(axis=1)
            self._refuse(name, values, wrong, "must be finite numbers", start=start)
            return values.astype(np.float32)
        experts = self.model.by_layer[layer].experts
        assert experts is not None
        ids = values.astype(np.int64)
        ordered = np.sort(ids, axis=1)
        twice = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(axis=1)
        gap = ((ids[:, 1:] >= 0) & (ids[:, :-1] < 0)).any(axis=1)
        # a token of a prompt may have no experts in a layer whose output nothing reads
        none = (ids[:, 0] < 0) & self._decoded[start:stop]
        wrong = (ids < -1).any(axis=1) | (ids >= experts.count).any(axis=1) | none | twice | gap
        rule = f"must be different experts from 0 to {experts.count - 1}, at least one for a decoded token, then -1"
        self._refuse(name, ids, wrong, rule, start=start)
        return ids

    @cached_property
    def _decoded(self) -> np.ndarray:
        """Whether each token is decoded: bool ``[tokens]``."""
        decoded = np.zeros(self.header.tokens, bool)
        decoded[Sequences(self.header.sequences).rows()] = True
        return decoded

    def residency(self, layer: int, start: int = 0, stop: int | None = None) -> np.ndarray | None:
        """Whether each chosen expert was cached on the device that ran the model: bool ``[tokens, used]``, or None.

        Only rows of decoded tokens mean anything.
        """
        stop = self.header.tokens if stop is None else stop
        self._check_range(layer, start, stop)
        name = member_name(layer, RESIDENCY)
        return self._rows(name, start, stop).astype(bool) if name in self._members else None

    @property
    def has_residency(self) -> bool:
        """Whether the trace holds the cache flags of the device that ran the model."""
        return any(member_name(layer, RESIDENCY) in self._members for layer in self.model.layers_with("experts")[:1])

    @property
    def has_accepted(self) -> bool:
        """Whether the trace tells which drafts of tokens would be right."""
        return ACCEPTED in self._members

    def accepted(self) -> np.ndarray | None:
        """Whether a draft of each token would have been right: bool ``[tokens]``; None if the trace does not say."""
        return self._rows(ACCEPTED, 0, self.header.tokens).astype(bool) if ACCEPTED in self._members else None

    def check_whole(self, purpose: str) -> None:
        """Refuse a trace that leaves values out, for a `purpose` that needs all of them.

        Raises:
            TraceError: it keeps a share of each row only.
        """
        if (share := self.header.encoding.share) is not None:
            raise TraceError(
                f"{self.path}: keeps only the largest {share:.4g} of each row, and {purpose} needs all values; "
                "give the trace that it was made from, or record one without --encoding top"
            )

    def norm(self, layer: int, name: str) -> np.ndarray:
        """The Euclidean norm of each unit's weights, one of `hwsim.model.shape.NORMS`: float32 ``[units]``.

        Raises:
            TraceError: it was not recorded, there is no such layer, or one is negative or not finite.
        """
        self._check_range(layer, 0, 0)
        if not self.has(name):
            raise TraceError(f"{self.path}: has no {name}; record it with --norms")
        member = member_name(layer, name)
        values = self._rows(member, 0, self._width(layer, name)).astype(np.float32)
        wrong = ~np.isfinite(values) | (values < 0)
        self._refuse(member, values, wrong, "must be a finite norm from 0", "unit")
        return values

    def tokens(self) -> np.ndarray | None:
        """Token ids, int32 ``[tokens]``, if they were recorded.

        Raises:
            TraceError: one is outside of the vocabulary.
        """
        if "tokens" not in self._members:
            return None
        ids = self._rows("tokens", 0, self.header.tokens).copy()
        size = self.model.vocab_size
        self._refuse("tokens", ids, (ids < 0) | (ids >= size), f"must be an id of the vocabulary, 0 to {size - 1}")
        return ids

    def nll(self) -> np.ndarray | None:
        """Loss of the dense model at each token in nats, float32 ``[tokens]``, if it was recorded.

        NaN at the first token of each sequence, which nothing predicts, and where there is none.

        Raises:
            TraceError: one is negative or infinite.
        """
        if "nll" not in self._members:
            return None
        losses = self._rows("nll", 0, self.header.tokens).copy()
        self._refuse("nll", losses, (losses < 0) | np.isinf(losses), "must be a finite loss from 0, or NaN")
        return losses

    def perplexity(self) -> float | None:
        """Perplexity of the dense model, exp of the mean loss over all tokens that have one; None without losses."""
        nll = self.nll()
        scored = nll[~np.isnan(nll)] if nll is not None else np.empty(0)
        with np.errstate(over="ignore"):  # a loss beyond 709 is an infinite perplexity
            return float(np.exp(scored.mean(dtype=np.float64))) if scored.size else None

    def verify(self) -> Iterator[str]:
        """Read everything and yield the name of each sound member.

        Raises:
            TraceError: a checksum does not match, a signal holds NaN or infinity, or a token or a loss is impossible.
        """
        for name, member in sorted(self._members.items()):
            crc, at, end = 0, member.start, member.start + member.size
            while at < end:
                piece = self._pread(at, min(_CHUNK, end - at), name)
                crc, at = zlib.crc32(piece, crc), at + len(piece)
            if crc != member.crc:
                raise TraceError(
                    f"{self.path}: {name}: checksum {crc:08x}, written as {member.crc:08x}; the file is damaged"
                )
            yield name
        self.tokens()
        self.nll()
        self.accepted()
        widest = max(self.model.signal_width(signal) for signal in self.header.signals)
        step = max(1, _CHUNK // (2 * widest))
        for layer in range(self.model.num_hidden_layers):
            for name in filter(self.has, NORMS):
                if self.model.signal_width(name, layer):
                    self.norm(layer, name)
            for signal in self.header.signals:
                if not self.model.signal_width(signal, layer):
                    continue
                for start in range(0, self.header.tokens, step):
                    self.read(layer, signal, start, min(start + step, self.header.tokens))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __del__(self) -> None:
        """Close the file, for notebooks that forget to."""
        if hasattr(self, "_file"):
            self._file.close()

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # ------------------------------------------------------------------ the file

    def _check_range(self, layer: int, start: int, stop: int) -> None:
        layers, tokens = self.model.num_hidden_layers, self.header.tokens
        if not 0 <= layer < layers:
            raise TraceError(f"{self.path}: has no layer {layer}; it has 0 to {layers - 1}")
        if not 0 <= start <= stop <= tokens:
            raise TraceError(f"{self.path}: has no tokens {start} to {stop}; give 0 <= start <= stop <= {tokens}")

    def _width(self, layer: int, signal: str) -> int:
        """Width of a signal or norm of a layer.

        Raises:
            TraceError: the layer has no such signal.
        """
        if width := self.model.signal_width(signal, layer):
            return width
        raise TraceError(f"{self.path}: layer {layer} of {self.model.name} has no {signal}")

    def _refuse(
        self, name: str, values: np.ndarray, wrong: np.ndarray, rule: str, item: str = "token", start: int = 0
    ) -> None:
        """Refuse the first wrong value; `values` has one for each `item` from `start` on, a token or a unit."""
        if wrong.any():
            first = int(np.flatnonzero(wrong)[0])
            value = shorten(str(values[first]))
            raise TraceError(f"{self.path}: {name}: {item} {start + first} has {value}; {rule}")

    def _parts(self, layer: int, signal: str, start: int, stop: int) -> dict[str, np.ndarray]:
        """The stored parts of some rows of a signal, by suffix."""
        name, parts = member_name(layer, signal), self.header.encoding.parts(self.model.signal_width(signal, layer))
        rows = {part: self._rows(name + part, start, stop) for part in parts}
        return {part: values.reshape(len(values), -1) if values.ndim > 2 else values for part, values in rows.items()}

    @contextmanager
    def _located(self, layer: int, signal: str, start: int) -> Iterator[None]:
        """Turn a `RowError` into a TraceError that names member and token; `start` is the token of the first row."""
        try:
            yield
        except RowError as broken:
            name = f"{member_name(layer, signal)}{broken.part}"
            raise TraceError(f"{self.path}: {name}: token {start + broken.row} {broken.what}") from broken

    def _pread(self, at: int, size: int, name: str) -> bytes:
        pieces, remaining = [], size
        while remaining:
            piece = self._pread_once(remaining, at)
            if not piece:
                raise TraceError(f"{self.path}: {name}: the file ends in the middle of it; it is truncated")
            pieces.append(piece)
            at, remaining = at + len(piece), remaining - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _pread_once(self, size: int, at: int) -> bytes:
        if self._file.closed:
            raise TraceError(f"{self.path}: is closed; read it within `with Trace(path) as trace:`")
        try:
            if hasattr(os, "pread"):
                return os.pread(self._file.fileno(), size, at)
            with self._lock:  # Windows has no pread
                self._file.seek(at)
                return self._file.read(size)
        except OSError as error:
            raise TraceError(f"{self.path}: cannot be read: {error.strerror}") from error

    def _rows(self, name: str, start: int, stop: int) -> np.ndarray:
        member = self._members[name]
        row = member.dtype.itemsize * int(np.prod(member.shape[1:], dtype=np.int64))
        data = self._pread(member.offset + start * row, (stop - start) * row, name)
        return np.frombuffer(data, member.dtype).reshape(stop - start, *member.shape[1:])

    def _directory(self) -> dict[str, _Member]:
        try:
            with zipfile.ZipFile(self._file) as archive:
                entries = archive.infolist()
        except _NO_ZIP as error:
            store = self._length >= 16 and self._pread_once(16, 0).startswith(b"SQLite format 3")
            what = "is a store of runs; hwsim runs shows it" if store else "the file is truncated, or no hwsim trace"
            raise TraceError(f"{self.path}: no zip directory; {what}") from error
        members: dict[str, _Member] = {}
        for entry in entries:
            name = entry.filename.removesuffix(".npy")
            if not name.isprintable():  # it must not break a message or a terminal
                raise TraceError(f"{self.path}: has a member {name!r}; the file is damaged, or no hwsim trace")
            if name in members:
                raise TraceError(f"{self.path}: has two members {name!r}; a trace has one of each")
            if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                raise TraceError(f"{self.path}: {name}: is compressed or encrypted; write it with numpy.savez")
            members[name] = self._member(name, entry)
        return members

    def _member(self, name: str, entry: zipfile.ZipInfo) -> _Member:
        local = self._pread(entry.header_offset, _LOCAL_HEADER.size, name)
        fields = _LOCAL_HEADER.unpack(local)
        if fields[0] != b"PK\x03\x04":
            raise TraceError(f"{self.path}: {name}: the zip directory points to something else; the file is damaged")
        local_name = self._pread(entry.header_offset + _LOCAL_HEADER.size, fields[-2], name)
        if local_name != entry.orig_filename.encode("utf-8" if entry.flag_bits & _UTF8 else "cp437"):
            raise TraceError(f"{self.path}: {name}: has another name in the zip directory; the file is damaged")
        start = entry.header_offset + _LOCAL_HEADER.size + fields[-2] + fields[-1]
        if start + entry.file_size > self._length or entry.file_size != entry.compress_size:
            raise TraceError(
                f"{self.path}: {name}: claims {entry.file_size} bytes, more than the file has; it is truncated"
            )
        head = io.BytesIO(self._pread(start, min(entry.file_size, 12_288), name))
        try:
            version = np.lib.format.read_magic(head)
            read_head = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            shape, fortran, dtype = read_head(head)
        except Exception as error:  # numpy raises many kinds for a broken .npy header; all mean the same to the user
            raise TraceError(
                f"{self.path}: {name}: is no .npy array; the file is damaged, or no hwsim trace"
            ) from error
        if fortran and len(shape) > 1:
            raise TraceError(f"{self.path}: {name}: is stored by columns; write it with numpy.ascontiguousarray")
        if dtype.hasobject:
            raise TraceError(f"{self.path}: {name}: holds Python objects (pickles), which hwsim never loads")
        count = 1
        for length in shape:
            count *= length
        if head.tell() + count * dtype.itemsize != entry.file_size:
            raise TraceError(
                f"{self.path}: {name}: shape {shape} of {dtype} takes {count * dtype.itemsize} bytes, "
                f"the file has {entry.file_size - head.tell()}"
            )
        return _Member(start + head.tell(), dtype, shape, entry.CRC, start, entry.file_size)

    def _header_text(self) -> str:
        member = self._members.get("header")
        if member is None or member.dtype.kind != "U" or member.shape != ():
            raise TraceError(f"{self.path}: has no member 'header' of text; this is no hwsim trace")
        if member.dtype.itemsize > _MAX_HEADER_BYTES:
            raise TraceError(f"{self.path}: header takes {member.dtype.itemsize} bytes, more than {_MAX_HEADER_BYTES}")
        data = self._pread(member.offset, member.dtype.itemsize, "header")
        try:
            # not with numpy, which turns code points beyond Unicode into broken strings
            return data.decode("utf-32-be" if member.dtype.str[0] == ">" else "utf-32-le").rstrip("\0")
        except UnicodeError as error:
            raise TraceError(f"{self.path}: header is not text; this is no hwsim trace") from error

    def _check_members(self) -> None:
        expected: dict[str, tuple[tuple[int, ...], Any]] = {**self.header.members()}
        for name, kind in (("tokens", "<i4"), ("nll", "<f4"), (ACCEPTED, "u1")):
            if name in self._members:
                expected[name] = ((self.header.tokens,), kind)
        flags = {member_name(layer, RESIDENCY): self.model.signal_width("experts", layer)
                 for layer in self.model.layers_with("experts")}  # fmt: skip
        if any(name in self._members for name in flags):  # all layers, or none
            expected |= {name: ((self.header.tokens, used), "u1") for name, used in flags.items()}
        for norm in NORMS:
            widths = {member_name(layer, norm): self.model.signal_width(norm, layer)
                      for layer in self.model.layers_with(norm)}  # fmt: skip
            if any(name in self._members for name in widths):  # all layers, or none
                expected |= {name: ((width,), "<f4") for name, width in widths.items()}
        for name, (shape, kind) in expected.items():
            member = self._members.get(name)
            if member is None:
                promise = "its header promises" if name in self.header.members() else "other layers have"
                raise TraceError(f"{self.path}: has no member {name!r}, which {promise}; it is damaged")
            if member.shape != shape:
                raise TraceError(f"{self.path}: {name}: shape {member.shape}, the header says {shape}")
            if member.dtype != np.dtype(kind):
                raise TraceError(f"{self.path}: {name}: type {member.dtype}, a trace needs {np.dtype(kind)}")

"""The zip around a trace's arrays: headers and directory, written without a clock and with aligned payloads."""

from __future__ import annotations

import io
import struct
from typing import NamedTuple

import numpy as np

ALIGNMENT = 64  # bytes; payloads begin at multiples of it, so that they can be memory-mapped as they are
_BIG = 0xFFFFFFFF
_STAMP = (0, 0x21)  # 1980-01-01: no clock in the file
_PADDING_ID = 0xD935  # the extra field that Android's zipalign uses for padding


class Slot(NamedTuple):
    """Where one array stands in the file."""

    name: str
    head: bytes  # the .npy header
    dtype: np.dtype
    width: int  # numbers of one token
    size: int  # bytes of the whole .npy
    local: int  # offset of the zip's local header
    start: int  # offset of the .npy


def npy_head(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """The .npy header of an array; numpy pads its length to a multiple of 64."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()


def local_header(name: str, size: int, crc: int, at: int) -> bytes:
    """A zip local header at offset `at`, with an extra field that aligns what follows it."""
    encoded = f"{name}.npy".encode()
    big = size >= _BIG
    extra = struct.pack("<HHQQ", 1, 16, size, size) if big else b""
    end = at + 30 + len(encoded) + len(extra) + 4
    extra += struct.pack("<HH", _PADDING_ID, -end % ALIGNMENT) + b"\0" * (-end % ALIGNMENT)
    small = _BIG if big else size
    version = 45 if big else 20
    fields = (b"PK\x03\x04", version, 0, 0, *_STAMP, crc, small, small, len(encoded), len(extra))
    return struct.pack("<4s5H3I2H", *fields) + encoded + extra


def directory_entry(slot: Slot, crc: int) -> bytes:
    """The entry of one array in the zip's directory."""
    encoded = f"{slot.name}.npy".encode()
    big_size, big_at = slot.size >= _BIG, slot.local >= _BIG
    wide = ([slot.size] * 2 if big_size else []) + ([slot.local] if big_at else [])
    extra = struct.pack(f"<HH{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
    small = _BIG if big_size else slot.size
    version = 45 if wide else 20
    fields = (b"PK\x01\x02", version, version, 0, 0, *_STAMP, crc, small, small)
    rest = (len(encoded), len(extra), 0, 0, 0, 0, _BIG if big_at else slot.local)
    return struct.pack("<4s6H3I", *fields) + struct.pack("<5H2I", *rest) + encoded + extra


def directory_end(entries: int, size: int, at: int) -> bytes:
    """The end record of a zip directory of `entries` entries and `size` bytes that begins at offset `at`."""
    end = b""
    if entries >= 0xFFFF or at >= _BIG or size >= _BIG:
        end += struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, entries, entries, size, at)
        end += struct.pack("<4sIQI", b"PK\x06\x07", 0, at + size, 1)
        entries, size, at = min(entries, 0xFFFF), min(size, _BIG), min(at, _BIG)
    return end + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, entries, entries, size, at, 0)

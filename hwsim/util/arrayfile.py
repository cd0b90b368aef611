"""Files of arrays that policies read: trained nets, thresholds, hot sets. hwsim or other programs write them.

A file is a ``.npz`` of ``numpy.savez`` without pickles. Its members are ``format`` and ``version``, the arrays, and
optionally ``header``, JSON text with the conditions that it was made for (``model``, ``density``, ...).
"""

from __future__ import annotations

import io
import json
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import numpy as np

from hwsim.errors import PluginError
from hwsim.util.files import write_atomic
from hwsim.util.units import shorten, show_size

VERSION = 1
# an archive is a zip bomb if its members have more bytes than _LARGE and more than _RATIO times its size
_LARGE, _RATIO = 100_000_000, 100


class ArrayFile(NamedTuple):
    """The content of a file of arrays."""

    header: dict[str, Any]
    arrays: dict[str, np.ndarray]


def read_arrays(path: Path, kind: str) -> ArrayFile:
    """Read a file of arrays; the arrays are read-only and shared by all readers of the same file.

    Args:
        path: of the file.
        kind: its ``format``, such as ``hwsim-predictor``.

    Raises:
        PluginError: there is no such file, it has another kind or version, or a member has another type or is not
            finite.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise PluginError(f"{path}: cannot be read: {error.strerror or 'it is damaged'}") from error
    header, arrays = _read(path, kind, (stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return ArrayFile(dict(header), dict(arrays))


def check_unpacked(path: Path) -> None:
    """Refuse a zip bomb: an archive that unpacks to much more than its size, as no arrays of numbers do.

    Raises:
        ValueError: its directory names too large a size.
        OSError, BadZipFile: it is no archive.
    """
    with ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > _LARGE and unpacked > _RATIO * path.stat().st_size:
        raise ValueError(f"unpacks to {show_size(unpacked)}, more than {_RATIO} times its size")


@lru_cache(maxsize=1)  # where densities differ by layer, every layer has a copy of the policy, and each reads the file
def _read(path: Path, kind: str, stamp: tuple[int, int, int]) -> ArrayFile:
    try:
        check_unpacked(path)
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            members = dict(archive)
    except OSError as error:
        raise PluginError(f"{path}: cannot be read: {error.strerror or 'it is damaged'}") from error
    except Exception as error:  # numpy raises many kinds for a file of another format
        raise PluginError(f"{path}: is no file of {kind}; it must be a .npz of numpy.savez, without pickles") from error
    for name, array in members.items():
        if not isinstance(array, np.ndarray):  # numpy returns members that are no arrays as bytes
            raise PluginError(f"{path}: {shorten(repr(name))} is no array; it must be a .npz of numpy.savez")
    missing = [name for name in ("format", "version") if name not in members]
    if missing:
        raise PluginError(f"{path}: is no file of {kind}: it lacks the member {missing[0]!r}")
    form, version = str(members.pop("format")), str(members.pop("version"))
    if (form, version) != (kind, str(VERSION)):
        description = " version ".join(shorten(" ".join(text.split())) for text in (form, version))
        raise PluginError(f"{path}: is {description}, needed is {kind} version {VERSION}")
    try:
        header = json.loads(str(members.pop("header", "{}")))
    except ValueError as error:
        raise PluginError(f"{path}: its member 'header' is no JSON text") from error
    if not isinstance(header, dict):
        raise PluginError(f"{path}: its member 'header' must be a JSON object")
    for name, array in members.items():
        if array.dtype != np.float32 and array.dtype.kind not in "iub":
            raise PluginError(f"{path}: {name} is {array.dtype}; members must be float32 or whole numbers")
        if not np.isfinite(array).all():
            raise PluginError(f"{path}: {name} holds NaN or infinity; members must be finite")
        array.flags.writeable = False
    return ArrayFile(header, members)


def write_arrays(path: Path, kind: str, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write a file of arrays in one step; the same arguments give the same bytes.

    Raises:
        OutputError: it cannot be written.
    """
    members = {
        "format": np.array(kind),
        "version": np.array(VERSION),
        "header": np.array(json.dumps(header, sort_keys=True)),
        **arrays,
    }
    data = io.BytesIO()
    with ZipFile(data, "w", ZIP_STORED) as archive:
        for name, array in members.items():
            with archive.open(ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:  # ZipInfo: no clock in the file
                np.lib.format.write_array(member, np.asarray(array, order="C"), allow_pickle=False)
    write_atomic(path, data.getvalue())

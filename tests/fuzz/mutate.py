"""Good files made bad: bytes, text, and the insides of archives."""

from __future__ import annotations

import io
import random
import re
import struct
import zipfile

_NUMBERS = [
    "0", "-1", "1e400", "-1e400", "nan", "inf", "-inf", ".nan", ".inf", "1" * 400, "9" * 5000, "1e-400", "0x10", "1_000", "٣",
    "true", "null", "~", "''", "[]", "{}", "[[[]]]", "1 GB", "-4 KiB", "1e300 GB/s", "0 GB", "'4'", "4.5.6", "!!python/none",
]  # fmt: skip
_TEXTS = [
    "\x00", "\ufeff", "\u202e", "\x1b[31m", "😀", "&a *a", "*unknown", "!!python/object/apply:os.system ['true']",
    "&a [*a]", "? {a: 1} : b", "<<: *x", "---\n", "\t", "\r", "%TAG ! tag:\n", "a" * 10_000, "../../etc/passwd", "/dev/zero",
]  # fmt: skip
_LAUGHS = "\n".join([
    "a0: &a0 [x,x,x,x,x,x,x,x,x]", *(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)),
])  # fmt: skip


def mutate(data: bytes, text: bool, rng: random.Random) -> bytes:
    """One to four changes."""
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        ways = [_flip, _cut, _insert, _double, _zero]
        ways += [_number, _word, _line, _laughs] if text else [_archive, _archive, _archive]
        data = rng.choice(ways)(data, rng)
    return data


def _at(data: bytes, rng: random.Random) -> int:
    return rng.randrange(len(data)) if data else 0


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(data: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.3:
        return data[: _at(data, rng)]
    start = _at(data, rng)
    return data[:start] + data[start + rng.choice([1, 2, 8, 64, 512]) :]


def _insert(data: bytes, rng: random.Random) -> bytes:
    at = _at(data, rng)
    return data[:at] + rng.randbytes(rng.choice([1, 2, 8, 64])) + data[at:]


def _double(data: bytes, rng: random.Random) -> bytes:
    start, at = _at(data, rng), _at(data, rng)
    return data[:at] + data[start : start + rng.choice([4, 32, 256])] + data[at:]


def _zero(data: bytes, rng: random.Random) -> bytes:
    start, size = _at(data, rng), rng.choice([1, 4, 8, 64])
    return data[:start] + rng.choice([b"\x00", b"\xff"]) * size + data[start + size :]


def _number(data: bytes, rng: random.Random) -> bytes:
    found = list(re.finditer(rb"[0-9.]+", data))
    if not found:
        return data
    one = rng.choice(found)
    return data[: one.start()] + rng.choice(_NUMBERS).encode() + data[one.end() :]


def _word(data: bytes, rng: random.Random) -> bytes:
    found = list(re.finditer(rb"[A-Za-z_]+", data))
    if not found:
        return data
    one, other = rng.choice(found), rng.choice(found)
    new = rng.choice([other.group(), *(text.encode() for text in _TEXTS + _NUMBERS)])
    return data[: one.start()] + new + data[one.end() :]


def _line(data: bytes, rng: random.Random) -> bytes:
    lines = data.split(b"\n")
    one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    if rng.random() < 0.5:
        lines.insert(one, lines[other])
    else:
        del lines[one]
    return b"\n".join(lines)


def _laughs(data: bytes, rng: random.Random) -> bytes:
    return _LAUGHS.encode() + b"\n" + data if rng.random() < 0.2 else data


def _archive(data: bytes, rng: random.Random) -> bytes:
    """Take an archive apart and put it together otherwise; what is none is left as it is."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(each.filename, archive.read(each)) for each in archive.infolist()]
    except Exception:
        return _flip(data, rng)
    if not members:
        return data
    at = rng.randrange(len(members))
    name, content = members[at]
    way = rng.randrange(9)
    if way == 0:
        del members[at]
    elif way == 1:
        members.append((name, content))
    elif way == 2:
        members[at] = (
            rng.choice(["../../x.npy", "/etc/x.npy", "a\\..\\x.npy", "", "x" * 60_000, name + ".npy", "é.npy"]),
            content,
        )
    elif way == 3:
        members[at] = (name, _header(content, rng))
    elif way == 4:
        members[at] = (name, content[: rng.randrange(len(content) + 1)])
    elif way == 5:
        members[at] = (name, content + bytes(rng.choice([1, 100, 10_000])))
    elif way == 6:
        members[at] = (name, members[rng.randrange(len(members))][1])
    elif way == 7:
        special = rng.choice([float("nan"), float("inf"), -1e300])
        members[at] = (name, content[:-8] + struct.pack("<d", special) if len(content) > 8 else content)
    else:
        rng.shuffle(members)
    packed = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    if way == 5 and rng.random() < 0.1:  # a bomb: a few kB that unpack to a lot
        members[at] = (name, content + bytes(50_000_000))
        packed = zipfile.ZIP_DEFLATED
    file = io.BytesIO()
    try:
        with zipfile.ZipFile(file, "w", packed) as archive:
            for each, inside in members:
                archive.writestr(zipfile.ZipInfo(each) if packed == zipfile.ZIP_STORED else each, inside, packed)
    except Exception:
        return data
    return file.getvalue()


def _header(content: bytes, rng: random.Random) -> bytes:
    """Let the header of a .npy lie: another type, another shape, Fortran order, objects."""
    lies = [
        (rb"'shape': \([^)]*\)", rng.choice([b"'shape': (10**9,)", b"'shape': (999999999999, 999999)", b"'shape': (-1,)", b"'shape': ()"])),
        (rb"'descr': '[^']*'", rng.choice([b"'descr': '|O'", b"'descr': '<f8'", b"'descr': '<U9999999'", b"'descr': '|V0'", b"'descr': '<c16'"])),
        (rb"'fortran_order': False", b"'fortran_order': True "),
    ]  # fmt: skip
    pattern, new = rng.choice(lies)
    return re.sub(pattern, lambda _: new, content, count=1)

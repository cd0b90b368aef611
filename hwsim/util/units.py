"""Quantities with units: "1.8 GB/s", "90 us", "4 KiB" <-> plain numbers in SI base units.

Inside hwsim a size is bytes (int), a time seconds, a rate bytes a second, an energy joules a byte or joules an
operation, a power watts. Decimal and binary units differ: 1 GB = 10^9 bytes, 1 GiB = 2^30 bytes.
"""

from __future__ import annotations

import math
import re
import unicodedata
from fractions import Fraction
from typing import Annotated, Any

from pydantic import BeforeValidator

from hwsim.errors import UnitError

_DECIMAL = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_SIZE = {f"{prefix}B": Fraction(factor) for prefix, factor in (_DECIMAL | _BINARY).items()}
_TIME = {"s": Fraction(1), "ms": Fraction(1, 10**3), "us": Fraction(1, 10**6), "µs": Fraction(1, 10**6)}
_TIME |= {"ns": Fraction(1, 10**9)}
_ENERGY = {"J": Fraction(1), "mJ": Fraction(1, 10**3), "uJ": Fraction(1, 10**6), "nJ": Fraction(1, 10**9)}
_ENERGY |= {"pJ": Fraction(1, 10**12)}
_OPS = {
    f"{prefix}{unit}": Fraction(_DECIMAL[prefix]) for prefix in ("", "M", "G", "T") for unit in ("OP/s", "OPS", "FLOPS")
}

KINDS: dict[str, dict[str, Fraction]] = {
    "size": _SIZE,
    "rate": {f"{unit}/s": factor for unit, factor in _SIZE.items()},
    "time": _TIME,
    "energy per byte": {f"{unit}/B": factor for unit, factor in _ENERGY.items()},
    "energy per operation": {f"{unit}/OP": factor for unit, factor in _ENERGY.items()},
    "power": {"W": Fraction(1), "mW": Fraction(1, 1000)},
    "compute rate": _OPS,
}
_EXAMPLE = {
    "size": "4 GB",
    "rate": "1.8 GB/s",
    "time": "90 us",
    "energy per byte": "56 pJ/B",
    "energy per operation": "0.5 pJ/OP",
    "power": "1.2 W",
    "compute rate": "12 TFLOPS",
}
_LEAST, _MOST = (
    Fraction(1, 10**18),
    Fraction(10**18),
)  # bounds of a quantity in a file, in SI units, so that times stay finite
_DIGITS = 400  # of a number in a text; Python refuses numbers of some thousands of digits
_STEERING = {"Cc", "Cf", "Zl", "Zp"}  # controls, invisible marks that reverse the text, line ends
_NUMBER = re.compile(r"\s*([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?)\s*(\S*)\s*")


def parse(text: Any, kind: str) -> Fraction:
    """Read a quantity of `kind` (a key of `KINDS`) exactly, in SI base units.

    Raises:
        UnitError: not a number with a unit of this kind, or a negative number.
    """
    if isinstance(text, int) and abs(text) > 10**_DIGITS:
        raise UnitError("a whole number of hundreds of digits is out of all proportion")  # Python does not write them
    units, example, shown = KINDS[kind], _EXAMPLE[kind], shorten(repr(text))
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        raise UnitError(f"{shown} is not {_a(kind)}; write a number and its unit, such as {example!r}")
    if len(str(text)) > 2 * _DIGITS:
        raise UnitError(f"{shown} is out of all proportion")
    match = _NUMBER.fullmatch(str(text))
    if not match:
        raise UnitError(f"{shown} is not {_a(kind)}; write a number and its unit, such as {example!r}")
    number, unit = match.groups()
    if not unit:
        raise UnitError(f"{shown} has no unit; {_a(kind)} needs one of {', '.join(units)}, such as {example!r}")
    if unit not in units:
        raise UnitError(f"{shown}: {shorten(repr(unit))} is not a unit of {_a(kind)}; use one of {', '.join(units)}")
    if len(number) > _DIGITS:
        raise UnitError(f"{shown} is out of all proportion")
    value = Fraction(number) * units[unit]
    if value < 0:
        raise UnitError(f"{shown} is negative; {_a(kind)} must not be")
    return value


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def shorten(text: str, limit: int = 60) -> str:
    """`text` cut to at most `limit` characters, for messages."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


def printable(text: str) -> str:
    r"""`text` of a file or its name, safe to print on one line.

    Characters that UTF-8 cannot hold become ?; those that would control a terminal become escapes such as ``\x1b``.
    """
    safe = text.encode("utf-8", "replace").decode()
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in _STEERING else character
        for character in safe
    )


def _quantity(kind: str, *, whole: bool = False, positive: bool = True) -> BeforeValidator:
    def read(text: Any) -> int | float:
        # pydantic turns ValueError into an error that carries the field's path
        try:
            value = parse(text, kind)
        except UnitError as error:
            raise ValueError(str(error)) from error
        if positive and value == 0:
            raise ValueError(f"{text!r} is zero; {_a(kind)} must be more here")
        if value and not _LEAST <= value <= _MOST:
            raise ValueError(f"{text!r} is out of all proportion")
        if whole and value.denominator != 1:
            raise ValueError(f"{text!r} is not a whole number of bytes")
        return int(value) if whole else float(value)

    return BeforeValidator(read)


# types for pydantic fields: in the file "4 GB", in the program 4_000_000_000
Size = Annotated[int, _quantity("size", whole=True)]
Rate = Annotated[float, _quantity("rate")]
Time = Annotated[float, _quantity("time", positive=False)]
EnergyPerByte = Annotated[float, _quantity("energy per byte", positive=False)]
EnergyPerOperation = Annotated[float, _quantity("energy per operation", positive=False)]
Power = Annotated[float, _quantity("power", positive=False)]
ComputeRate = Annotated[float, _quantity("compute rate")]


def size(text: str) -> int:
    """Bytes of "4 GB", rounded down to a whole byte."""
    return math.floor(parse(text, "size"))


def _scaled(value: float, steps: list[tuple[float, str]], digits: int) -> str:
    for factor, unit in steps:
        if abs(value) >= factor * 0.9995:
            return f"{_round(value / factor, digits)} {unit}"
    factor, unit = steps[-1]
    return f"{_round(value / factor, digits)} {unit}"


def _round(value: float, digits: int) -> str:
    """`digits` significant digits, but never an exponent: 0.0123, 1.23, 12.3, 123, 1234."""
    if value == 0:
        return "0"
    value = float(f"{value:.{digits - 1}e}")  # rounded first: 999.9 has as many places as 1000
    places = max(0, digits - 1 - math.floor(math.log10(abs(value)) + 1e-12))
    return f"{value:.{places}f}"


def show_number(value: float, digits: int = 4) -> str:
    """`digits` significant digits, every digit before the point and no trailing zeros: 0.5, 12.35, 16,530."""
    text = f"{value:.{digits}g}"
    return f"{float(text):,.0f}" if "e+" in text and math.isfinite(value) and abs(value) < 1e15 else text


def show_size(value: float, digits: int = 3) -> str:
    """1_234_567 -> "1.23 MB"; 7 -> "7 B"."""
    if abs(value) < 1000 and value == int(value):
        return f"{int(value)} B"
    return _scaled(value, [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")], digits)


def show_rate(value: float, digits: int = 3) -> str:
    """Bytes a second -> "1.8 GB/s"."""
    return show_size(value, digits) + "/s"


def show_time(value: float, digits: int = 3) -> str:
    """Seconds -> "90.0 us"."""
    return _scaled(value, [(1, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns")], digits)


def show_energy(value: float, digits: int = 3) -> str:
    """Joules -> "12.3 mJ"."""
    return _scaled(value, [(1, "J"), (1e-3, "mJ"), (1e-6, "uJ"), (1e-9, "nJ"), (1e-12, "pJ")], digits)

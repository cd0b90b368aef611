"""What the columns of a router trace hold, whatever the format calls them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np

Kind = Literal["whole", "number", "flag", "phase"]
MOST = 10**15  # whole numbers beyond this are mistakes in any column

PROMPT, DECODE = 0, 1
PHASES = {"prompt": PROMPT, "0": PROMPT, "decode": DECODE, "1": DECODE}


class Column(NamedTuple):
    """A column.

    Attributes:
        name: in the file.
        meaning: key of `Rows.values`, the same for all formats.
        kind: whole: an integer from 0; number: any number; flag: 0 or 1; phase: prompt or decode.
        required: whether a file must have it.
        most: largest value of a flag.
    """

    name: str
    meaning: str
    kind: Kind = "whole"
    required: bool = True
    most: int = 1

    @property
    def rule(self) -> str:
        """What a value must be, for messages."""
        if self.kind == "whole":
            return f"must be a whole number from 0 to {MOST}"
        if self.kind == "number":
            return "must be a number"
        return "must be prompt or decode, or 0 or 1" if self.kind == "phase" else f"must be from 0 to {self.most}"


def repeated(names: Iterable[str]) -> str | None:
    """The first name that is there for the second time; None if all differ."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


class Rows(NamedTuple):
    """Some rows of a file.

    Attributes:
        first: number of the line of the first row; the others follow without a gap.
        values: int64 ``[rows]`` by the meaning of the column, float64 for numbers. Optional columns that the file
            lacks are missing.
    """

    first: int
    values: dict[str, np.ndarray]

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.values["layer"])

    def part(self, start: int, stop: int) -> Rows:
        """Rows `start` to `stop`."""
        return Rows(self.first + start, {name: values[start:stop] for name, values in self.values.items()})

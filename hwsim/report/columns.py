"""Tables that fit a terminal: columns go where a line has no room for them, and a number is never cut."""

from __future__ import annotations

from typing import NamedTuple

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

_NAME = 16  # characters that a name may be folded to


class Column(NamedTuple):
    """One column.

    Attributes:
        head: its lines above the cells.
        cells: one for each row.
        drop: where there is no room the highest goes first, equal ones together; 0 stays.
        name: what a reader calls it; the head by default.
        folds: whether its cells are words, which may go over several lines; numbers may not.
        color: of the head.
    """

    head: str
    cells: list[str]
    drop: int = 0
    name: str = ""
    folds: bool = False
    color: str = ""

    @property
    def whole(self) -> int:
        """Characters that it takes where nothing is folded."""
        return max(cell_len(line) for cell in (self.head, *self.cells) for line in cell.split("\n"))

    @property
    def width(self) -> int:
        """Characters that it needs at least."""
        return min(self.whole, _NAME) if self.folds else self.whole


def fit(columns: list[Column], width: int, gap: int) -> tuple[list[Column], list[str]]:
    """The columns that a line of `width` characters has room for, `gap` between them, and the names of the others."""
    kept = list(columns)
    while sum(column.width for column in kept) + gap * (len(kept) - 1) > width and any(column.drop for column in kept):
        last = max(column.drop for column in kept)
        kept = [column for column in kept if column.drop != last]
    there = {id(column) for column in kept}
    dropped = [column.name or " ".join(column.head.split()) for column in columns if id(column) not in there]
    return kept, list(dict.fromkeys(dropped))


def total(columns: list[Column], gap: int) -> int:
    """Characters that the columns take where nothing is folded."""
    return sum(column.whole for column in columns) + gap * (len(columns) - 1)


def table(columns: list[Column], gap: int) -> Table:
    """A table of the columns without its rows: the first and words to the left, numbers to the right."""
    made = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        head = Text(column.head, style=f"bold {column.color}".strip())
        made.add_column(head, justify="right" if index and not column.folds else "left", overflow="fold")
    return made


def rows(columns: list[Column]) -> list[list[Text]]:
    """The cells, row by row."""
    return [[Text(cell) for cell in row] for row in zip(*(column.cells for column in columns), strict=True)]


def widen(dropped: list[str]) -> Text:
    """The line that says what did not fit."""
    return Text(f"widen the terminal for {', '.join(dropped)}", style="dim")

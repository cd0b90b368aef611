"""Tables that fit a terminal: columns are dropped if a line is too narrow for them; numbers are never cut."""

from __future__ import annotations

from typing import NamedTuple

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

_NAME = 16  # characters that a name may be folded to


class Column(NamedTuple):
    """One column.

    Attributes:
        head: heading; may have several lines.
        cells: one for each row.
        drop: order of dropping if there is no room: the highest goes first, equal ones together; 0 is never dropped.
        name: name in the line that lists dropped columns; the head by default.
        folds: whether the cells are words, which may wrap over several lines; numbers may not.
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
        """Width in characters if nothing is folded."""
        return max(cell_len(line) for cell in (self.head, *self.cells) for line in cell.split("\n"))

    @property
    def width(self) -> int:
        """Smallest width in characters."""
        return min(self.whole, _NAME) if self.folds else self.whole


def fit(columns: list[Column], width: int, gap: int) -> tuple[list[Column], list[str]]:
    """Return the columns that fit a line of `width` characters with `gap` between them, and the names of the others."""
    kept = list(columns)
    while sum(column.width for column in kept) + gap * (len(kept) - 1) > width and any(column.drop for column in kept):
        last = max(column.drop for column in kept)
        kept = [column for column in kept if column.drop != last]
    there = {id(column) for column in kept}
    dropped = [column.name or " ".join(column.head.split()) for column in columns if id(column) not in there]
    return kept, list(dict.fromkeys(dropped))


def total(columns: list[Column], gap: int) -> int:
    """Width of all columns in characters if nothing is folded."""
    return sum(column.whole for column in columns) + gap * (len(columns) - 1)


def table(columns: list[Column], gap: int) -> Table:
    """An empty table with these columns: the first column and words are aligned left, numbers right."""
    shown = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        head = Text(column.head, style=f"bold {column.color}".strip())
        shown.add_column(head, justify="right" if index and not column.folds else "left", overflow="fold")
    return shown


def rows(columns: list[Column]) -> list[list[Text]]:
    """The cells of the columns as rows."""
    return [[Text(cell) for cell in row] for row in zip(*(column.cells for column in columns), strict=True)]


def widen(dropped: list[str]) -> Text:
    """The line that names the columns that did not fit."""
    return Text(f"widen the terminal for {', '.join(dropped)}", style="dim")

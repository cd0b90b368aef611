"""Tables of Markdown, and their places in pages: what all experiments share."""

from __future__ import annotations

import re
from typing import Any

Row = dict[str, Any]


def replaced(text: str, name: str, table: str) -> str:
    """The text with a table between ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``."""
    pattern = re.compile(rf"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"the page has no place for the table {name!r}")
    return pattern.sub(lambda found: f"{found[1]}\n{table}\n\n{found[2]}", text)


def grid(head: list[str], body: list[list[str]]) -> str:
    """A table of Markdown; the first column is of words, the others of numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cells(rows: list[Row], down: str, across: str, show: Any) -> str:
    """A table of one number: one key names its rows, another its columns, both in order of appearance."""
    heads, names = list(dict.fromkeys(row[across] for row in rows)), list(dict.fromkeys(row[down] for row in rows))
    found = {(row[down], row[across]): show(row) for row in rows}
    return grid(["", *map(str, heads)], [[name, *(found.get((name, head), "-") for head in heads)] for name in names])

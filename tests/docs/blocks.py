"""What the pages show in fences: found in order, with their language and title."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

_FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fence of a page.

    Attributes:
        language: sh, text, python, yaml and so on; empty where there is none.
        title: the name of the file that it is, from ``title="..."``; else empty.
        text: what is in it.
        command: the name that ``<!-- command: NAME -->`` gives it on the line before; else empty.
        line: where it begins.
    """

    language: str
    title: str
    text: str
    command: str
    line: int


def fences(page: str | Path) -> list[Block]:
    """All fences of a page, in order."""
    text = page if isinstance(page, str) else page.read_text(encoding="utf-8")
    found = []
    for each in _FENCE.finditer(text):
        title = re.search(r'title="([^"]+)"', each[2])
        before = text[: each.start()]
        command = re.search(r"<!-- command: ([^\n]+) -->\n\Z", before)
        found.append(
            Block(
                each[1], title[1] if title else "", each[3], command[1] if command else "", before.count("\n") + 1
            )
        )  # fmt: skip
    return found


def blocks(page: str | Path, language: str) -> list[str]:
    """The text of all fences of a language."""
    return [each.text for each in fences(page) if each.language == language]

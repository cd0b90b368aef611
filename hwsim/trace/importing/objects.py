"""Rows of JSON lines as arrays."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from hwsim.errors import did_you_mean
from hwsim.trace.importing.columns import MOST, PHASES, Column, Rows, repeated
from hwsim.trace.importing.lines import Block, LineFile
from hwsim.util.units import shorten

_TYPES: dict[str, set[type]] = {"whole": {int}, "flag": {int, bool}, "number": {int, float}, "phase": {int, str}}


class Objects:
    """Reads the rows of one file of JSON lines.

    Args:
        source: the file.
        known: the columns of the format.
    """

    def __init__(self, source: LineFile, known: Sequence[Column]) -> None:
        self._source, self._known = source, {column.name: column for column in known}
        self._columns: list[Column] = []  # of the file, as its first row has them
        self._line = 0  # of the first row

    def read(self, block: Block) -> Rows:
        """The rows of some lines.

        Raises:
            TraceError: a line is no JSON object, has other keys than the first row, or a value is wrong.
        """
        if not self._columns:
            self._line, self._columns = block.first, self._find(block)
        values = self._quick(block.lines)
        return Rows(block.first, values if values is not None else self._careful(block))

    def _find(self, block: Block) -> list[Column]:
        names = list(parse(self._source, block.lines[0], block.first))
        for name in names:
            if name not in self._known:
                raise self._source.error(
                    f"unknown key {shorten(repr(name))}{did_you_mean(name, self._known)}", block.first
                )
        for column in self._known.values():
            if column.required and column.name not in names:
                raise self._source.error(f"{column.name} is missing; every row must have it", block.first)
        return [self._known[name] for name in names]

    def _quick(self, lines: list[str]) -> dict[str, np.ndarray] | None:
        """The columns; None if anything is unusual."""
        names = {column.name for column in self._columns}
        if not all(line.startswith("{") and line.endswith("}") for line in lines):
            return None
        try:
            # at once, in a third of the time; each line is one object, because an object cannot hold one without a key
            rows = json.loads(f"[{','.join(lines)}]")
            if len(rows) != len(lines):
                return None
            if not all(row.keys() == names for row in rows):
                return None
            if sum(line.count(":") for line in lines) != len(lines) * len(names):  # a key may be there twice
                return None
            values = {column.meaning: self._array(column, [row[column.name] for row in rows])
                      for column in self._columns}  # fmt: skip
        except (ValueError, OverflowError, RecursionError, AttributeError, TypeError, KeyError):
            return None
        return values

    @staticmethod
    def _array(column: Column, values: list[Any]) -> np.ndarray:
        """An array of checked values; ValueError if one is wrong."""
        if not set(map(type, values)) <= _TYPES[column.kind]:
            raise ValueError
        if column.kind == "number":
            return np.array(values, np.float64)
        if column.kind == "phase":
            values = [PHASES[str(value)] for value in values]
        array = np.array(values, np.int64)
        if array.min() < 0 or array.max() > (column.most if column.kind == "flag" else MOST):
            raise ValueError
        return array

    def _careful(self, block: Block) -> dict[str, np.ndarray]:
        """The same value by value; raises for the first wrong one."""
        rows = [self._row(line, number) for number, line in enumerate(block.lines, block.first)]
        return {
            column.meaning: self._array(column, list(values))
            for column, values in zip(self._columns, zip(*rows, strict=True), strict=True)
        }

    def _row(self, line: str, number: int) -> list[Any]:
        row = parse(self._source, line, number)
        for name in row:
            if name not in self._known:
                raise self._source.error(f"unknown key {shorten(repr(name))}{did_you_mean(name, self._known)}", number)
        names = {column.name for column in self._columns}
        for name in [*names - row.keys(), *row.keys() - names]:
            rule = "give it in every row" + ("" if self._known[name].required else ", or in none")
            fact = (
                f"has {name}, which line {self._line} lacks"
                if name in row
                else f"lacks {name}, which line {self._line} has"
            )
            raise self._source.error(f"{fact}; {rule}", number)
        for column in self._columns:
            value = row[column.name]
            try:
                self._array(column, [value])
            except (ValueError, OverflowError, KeyError) as error:
                text = f"{column.name} is {shorten(json.dumps(value))}; {column.rule}"
                raise self._source.error(text, number) from error
        return [row[column.name] for column in self._columns]


def parse(source: LineFile, line: str, number: int) -> dict[str, Any]:
    """The object of one line.

    Raises:
        TraceError: it is no JSON object, or names a key twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if (twice := repeated(name for name, _ in pairs)) is not None:
            raise source.error(f"names {shorten(repr(twice))} twice; delete one", number)
        return dict(pairs)

    if not line.strip():
        raise source.error("is empty; every line must be a JSON object", number)
    try:
        row = json.loads(line, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise source.error(f"is no whole JSON object: {shorten(repr(line))}", number)
    return row

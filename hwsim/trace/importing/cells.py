"""Rows of CSV as arrays: at numpy's speed where all cells are plain, else cell by cell, which finds the wrong one."""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from hwsim.errors import did_you_mean
from hwsim.trace.importing.columns import MOST, PHASES, Column, Rows
from hwsim.trace.importing.lines import Block, LineFile
from hwsim.util.units import shorten

_TYPES = {"whole": "<i8", "flag": "<i8", "number": "<f8", "phase": "<U7"}  # one letter more than "prompt"
_WHOLE = re.compile(r"\+?[0-9]{1,18}")


class Cells:
    """Reads the rows of one CSV file.

    Args:
        source: the file.
        columns: the columns in the order of the file; see `find_columns`.
    """

    def __init__(self, source: LineFile, columns: Sequence[Column]) -> None:
        self._source, self._columns = source, list(columns)
        self._dtype = np.dtype([(column.meaning, _TYPES[column.kind]) for column in columns])

    def read(self, block: Block) -> Rows:
        """The rows of some lines.

        Raises:
            TraceError: a line has other columns, or a cell is no number.
        """
        table = self._quick(block.lines)
        values = None if table is None else self._plain(table)
        return Rows(block.first, values if values is not None else self._careful(block))

    def _quick(self, lines: list[str]) -> np.ndarray | None:
        """A structured array; None if numpy does not take every line as a row."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # numpy only warns of 3.0 in a column of integers
                table = np.loadtxt(lines, self._dtype, delimiter=",", comments=None, ndmin=1, quotechar=None)
        except (ValueError, OverflowError, Warning):
            return None
        return table if len(table) == len(lines) else None

    def _plain(self, table: np.ndarray) -> dict[str, np.ndarray] | None:
        """The columns as arrays of numbers; None if a value is no value of its column."""
        values = {}
        for column in self._columns:
            array = table[column.meaning]
            if column.kind == "phase":
                phase = np.full(len(array), -1, np.int64)
                for word, number in PHASES.items():
                    phase[array == word] = number
                array = phase
            most = column.most if column.kind == "flag" else MOST
            if column.kind != "number" and (array.min() < 0 or array.max() > most):
                return None
            values[column.meaning] = np.ascontiguousarray(array)
        return values

    def _careful(self, block: Block) -> dict[str, np.ndarray]:
        """The same cell by cell; raises for the first wrong cell."""
        rows = [self._row(line, number) for number, line in enumerate(block.lines, block.first)]
        return {
            column.meaning: np.array(values, np.float64 if column.kind == "number" else np.int64)
            for column, values in zip(self._columns, zip(*rows, strict=True), strict=True)
        }

    def _row(self, line: str, number: int) -> list[Any]:
        cells = split(self._source, line, number)
        if not line.strip():
            raise self._source.error("is empty; every line after the names of the columns must be a row", number)
        if line.lstrip().startswith("#"):
            raise self._source.error(f"{shorten(repr(line))} is a comment among the rows; move it to the top", number)
        if len(cells) != len(self._columns):
            raise self._source.error(f"has {len(cells)} cells, the columns are {len(self._columns)}", number)
        return [self._cell(column, cell.strip(), number) for column, cell in zip(self._columns, cells, strict=True)]

    def _cell(self, column: Column, cell: str, number: int) -> float:
        if not cell:
            hint = "" if column.required else "; give it in every row, or leave the column out"
            raise self._source.error(f"{column.name} is empty; {column.rule}{hint}", number)
        try:
            if column.kind == "number" and cell.isascii() and "_" not in cell:
                return float(cell)
        except ValueError:
            pass
        if column.kind == "phase" and cell in PHASES:
            return PHASES[cell]
        if column.kind in ("whole", "flag") and _WHOLE.fullmatch(cell):
            value = int(cell)
            if value <= (column.most if column.kind == "flag" else MOST):
                return value
        raise self._source.error(f"{column.name} is {shorten(repr(cell))}; {column.rule}", number)


def split(source: LineFile, line: str, number: int) -> list[str]:
    """The cells of one line of CSV."""
    try:
        return next(csv.reader([line], strict=True), [])
    except csv.Error as error:
        raise source.error(f"is no row of CSV: {error}", number) from error


def find_columns(source: LineFile, names: list[str], known: Sequence[Column], number: int) -> list[Column]:
    """The columns in the order of the file.

    Args:
        source: the file.
        names: as the file has them.
        known: the columns of the format.
        number: of the line that names them.

    Raises:
        TraceError: a column is unknown, named twice or missing.
    """
    by_name = {column.name: column for column in known}
    for name in names:
        if name not in by_name:
            raise source.error(f"unknown column {shorten(repr(name))}{did_you_mean(name, by_name)}", number)
        if names.count(name) > 1:
            raise source.error(f"column {name!r} is named twice; delete one", number)
    for column in known:
        if column.required and column.name not in names:
            raise source.error(f"column {column.name!r} is missing; the file must have it", number)
    return [by_name[name] for name in names]

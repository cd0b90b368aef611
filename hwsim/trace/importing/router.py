"""A router trace of any format: its preamble, and its rows block by block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hwsim.trace.importing.columns import Rows
from hwsim.trace.importing.lines import Block, LineFile
from hwsim.trace.importing.order import Order
from hwsim.trace.importing.preamble import Preamble

_MOST_WEIGHT = float(np.finfo(np.float32).max)


class RowReader(Protocol):
    """Turns lines into rows: `Cells` or `Objects`."""

    def read(self, block: Block) -> Rows:
        """The rows of some lines."""
        ...


@dataclass(frozen=True)
class RouterFile:
    """A file of a known format, whose preamble was read.

    Attributes:
        source: the file.
        format: name of the format.
        preamble: sizes of the model.
        reader: of the lines after the preamble.
        skip: lines of the preamble.
        names: names in the file of the columns sequence and token.
        resumes: whether a later sequence may begin at any position.
        unknown_weights: whether NaN stands for a weight that is not known.
    """

    source: LineFile
    format: str
    preamble: Preamble
    reader: RowReader
    skip: int
    names: tuple[str, str]
    resumes: bool = False
    unknown_weights: bool = False

    def order(self) -> Order:
        """A new `Order` for one pass over the rows."""
        sparse = [size > 0 for size in self.preamble.expert_bytes]
        return Order(self.source, sparse, self.preamble.used, self.names, resumes=self.resumes)

    def rows(self) -> Iterator[Rows]:
        """All rows in order, checked one by one; `Order` checks how they follow each other.

        Raises:
            TraceError: a row is wrong.
        """
        for block in self.source.blocks(self.skip):
            if block.lines:
                rows = self.reader.read(block)
                self._check(rows)
                yield rows

    def _check(self, rows: Rows) -> None:
        """Refuse the first row that contradicts the preamble."""
        values, preamble = rows.values, self.preamble
        layer, experts, used = values["layer"], preamble.experts, preamble.used
        most = preamble.layers - 1
        self._refuse(rows, "layer", "layer", layer > most, f"n_layer is {most + 1}, so it must be at most {most}")
        sizes = np.array(preamble.expert_bytes, np.int64)[layer]
        self._refuse(rows, "layer", "layer", sizes == 0, "the preamble gives it no experts (expert_bytes=0)")
        rule = f"n_expert is {experts}, so it must be at most {experts - 1}"
        self._refuse(rows, "expert", "expert", values["expert"] >= experts, rule)
        if "rank" in values:
            rule = f"n_expert_used is {used}, so it must be at most {used - 1}"
            self._refuse(rows, "slot", "rank", values["rank"] >= used, rule)
        if "weight" in values:
            weight = values["weight"]
            wrong = ~((weight >= 0) & (weight <= _MOST_WEIGHT))
            if self.unknown_weights:
                wrong &= ~np.isnan(weight)
            self._refuse(rows, "weight", "weight", wrong, "must be a finite number from 0")
        if "bytes" in values:
            size = values["bytes"]
            rule = "must be 0, or that of the layer in the preamble, %d"
            self._refuse(rows, "expert_bytes", "bytes", (size != 0) & (size != sizes), rule, sizes)

    def _refuse(
        self, rows: Rows, name: str, meaning: str, wrong: np.ndarray, rule: str, limit: np.ndarray | None = None
    ) -> None:
        """Refuse the first row for which `wrong` is true; `limit` holds a number of each row that the rule names."""
        if wrong.any():
            index = int(np.flatnonzero(wrong)[0])
            value = rows.values[meaning][index]
            text = rule if limit is None else rule % limit[index]
            raise self.source.error(f"{name} is {value}; {text}", rows.first + index)

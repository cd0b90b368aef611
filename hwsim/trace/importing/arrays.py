"""The arrays of an imported trace, filled row by row and written layer by layer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hwsim.trace.header import TraceHeader
from hwsim.trace.importing.columns import Rows
from hwsim.trace.importing.order import Places
from hwsim.trace.importing.router import RouterFile
from hwsim.trace.writer import TraceWriter

_UNSEEN = 2  # of `accepted`


class Arrays:
    """The arrays of all layers that have experts, ``[layers, tokens, used]``.

    Args:
        router: file whose rows were checked.
        header: of the trace.
        weights, residency, accepted: whether the trace holds them.
        without_dropped: whether experts that the device left out are left out here, too.

    Attributes:
        experts: int16, -1 where a token has none.
        weights: float32, or None.
        residency: uint8, or None.
        accepted: uint8 ``[tokens]``, or None.
    """

    def __init__(
        self,
        router: RouterFile,
        header: TraceHeader,
        *,
        weights: bool,
        residency: bool,
        accepted: bool,
        without_dropped: bool,
    ) -> None:
        self._router = router
        self._layers = header.model.layers_with("experts")
        self._slot_of = np.full(header.model.num_hidden_layers, -1, np.int64)
        self._slot_of[self._layers] = np.arange(len(self._layers))
        shape = (len(self._layers), header.tokens, router.preamble.used)
        self.experts = np.full(shape, -1, np.int16)
        self.weights = np.zeros(shape, np.float32) if weights else None
        self.residency = np.zeros(shape, np.uint8) if residency else None
        self.accepted = np.full(header.tokens, _UNSEEN, np.uint8) if accepted else None
        self._dropped = np.zeros(shape, np.uint8) if without_dropped else None

    def fill(self, tell: Callable[[str, int, int], None]) -> None:
        """Read all rows.

        Raises:
            TraceError: a token has one expert twice, or rows of a token differ in `accepted`, or all its experts were
                left out.
        """
        order = self._router.order()
        for rows in self._router.rows():
            self._take(rows, order.place(rows))
            tell("reading rows", rows.first + len(rows), rows.first + len(rows) + 1)
        for slot, layer in enumerate(self._layers):
            self._check_twice(slot, layer)
            if self._dropped is not None:
                self._leave_out(slot, layer, self._dropped[slot])

    def write(self, writer: TraceWriter) -> None:
        """Write everything."""
        for slot, layer in enumerate(self._layers):
            writer.write(layer, "experts", 0, self.experts[slot])
            if self.weights is not None:
                writer.write(layer, "expert_weights", 0, self.weights[slot])
            if self.residency is not None:
                writer.write_residency(layer, 0, self.residency[slot])
        if self.accepted is not None:
            writer.write_accepted(0, self.accepted)

    def _take(self, rows: Rows, places: Places) -> None:
        values = rows.values
        at = self._slot_of[values["layer"]], places.token, places.rank
        self.experts[at] = values["expert"]
        if self.weights is not None:
            self.weights[at] = values["weight"]
        if self.residency is not None:
            self.residency[at] = values["residency"] > 0
        if self._dropped is not None:
            self._dropped[at] = values["dropped"]
        if self.accepted is not None:
            self._accept(self.accepted, rows, places.token)

    def _accept(self, accepted: np.ndarray, rows: Rows, token: np.ndarray) -> None:
        flags = rows.values["accepted"]
        wrong = (accepted[token] != _UNSEEN) & (accepted[token] != flags)
        accepted[token] = flags
        wrong |= accepted[token] != flags
        if wrong.any():
            line = rows.first + int(np.argmax(wrong))
            raise self._router.source.error(
                "accepted differs from other rows of this token; it is one flag a token", line
            )

    def _check_twice(self, slot: int, layer: int) -> None:
        ordered = np.sort(self.experts[slot], axis=1)
        twice = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(axis=1)
        if twice.any():
            token = int(np.argmax(twice))
            row = self.experts[slot, token].tolist()
            rank = next(rank for rank, expert in enumerate(row) if expert in row[:rank])
            self._refuse(layer, token, rank, f"expert is {row[rank]} for the second time in this token and layer")

    def _leave_out(self, slot: int, layer: int, dropped: np.ndarray) -> None:
        """Move the experts that the device used to the front, and -1 behind them."""
        if dropped.all(axis=1).any():
            token = int(np.argmax(dropped.all(axis=1)))
            self._refuse(layer, token, 0, "all experts of this token and layer are dropped; one must be used")
        order = np.argsort(dropped, axis=1, kind="stable")
        gone = np.take_along_axis(dropped, order, axis=1) > 0
        for array, empty in ((self.experts, -1), (self.weights, 0), (self.residency, 0)):
            if array is not None:
                array[slot] = np.where(gone, empty, np.take_along_axis(array[slot], order, axis=1))

    def _refuse(self, layer: int, token: int, rank: int, text: str) -> None:
        """Refuse the row of a place, whose line a third pass finds."""
        order, line = self._router.order(), None
        for rows in self._router.rows():
            places = order.place(rows)
            same = (places.token == token) & (rows.values["layer"] == layer) & (places.rank == rank)
            if same.any():
                line = rows.first + int(np.argmax(same))
                break
        raise self._router.source.error(text, line)

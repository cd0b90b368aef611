"""Which token of the trace and which rank in the router's choice each row belongs to, and whether none is missing.

Rows of a sequence come in two stretches, prompt and decode. Within a stretch the rows of *each layer* are in the order
of tokens, then of ranks; the layers may be interleaved in any way: token by token, as decoding writes them, or layer by
layer, as the pass over a prompt does.

The last layer of a model may have rows of a prompt's last token only: llama.cpp leaves the others out there, because
nothing reads what that layer makes of them.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from hwsim.trace.importing.columns import PROMPT, Rows
from hwsim.trace.importing.lines import LineFile

_WORDS = ("prompt", "decoded")


class Part(NamedTuple):
    """A sequence of the trace.

    Attributes:
        row: of its first token in the trace.
        start: position of its first token, as the file counts.
        prompt: tokens of its prompt.
        tokens: tokens in all.
        short: whether the last layer has experts for the last token of the prompt only.
    """

    row: int
    start: int
    prompt: int
    tokens: int
    short: bool


class Places(NamedTuple):
    """Where rows of the file belong: the token of the trace and the rank in the router's choice, int64 ``[rows]``."""

    token: np.ndarray
    rank: np.ndarray


class Order:
    """Follows the rows of a file from its beginning.

    Args:
        source: the file, for messages.
        sparse: for each layer whether it has experts.
        used: experts of a token in a layer.
        names: names in the file of the columns sequence and token.
        resumes: whether the positions of a sequence after the first one may begin anywhere, as in a conversation.

    Attributes:
        parts: sequences that are complete.
    """

    def __init__(
        self, source: LineFile, sparse: list[bool], used: int, names: tuple[str, str], *, resumes: bool
    ) -> None:
        self._source, self._used, self._resumes = source, used, resumes
        self._sequence_name, self._token_name = names
        self._sparse = np.flatnonzero(sparse)
        self._last = len(sparse) - 1 if sparse[-1] and self._sparse.size > 1 else -1
        self._layers = len(sparse)
        self.parts: list[Part] = []
        self._row = 0  # of the trace, at which the next sequence begins
        self._sequence, self._phase = -1, PROMPT
        self._start = self._prompt = 0
        self._short = -1  # position of the only token that the last layer has in this prompt
        self._was_short = False
        self._counts = np.zeros(self._layers, np.int64)  # rows of each layer in this stretch

    def place(self, rows: Rows) -> Places:
        """The places of the next rows.

        Raises:
            TraceError: rows are missing, or not in order.
        """
        values = rows.values
        changes = (np.diff(values["sequence"]) != 0) | (np.diff(values["phase"]) != 0)
        bounds = [0, *(np.flatnonzero(changes) + 1).tolist(), len(rows)]
        token, rank = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
        for start, stop in itertools.pairwise(bounds):
            part = rows.part(start, stop)
            self._enter(part)
            token[start:stop], rank[start:stop] = self._stretch(part)
        return Places(token, rank)

    def finish(self) -> list[Part]:
        """All sequences, after the last row.

        Raises:
            TraceError: the last sequence is not complete.
        """
        if self._sequence < 0:
            raise self._source.error("has no rows")
        self._end_sequence(None)
        return self.parts

    # ------------------------------------------------------------------ stretches

    def _enter(self, rows: Rows) -> None:
        """Begin another stretch if the first row belongs to one."""
        sequence, phase = int(rows.values["sequence"][0]), int(rows.values["phase"][0])
        if (sequence, phase) == (self._sequence, self._phase):
            return
        name = self._sequence_name
        if sequence == self._sequence:
            if phase == PROMPT:
                raise self._source.error(
                    f"{name} {sequence} has a row of the prompt after decoded ones; the prompt must come first",
                    rows.first,
                )
            self._prompt = self._end_stretch(rows.first)
        else:
            if self._sequence >= 0:
                self._end_sequence(rows.first)
            if sequence != self._sequence + 1:
                raise self._source.error(
                    f"{name} is {sequence}, must be {self._sequence + 1}; sequences are numbered from 0 without a gap, "
                    "one after the other",
                    rows.first,
                )
            self._begin(sequence, rows)
        self._phase = phase
        self._counts[:] = 0

    def _begin(self, sequence: int, rows: Rows) -> None:
        start = int(rows.values["token"][0])
        if start and not (self._resumes and sequence):
            raise self._source.error(
                f"{self._token_name} is {start}, must be 0 in the first row of a sequence", rows.first
            )
        self._sequence, self._start, self._prompt = sequence, start, 0
        self._short, self._was_short = -1, False

    def _end_stretch(self, line: int | None) -> int:
        """Check that the stretch is complete and return its tokens; `line` is the first one after it."""
        counts, used = self._counts, self._used
        whole = counts[self._sparse]
        if self._short >= 0:
            whole = whole[:-1]
        tokens = int(whole.max()) // used
        where = f"{self._sequence_name} {self._sequence} ends"
        where = f"{where} with the file" if line is None else f"{where} before this line"
        first = self._start + self._prompt
        for layer, count in zip(self._sparse.tolist(), whole.tolist(), strict=False):
            position, ranks = first + count // used, count % used
            if ranks:
                raise self._source.error(
                    f"{where}, but {self._token_name} {position} of layer {layer} has {ranks} of {used} experts", line
                )
            if count // used != tokens:
                raise self._source.error(
                    f"{where}, but its {_WORDS[self._phase]} {self._token_name} {position} has no rows of layer "
                    f"{layer}; every layer must have rows of every token",
                    line,
                )
        if self._short >= 0 and (self._short != first + tokens - 1 or counts[self._last] != used):
            raise self._source.error(
                f"{where}, but layer {self._last} has {counts[self._last]} rows of the prompt, at {self._token_name} "
                f"{self._short}; it must have all tokens, or all {used} rows of the last one, {first + tokens - 1}",
                line,
            )
        self._was_short |= self._short >= 0
        self._short = -1
        return tokens

    def _end_sequence(self, line: int | None) -> None:
        tokens = self._end_stretch(line)
        if self._phase == PROMPT:
            raise self._source.error(
                f"{self._sequence_name} {self._sequence} has no decoded tokens, only a prompt; leave it out", line
            )
        tokens += self._prompt
        self.parts.append(Part(self._row, self._start, self._prompt, tokens, self._was_short))
        self._row += tokens

    # ------------------------------------------------------------------ rows

    def _stretch(self, rows: Rows) -> Places:
        """The places of rows of one stretch."""
        values, used = rows.values, self._used
        layer, token = values["layer"], values["token"]
        by_layer = np.argsort(layer.astype(np.int16), kind="stable")
        counts = np.bincount(layer, minlength=self._layers)
        before = np.repeat(self._counts - (np.cumsum(counts) - counts), counts)
        count = np.empty(len(rows), np.int64)  # earlier rows of the same layer
        count[by_layer] = np.arange(len(rows)) + before
        rank = count % used
        expected = self._start + self._prompt + count // used
        if self._phase == PROMPT and self._last >= 0 and counts[self._last]:
            own = layer == self._last
            first = int(token[own][0])
            if not self._counts[self._last] and first != self._start:
                self._short = first
            if self._short >= 0:
                expected = np.where(own & (count < used), self._short, np.where(own, -1, expected))
        wrong = token != expected
        if "rank" in values:
            wrong |= values["rank"] != rank
        if wrong.any():
            self._refuse(rows, int(np.flatnonzero(wrong)[0]), expected, rank)
        self._counts += counts
        return Places(self._row + token - self._start, rank)

    def _refuse(self, rows: Rows, index: int, expected: np.ndarray, rank: np.ndarray) -> None:
        """Say what is wrong with the row at `index`."""
        name, used, line = self._token_name, self._used, rows.first + index
        layer, found = int(rows.values["layer"][index]), int(rows.values["token"][index])
        must, place = int(expected[index]), int(rank[index])
        where = f"{name} is {found} in layer {layer}"
        if found == must:
            slot = int(rows.values["rank"][index])
            text = f"slot is {slot} in {name} {found} of layer {layer}, must be {place}"
            text += f"; the {used} experts of a token are in the order of their slots"
        elif must < 0:
            text = f"{where}, which has {used} rows of {name} {self._short} already, and lacks the tokens before it"
        elif place and found > must:
            text = f"{where}, but {name} {must} of this layer has only {place} of {used} experts"
        elif found > must:
            text = f"{where}, must be {must}; rows of that token are missing, or not in order"
        elif not place and found == must - 1:
            text = f"{where}, which has {used} experts of that token already; n_expert_used is {used}"
        else:
            text = f"{where}, must be {must}; tokens of a layer must be in order"
        raise self._source.error(text, line)

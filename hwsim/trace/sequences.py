"""Which tokens of a run are decoded, and where its sequences begin."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from hwsim.trace.header import Sequence


class Decoded(NamedTuple):
    """The decoded tokens of one sequence.

    Attributes:
        number: of the sequence in the run, from 0.
        rows: where the tokens lie in the source arrays; the prompt's rows come before these.
        tokens: numbers of the tokens among all decoded tokens of the run.
    """

    number: int
    rows: range
    tokens: range


class Sequences:
    """The sequences of a run, one after the other, as they lie in the source arrays. Immutable.

    Args:
        sequences: in order.
    """

    __slots__ = ("_decoded", "_first_rows", "_longest")

    def __init__(self, sequences: Iterable[Sequence]) -> None:
        decoded: list[Decoded] = []
        first_rows, longest, token = [0], 0, 0
        for number, sequence in enumerate(sequences):
            rows = range(first_rows[-1] + sequence.prompt, first_rows[-1] + sequence.tokens)
            end = token + sequence.tokens - sequence.prompt  # no len(): a damaged header may claim any number
            decoded.append(Decoded(number, rows, range(token, end)))
            first_rows.append(rows.stop)
            longest, token = max(longest, sequence.tokens), end
        self._decoded, self._first_rows, self._longest = tuple(decoded), tuple(first_rows), longest

    def __len__(self) -> int:
        """The number of sequences."""
        return len(self._decoded)

    def decoded(self) -> Iterator[Decoded]:
        """The decoded tokens of each sequence, in order."""
        return iter(self._decoded)

    @property
    def tokens(self) -> int:
        """Rows of the source arrays: all tokens, prompts included."""
        return self._first_rows[-1]

    @property
    def decoded_tokens(self) -> int:
        """Decoded tokens of all sequences."""
        return self._decoded[-1].tokens.stop if self._decoded else 0

    @property
    def lengths(self) -> list[int]:
        """Decoded tokens of each sequence."""
        return [len(part.rows) for part in self._decoded]

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence including its prompt: the KV cache must hold them."""
        return self._longest

    @property
    def first_rows(self) -> list[int]:
        """Rows of the source arrays at which a sequence begins, with its prompt if it has one."""
        return list(self._first_rows[:-1])

    @property
    def starts(self) -> frozenset[int]:
        """Decoded tokens at which a sequence begins."""
        return frozenset(part.tokens.start for part in self._decoded)

    def rows(self) -> np.ndarray:
        """Rows of the source arrays that are decoded: int64 ``[decoded tokens]``."""
        return self._joined(part.rows for part in self._decoded)

    @staticmethod
    def _joined(parts: Iterable[range]) -> np.ndarray:
        return np.concatenate(
            [np.empty(0, np.int64), *(np.arange(part.start, part.stop, dtype=np.int64) for part in parts)]
        )

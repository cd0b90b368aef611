"""Steps: what a model computes at once: a token, a chunk of a prompt, tokens of several sequences, or drafted tokens.

A step has members, each a token of a sequence. The masks of its members are united, and each cache serves the union
once. Plain decoding has one member in each step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hwsim.trace.sequences import Decoded, Sequences


@dataclass(frozen=True)
class Together:
    """What goes through the model together.

    Attributes:
        prompts: whether prompts go through the caches; otherwise they are read densely and are no steps.
        chunk: tokens of a prompt's step; None: the whole prompt.
        sequences: sequences that are decoded together; one that ends leaves, and no other joins.
        drafts: drafted tokens that each step verifies beside its own.
        accept: probability that a draft is accepted, given the ones before it.
        keep: whether caches keep their content from one sequence to the next.
        seed: of the random numbers that accept drafts.
    """

    prompts: bool = False
    chunk: int | None = None
    sequences: int = 1
    drafts: int = 0
    accept: float = 0.0
    keep: bool = False
    seed: int = 0

    @property
    def plain(self) -> bool:
        """Whether each step is a decoded token and caches begin empty with each sequence."""
        return not (self.prompts or self.drafts or self.keep) and self.sequences == 1


@dataclass(frozen=True, eq=False)
class Steps:
    """The steps of a run, in their order.

    Attributes:
        rows: int64 ``[members]``: row of each member in the source arrays.
        sequences: int64 ``[members]``: number of each member's sequence.
        lengths: int64 ``[members]``: KV entries of its sequence up to each member, its own included.
        offsets: int64 ``[steps + 1]``: members of step s are ``offsets[s]`` to ``offsets[s + 1]``.
        emitted: int64 ``[steps]``: tokens that a step adds to the text; 0 for a chunk of a prompt.
        starts: bool ``[steps]``: whether another sequence begins, so that nothing can be read ahead for the step.
        empty: bool ``[steps]``: whether the caches are empty before the step.
    """

    rows: np.ndarray
    sequences: np.ndarray
    lengths: np.ndarray
    offsets: np.ndarray
    emitted: np.ndarray
    starts: np.ndarray
    empty: np.ndarray

    @classmethod
    def of(cls, sequences: Sequences, together: Together | None = None, accepted: np.ndarray | None = None) -> Steps:
        """The steps of some sequences.

        Args:
            sequences: windows of the trace.
            together: what goes through the model together; None: plain decoding.
            accepted: bool ``[rows]``: whether a draft of each token is right; None: drawn.
        """
        together = together or Together()
        builder = _Builder(sequences, together, accepted)
        parts = list(sequences.decoded())
        for first in range(0, len(parts), together.sequences):
            builder.batch(parts[first : first + together.sequences])
        return builder.steps()

    def __len__(self) -> int:
        """The number of steps."""
        return len(self.emitted)

    @property
    def sizes(self) -> np.ndarray:
        """Members of each step: int64 ``[steps]``."""
        return np.diff(self.offsets)

    @property
    def tokens(self) -> int:
        """Decoded tokens."""
        return int(self.emitted.sum())

    @property
    def single(self) -> bool:
        """Whether each step has one member."""
        return len(self.rows) == len(self)

    @property
    def prompts(self) -> np.ndarray:
        """Whether each step is a chunk of a prompt: bool ``[steps]``."""
        return np.asarray(self.emitted == 0)

    @cached_property
    def runs(self) -> np.ndarray:
        """For each step the end of its run of steps that decode one token each of one sequence: int64 ``[steps]``.

        A step of another kind is a run by itself.
        """
        first = self.offsets[:-1]
        alone = (self.sizes == 1) & ~self.prompts
        goes_on = alone[1:] & alone[:-1]
        for values, apart in ((self.sequences, 0), (self.rows, 1)):
            goes_on &= np.diff(values[first]) == apart
        ends = np.append(np.flatnonzero(~goes_on) + 1, len(self)) if len(self) else np.empty(0, np.int64)
        return ends[np.searchsorted(ends, np.arange(len(self)), side="right")]

    def members(self, step: int) -> slice:
        """The members of a step, as a slice of `rows` and the like."""
        return slice(int(self.offsets[step]), int(self.offsets[step + 1]))

    def part(self, steps: np.ndarray) -> Steps:
        """Some of the steps, bool ``[steps]``; a step takes over beginnings from those left out before it."""
        chosen = np.flatnonzero(steps)
        sizes = self.sizes
        members = np.repeat(steps, sizes)
        offsets = np.concatenate([[0], np.cumsum(sizes[chosen])]).astype(np.int64)
        # the number of starts up to a step tells whether one lies between it and the chosen step before it
        began, emptied = (np.cumsum(flags)[chosen] for flags in (self.starts, self.empty))
        return Steps(
            self.rows[members], self.sequences[members], self.lengths[members], offsets, self.emitted[chosen],
            np.diff(began, prepend=0) > 0, np.diff(emptied, prepend=0) > 0,
        )  # fmt: skip

    def episodes(self) -> Iterator[range]:
        """Ranges of steps through which caches keep their content."""
        first = np.flatnonzero(self.empty).tolist()
        for start, stop in zip(first, [*first[1:], len(self)], strict=True):
            yield range(start, stop)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sums over the members of each step: ``[members, ...]`` to ``[steps, ...]``."""
        return values if self.single else np.add.reduceat(values, self.offsets[:-1], axis=0)

    def spans(self) -> tuple[np.ndarray, np.ndarray]:
        """KV entries before the first member of each step and up to its last: int64 ``[steps]`` each."""
        return self.lengths[self.offsets[:-1]] - 1, self.lengths[self.offsets[1:] - 1]


class _Builder:
    """Collects steps."""

    def __init__(self, sequences: Sequences, together: Together, accepted: np.ndarray | None) -> None:
        self._first, self._together, self._accepted = sequences.first_rows, together, accepted
        self._rng = np.random.default_rng(together.seed)
        self._rows: list[np.ndarray] = []
        self._sequences: list[np.ndarray] = []
        self._sizes: list[np.ndarray] = []
        self._emitted: list[np.ndarray] = []
        self._starts: list[int] = []  # steps at which another sequence begins
        self._empty: list[int] = []  # steps before which the caches are empty
        self._count = 0

    def batch(self, parts: list[Decoded]) -> None:
        """Add the steps of sequences that are decoded together: their prompts, one after the other, then all tokens."""
        together = self._together
        if not together.keep or not self._count:
            self._empty.append(self._count)
        for part in parts if together.prompts else ():
            first = self._first[part.number]
            if first < part.rows.start:
                self._starts.append(self._count)
            for start in range(first, part.rows.start, together.chunk or len(part.rows) + part.rows.start):
                stop = min(start + (together.chunk or part.rows.stop), part.rows.start)
                self._add(np.arange(start, stop), np.full(stop - start, part.number), [stop - start], [0])
        if together.drafts:
            for part in parts:
                self._starts.append(self._count)
                self._verify(part)
            return
        self._starts.append(self._count)
        if len(parts) == 1:
            rows, ones = np.arange(parts[0].rows.start, parts[0].rows.stop), [1] * len(parts[0].rows)
            self._add(rows, np.full(len(rows), parts[0].number), ones, ones)
            return
        for token in range(max(len(part.rows) for part in parts)):
            active = [part for part in parts if token < len(part.rows)]
            rows = np.array([part.rows[token] for part in active])
            self._add(rows, np.array([part.number for part in active]), [len(active)], [len(active)])

    def _verify(self, part: Decoded) -> None:
        """Add the steps of a sequence whose drafted tokens are verified."""
        rows, drafts = np.arange(part.rows.start, part.rows.stop), self._together.drafts
        token = 0
        while token < len(rows):
            drafted = rows[token + 1 : token + 1 + drafts]
            draws = self._rng.random(drafts) < self._together.accept
            right = draws[: len(drafted)] if self._accepted is None else self._accepted[drafted]
            accepted = len(right) if right.all() else int(np.argmin(right))
            members = rows[token : token + 1 + drafts]
            self._add(members, np.full(len(members), part.number), [len(members)], [accepted + 1])
            token += accepted + 1

    def _add(self, rows: np.ndarray, sequences: np.ndarray, sizes: list[int], emitted: list[int]) -> None:
        """Add steps of `sizes` members each."""
        self._rows.append(rows)
        self._sequences.append(sequences)
        self._sizes.append(np.array(sizes, np.int64))
        self._emitted.append(np.array(emitted, np.int64))
        self._count += len(sizes)

    def steps(self) -> Steps:
        """All steps so far."""
        rows, sequences, sizes, emitted = (
            np.concatenate([np.empty(0, np.int64), *parts])
            for parts in (self._rows, self._sequences, self._sizes, self._emitted)
        )
        starts, empty = np.zeros(self._count, bool), np.zeros(self._count, bool)
        starts[self._starts], empty[self._empty] = True, True
        lengths = rows - np.array(self._first, np.int64)[sequences] + 1
        return Steps(rows, sequences, lengths, np.concatenate([[0], np.cumsum(sizes)]), emitted, starts, empty)

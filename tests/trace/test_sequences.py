"""Which tokens of a run are decoded: against a plain walk over all tokens, and examples with the numbers written out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwsim.trace import Sequence, Sequences
from hwsim.trace.steps import Steps

RUNS = st.lists(
    st.builds(lambda prompt, decoded: Sequence(tokens=prompt + decoded, prompt=prompt), st.integers(0, 9), st.integers(1, 9)),
    max_size=8,
)  # fmt: skip


@given(RUNS)
def test_every_view_is_that_of_a_walk_over_all_tokens(run: list[Sequence]):
    rows, lengths, first_rows, starts, row = [], [], [], [], 0
    for sequence in run:
        first_rows.append(row)
        starts.append(len(rows))
        for position in range(sequence.tokens):
            if position >= sequence.prompt:
                rows.append(row)
                lengths.append(position + 1)
            row += 1
    whole = Sequences(run)
    assert len(whole) == len(run)
    assert whole.tokens == row
    assert whole.decoded_tokens == len(rows)
    assert whole.lengths == [sequence.tokens - sequence.prompt for sequence in run]
    assert whole.longest == max((sequence.tokens for sequence in run), default=0)
    assert whole.first_rows == first_rows
    assert whole.starts == frozenset(starts)
    for array, plain in ((whole.rows(), rows), (Steps.of(whole).lengths, lengths)):
        assert array.dtype == np.int64
        assert array.tolist() == plain


@given(RUNS)
def test_the_parts_are_the_run(run: list[Sequence]):
    whole = Sequences(run)
    parts = list(whole.decoded())
    assert [part.number for part in parts] == list(range(len(run)))
    assert [token for part in parts for token in part.tokens] == list(range(whole.decoded_tokens))
    assert [row for part in parts for row in part.rows] == whole.rows().tolist()
    assert all(len(part.rows) == len(part.tokens) for part in parts)


def test_a_prompt_takes_rows_but_no_tokens():
    whole = Sequences([Sequence(tokens=5, prompt=2), Sequence(tokens=3), Sequence(tokens=4, prompt=3)])
    assert list(whole.decoded()) == [
        (0, range(2, 5), range(3)),
        (1, range(5, 8), range(3, 6)),
        (2, range(11, 12), range(6, 7)),
    ]
    assert (whole.tokens, whole.decoded_tokens, whole.longest) == (12, 7, 5)
    assert Steps.of(whole).lengths.tolist() == [3, 4, 5, 1, 2, 3, 4]


def test_it_does_not_follow_the_list_it_was_made_from():
    run = [Sequence(tokens=3)]
    whole = Sequences(run)
    run.append(Sequence(tokens=4))
    whole.lengths.append(1)
    whole.first_rows.append(1)
    assert (len(whole), whole.tokens, whole.lengths, whole.first_rows) == (1, 3, [3], [0])
    with pytest.raises(AttributeError):
        whole.tokens = 4  # type: ignore[misc]

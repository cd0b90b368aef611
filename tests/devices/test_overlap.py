"""What may happen at once: by hand, and bounds that no load may break."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsim.timing.events import run_events
from tests.devices.loads import make, random_loads


def total(load, overlap):
    return run_events(load, overlap=overlap).times.total


# ---------------------------------------------------------------------- by hand

STEP = {"selection": 1, "flash": 10, "dram": 4, "on_hits": 6, "on_misses": 3}


@pytest.mark.parametrize(
    ("overlap", "seconds"),
    [
        ("none", 1 + 10 + 4 + 6 + 3),
        ("group", 1 + max(10, 4) + 6 + 3),
        ("pipeline", 1 + max(10, 4, 6) + 3),
    ],
)
def test_one_group(overlap, seconds):
    assert total(make(tokens=1, **STEP), overlap) == seconds


@pytest.mark.parametrize(
    ("overlap", "seconds"),
    [
        ("none", 1 + 4 + 10 + 10 + 6 + 3),  # writing takes 10 beside the reading of Flash, then it is read for 10
        ("group", 1 + max(10, 4 + 10) + 10 + 6 + 3),
        ("pipeline", 1 + max(10, 4 + 10, 6) + max(10, 3)),
    ],
)
def test_what_fills_the_cache_is_written_and_read_again(overlap, seconds):
    assert total(make(tokens=1, fills=10, **STEP), overlap) == seconds


def test_the_next_layers_weights_are_read_while_this_ones_misses_come():
    """DRAM is idle while Flash works for 10 s; of 4 s of weights and 1 s of KV entries nothing is left to wait for."""
    load = make(tokens=1, layers=2, flash=10, resident=4, kv_cache=1)
    assert total(load, "none") == (5 + 10) * 2 + 4
    assert total(load, "pipeline") == 5 + 10 + 10  # the LM head, too
    streamed = make(tokens=1, layers=2, dram=10, streamed=4)
    assert total(streamed, "none") == (4 + 10) * 2 + 4
    assert total(streamed, "pipeline") == 4 + 10 + 10


def test_idle_time_is_given_once_and_to_what_is_sure_first():
    """Beside 10 s of hits Flash has misses for 8 s, and 2 s for half of the next layer's streamed weights; for guesses 0."""
    load = make(tokens=1, layers=2, dram=10, streamed=4, ahead=8, flash=8, left=0)
    timing = run_events(load, overlap="prefetch")
    assert timing.guessed[0, :, 0].tolist() == [0.0, 0.0]
    assert timing.times.total == (4 + 10) + (2 + 10) + 2
    assert timing.busy.flash == 3 * 4 + 2 * 8
    # with 20 s of hits there are 12 s: 4 for the weights, and all 8 of the guess; the second layer then finds its misses
    timing = run_events(make(tokens=1, layers=2, dram=20, streamed=4, ahead=8, flash=8, left=0), overlap="prefetch")
    assert timing.guessed[0, :, 0].tolist() == [0.0, 1.0]
    assert timing.times.total == (4 + 20) + 20


def test_a_guess_that_came_in_time_is_not_waited_for():
    """Arithmetic takes 20 s a layer, so that Flash can read all of a guess; half of the misses were guessed."""
    load = make(tokens=1, layers=3, on_misses=20, flash=8, ahead=6, left=4)
    timing = run_events(load, overlap="prefetch")
    assert timing.guessed[0, :, 0].tolist() == [0.0, 1.0, 1.0]
    assert timing.times.total == 8 + 20 + 2 * (4 + 20)
    assert timing.busy.flash == 8 + 2 * (6 + 4)
    assert total(load, "pipeline") == 3 * 28


def test_a_guess_that_came_in_part_helps_in_part():
    """Arithmetic takes 3 s, so half of a guess of 6 s is read: of 8 s of misses, 4 of them guessed, 6 are left."""
    load = make(tokens=1, layers=2, on_misses=3, flash=8, ahead=6, left=4)
    timing = run_events(load, overlap="prefetch")
    assert timing.guessed[0, :, 0].tolist() == [0.0, 0.5]
    assert timing.times.total == 8 + 3 + 6 + 3


def test_nothing_is_read_ahead_over_the_start_of_a_sequence():
    """While the LM head computes for 5 s, the next token's first weights are read; not those of another sequence."""
    load = make(tokens=2, layers=1, flash=10, resident=4)
    load.unmasked[:, 1] = 5
    joined = run_events(load, overlap="pipeline")
    apart = run_events(replace(load, starts=frozenset({0, 1})), overlap="pipeline")
    assert joined.times.total == (4 + 10 + 5) + (10 + 5)
    assert apart.times.total == joined.times.total + 4


# ---------------------------------------------------------------------- bounds


@settings(max_examples=300)
@given(random_loads())
def test_more_overlap_is_never_slower(load):
    none, group, pipeline = (total(load, overlap) for overlap in ("none", "group", "pipeline"))
    assert pipeline <= group * (1 + 1e-9)
    assert group <= none * (1 + 1e-9)


@settings(max_examples=200)
@given(random_loads(ahead=True))
def test_reading_ahead_is_never_slower_and_never_beats_a_perfect_guess(load):
    pipeline, prefetch = total(load, "pipeline"), total(load, "prefetch")
    perfect = replace(load, ahead=load.flash, left=np.zeros_like(load.flash))
    assert prefetch <= pipeline * (1 + 1e-9)
    assert total(perfect, "prefetch") <= pipeline * (1 + 1e-9)


@settings(max_examples=200)
@given(random_loads(ahead=True, fills=True), st.sampled_from(["none", "group", "pipeline", "prefetch"]))
def test_no_run_beats_its_bounds(load, overlap):
    timing = run_events(load, overlap=overlap)
    busy = timing.busy
    assert timing.times.total >= max(busy.flash, busy.dram, busy.compute) * (1 - 1e-9)
    spent = timing.times.by_account
    assert sum(spent) == pytest.approx(timing.times.total, rel=1e-9, abs=1e-12)
    assert all(seconds >= -1e-9 for seconds in spent)
    assert set(timing.times.masked) == {part for parts in load.parts for part in parts}
    assert sum(timing.token_s) == pytest.approx(timing.times.total, rel=1e-9, abs=1e-12)
    # all work is done, whoever waits for it; guesses apart
    asked = load.tokens * load.resident.sum() + load.kv_cache.sum() + load.dram.sum() + 2 * load.fills.sum()
    assert busy.dram == pytest.approx(asked, rel=1e-9, abs=1e-9)
    arithmetic = load.unmasked.sum() + load.selection.sum() + load.on_hits.sum() + load.on_misses.sum()
    assert busy.compute == pytest.approx(arithmetic, rel=1e-9, abs=1e-9)
    # the critical path of a token: arithmetic waits for itself
    assert timing.times.total >= load.selection.sum() + load.on_misses.sum() - 1e-9
    if overlap == "none" and not load.fills.any():
        assert timing.times.total == pytest.approx(busy.flash + busy.dram + busy.compute, rel=1e-9, abs=1e-9)
    if overlap != "prefetch":
        assert busy.flash == pytest.approx(load.flash.sum() + load.tokens * load.streamed.sum(), rel=1e-9, abs=1e-9)


@settings(max_examples=50)
@given(random_loads(ahead=True, fills=True), st.sampled_from(["none", "group", "pipeline", "prefetch"]))
def test_the_order_of_events_is_one(load, overlap):
    one, other = (run_events(load, overlap=overlap) for _ in range(2))
    assert one.token_s.tolist() == other.token_s.tolist()
    assert one.times == other.times
    assert one.events == other.events

"""What may happen at once: by hand, bounds that no work may break, and modes as classes."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsim.errors import SettingError
from hwsim.timing import in_order as inorder
from hwsim.timing import overlap as overlaps
from hwsim.timing.events import run_events
from hwsim.timing.overlap import ClosedForm
from tests.timing.works import make, random_works


def total(work, overlap):
    return run_events(work, overlap=overlap).times.total


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
    work = make(tokens=1, layers=2, flash=10, resident=4, kv_cache=1)
    assert total(work, "none") == (5 + 10) * 2 + 4
    assert total(work, "pipeline") == 5 + 10 + 10  # the LM head, too
    streamed = make(tokens=1, layers=2, dram=10, streamed=4)
    assert total(streamed, "none") == (4 + 10) * 2 + 4
    assert total(streamed, "pipeline") == 4 + 10 + 10


def test_idle_time_is_given_once_and_to_what_is_sure_first():
    """Beside 10 s of hits Flash has misses for 8 s, and 2 s for half of the next layer's streamed weights; for guesses 0."""
    work = make(tokens=1, layers=2, dram=10, streamed=4, ahead=8, flash=8, left=0)
    timing = run_events(work, overlap="prefetch")
    assert timing.guessed[0, :, 0].tolist() == [0.0, 0.0]
    assert timing.times.total == (4 + 10) + (2 + 10) + 2
    assert timing.busy.flash == 3 * 4 + 2 * 8
    # with 20 s of hits there are 12 s: 4 for the weights, and all 8 of the guess; the second layer then finds its misses
    timing = run_events(make(tokens=1, layers=2, dram=20, streamed=4, ahead=8, flash=8, left=0), overlap="prefetch")
    assert timing.guessed[0, :, 0].tolist() == [0.0, 1.0]
    assert timing.times.total == (4 + 20) + 20


def test_a_guess_that_came_in_time_is_not_waited_for():
    """Arithmetic takes 20 s a layer, so that Flash can read all of a guess; half of the misses were guessed."""
    work = make(tokens=1, layers=3, on_misses=20, flash=8, ahead=6, left=4)
    timing = run_events(work, overlap="prefetch")
    assert timing.guessed[0, :, 0].tolist() == [0.0, 1.0, 1.0]
    assert timing.times.total == 8 + 20 + 2 * (4 + 20)
    assert timing.busy.flash == 8 + 2 * (6 + 4)
    assert total(work, "pipeline") == 3 * 28


def test_a_guess_that_came_in_part_helps_in_part():
    """Arithmetic takes 3 s, so half of a guess of 6 s is read: of 8 s of misses, 4 of them guessed, 6 are left."""
    work = make(tokens=1, layers=2, on_misses=3, flash=8, ahead=6, left=4)
    timing = run_events(work, overlap="prefetch")
    assert timing.guessed[0, :, 0].tolist() == [0.0, 0.5]
    assert timing.times.total == 8 + 3 + 6 + 3


def test_nothing_is_read_ahead_over_the_start_of_a_sequence():
    """While the LM head computes for 5 s, the next token's first weights are read; not those of another sequence."""
    work = make(tokens=2, layers=1, flash=10, resident=4)
    work.unmasked[:, 1] = 5
    joined = run_events(work, overlap="pipeline")
    apart = run_events(replace(work, starts=frozenset({0, 1})), overlap="pipeline")
    assert joined.times.total == (4 + 10 + 5) + (10 + 5)
    assert apart.times.total == joined.times.total + 4


# ---------------------------------------------------------------------- bounds


@settings(max_examples=300)
@given(random_works())
def test_more_overlap_is_never_slower(work):
    none, group, pipeline = (total(work, overlap) for overlap in ("none", "group", "pipeline"))
    assert pipeline <= group * (1 + 1e-9)
    assert group <= none * (1 + 1e-9)


@settings(max_examples=200)
@given(random_works(ahead=True))
def test_reading_ahead_is_never_slower_and_never_beats_a_perfect_guess(work):
    pipeline, prefetch = total(work, "pipeline"), total(work, "prefetch")
    perfect = replace(work, ahead=work.flash, left=np.zeros_like(work.flash))
    assert prefetch <= pipeline * (1 + 1e-9)
    assert total(perfect, "prefetch") <= pipeline * (1 + 1e-9)


@settings(max_examples=200)
@given(random_works(ahead=True, fills=True), st.sampled_from(overlaps.names()))
def test_no_run_beats_its_bounds(work, overlap):
    timing = run_events(work, overlap=overlap)
    busy = timing.busy
    assert timing.times.total >= max(busy.flash, busy.dram, busy.compute) * (1 - 1e-9)
    spent = timing.times.by_account
    assert sum(spent) == pytest.approx(timing.times.total, rel=1e-9, abs=1e-12)
    assert all(seconds >= -1e-9 for seconds in spent)
    assert set(timing.times.masked) == {part for parts in work.parts for part in parts}
    assert sum(timing.token_s) == pytest.approx(timing.times.total, rel=1e-9, abs=1e-12)
    # all work is done, whoever waits for it; guesses apart
    asked = work.tokens * work.resident.sum() + work.kv_cache.sum() + work.dram.sum() + 2 * work.fills.sum()
    assert busy.dram == pytest.approx(asked, rel=1e-9, abs=1e-9)
    arithmetic = work.unmasked.sum() + work.selection.sum() + work.on_hits.sum() + work.on_misses.sum()
    assert busy.compute == pytest.approx(arithmetic, rel=1e-9, abs=1e-9)
    # the critical path of a token: arithmetic waits for itself
    assert timing.times.total >= work.selection.sum() + work.on_misses.sum() - 1e-9
    if overlaps.find(overlap).in_order and not work.fills.any():
        assert timing.times.total == pytest.approx(busy.flash + busy.dram + busy.compute, rel=1e-9, abs=1e-9)
    if not overlaps.find(overlap).guesses:
        assert busy.flash == pytest.approx(work.flash.sum() + work.tokens * work.streamed.sum(), rel=1e-9, abs=1e-9)


@settings(max_examples=50)
@given(random_works(ahead=True, fills=True), st.sampled_from(overlaps.names()))
def test_the_order_of_events_is_one(work, overlap):
    one, other = (run_events(work, overlap=overlap) for _ in range(2))
    assert one.token_s.tolist() == other.token_s.tolist()
    assert one.times == other.times
    assert one.events == other.events


# ---------------------------------------------------------------------- layers that differ, and labels


def test_layers_may_have_different_groups_kv_entries_and_labels():
    """Layer 0 has groups of 10 s and 1 s, layer 1 has none, layer 2 has one of 3 s; KV entries take 1, 5 and 0 s."""
    work = make(tokens=2, layers=3, groups=2)
    work.flash[:, 0], work.flash[:, 2, 0] = (10, 1), 3
    work.kv_cache[:] = (1, 5, 0)
    work = replace(work, parts=(("mlp", "compute"), (), ("resident",)))
    timing = run_events(work, overlap="none")
    assert timing.token_s.tolist() == [1 + 10 + 1 + 5 + 3] * 2
    # a label is never mixed up with an account of the same name
    assert timing.times.masked == {"mlp": 20, "compute": 2, "resident": 6}
    assert (timing.times.kv_cache, timing.times.compute, timing.times.resident) == (12, 0, 0)
    assert timing.events == 2 * (1 + 2 + 1 + 1)
    pipeline = run_events(work, overlap="pipeline")  # layer 1's 5 s of KV entries are read beside layer 0's misses
    assert pipeline.times.kv_cache == 2
    assert pipeline.times.masked == timing.times.masked


def test_nothing_is_guessed_for_groups_that_a_layer_lacks():
    work = make(tokens=1, layers=3, groups=2, on_misses=20, flash=8, ahead=6, left=0)
    for seconds in (work.flash, work.ahead, work.on_misses):
        seconds[:, 1, 1] = seconds[:, 2] = 0
    work = replace(work, parts=(("mlp", "mlp"), ("mlp",), ()))
    timing = run_events(work, overlap="prefetch")
    assert timing.guessed[0].tolist() == [[0, 0], [1, 0], [0, 0]]
    assert timing.times.total == 2 * (8 + 20) + 20


class Log:
    """An observer that keeps everything."""

    def __init__(self):
        self.slices, self.read = [], []

    def slice(self, *about):
        self.slices.append(about)

    def ahead(self, *about):
        self.read.append(about)


def test_all_observers_receive_the_same_and_change_nothing():
    work = make(tokens=2, layers=2, streamed=4, on_misses=20, flash=8, ahead=6, left=4, resident=1)
    one, other = Log(), Log()
    timing = run_events(work, overlap="prefetch", observers=[one, other])
    assert one.slices == other.slices
    assert one.read == other.read
    assert {what for _, what, *_ in one.read} == {"weights", "streamed weights", "guess"}
    services = [about for about in one.slices if about[0] != "decoder"]
    assert len(services) == timing.events
    assert sum(about[4] for about in one.slices if about[1] == "token") == timing.times.total
    plain = run_events(work, overlap="prefetch")
    assert (plain.times, plain.busy, plain.token_s.tolist()) == (timing.times, timing.busy, timing.token_s.tolist())


# ---------------------------------------------------------------------- modes as classes


def test_modes_are_in_order_and_named_as_their_files():
    assert overlaps.names() == ["none", "group", "pipeline", "prefetch"]
    folder = Path(overlaps.__file__).parent
    assert {path.stem for path in folder.glob("[!_]*.py")} == set(overlaps.names())
    for name, mode in overlaps.modes().items():
        assert (mode.name, mode.__module__) == (name, f"hwsim.timing.overlap.{name}")
        assert f"{name}: {mode.help}" in overlaps.option_help()
        assert f"`{name}`" in overlaps.__doc__


def test_what_modes_can_do():
    found = {
        name: (mode.closed_form, mode.in_order, mode.prefill_beside, mode.guesses)
        for name, mode in overlaps.modes().items()
    }
    assert found == {
        "none": ("sum", True, False, False),
        "group": ("larger", False, False, False),
        "pipeline": (None, False, True, False),
        "prefetch": (None, False, True, True),
    }


MINE = """
from hwsim.timing.overlap import Overlap


class HitsFirst(Overlap):
    name = "hits-first"
    help = "arithmetic on hits, once they are read, while misses arrive"
    place = 1

    def read_group(self, at, work):
        decoder, account, compute = self.decoder, work.account, self.decoder.spent.compute
        yield from decoder.serve(account, decoder.dram, at, work.dram)
        flash, arithmetic = yield from decoder.together(
            at, (account, decoder.flash, work.flash), (compute, decoder.compute, work.on_hits)
        )
        account.seconds += flash
        compute.seconds += max(arithmetic - flash, 0.0)
        yield from decoder.serve(compute, decoder.compute, at, work.on_misses)
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A file with a mode, in the folder of modes."""
    (tmp_path / "hits_first.py").write_text(MINE)
    (tmp_path / "_shared.py").write_text("raise RuntimeError('no mode')")
    monkeypatch.setattr(overlaps, "__path__", [*overlaps.__path__, str(tmp_path)])
    yield
    sys.modules.pop("hwsim.timing.overlap.hits_first", None)
    vars(overlaps).pop("hits_first", None)


@pytest.mark.usefixtures("mine")
def test_a_mode_is_one_file():
    assert overlaps.names() == ["none", "group", "hits-first", "pipeline", "prefetch"]
    assert "; hits-first: arithmetic on hits, once they are read, while misses arrive; " in overlaps.option_help()
    timing = run_events(make(tokens=1, layers=2, resident=2, **STEP), overlap="hits-first")
    assert timing.times.total == 2 * (2 + 1 + 4 + max(10, 6) + 3) + 2
    assert timing.times.masked == {"mlp": 2 * (4 + 10)}
    assert (timing.times.resident, timing.times.compute) == (6, 2 * (1 + 3))
    assert timing.guessed is None


def test_a_mode_that_is_not_there_is_one_line():
    with pytest.raises(SettingError) as found:
        run_events(make(), overlap="pipelin")
    assert str(found.value) == (
        "no overlap mode 'pipelin'; did you mean 'pipeline'? Known: group, none, pipeline, prefetch"
    )


def test_names_and_help_load_no_simulator():
    """The command line prints them."""
    code = (
        "import sys; from hwsim.timing import overlap; overlap.option_help(); "
        "print([name for name in ('numpy', 'simpy', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@settings(max_examples=50)
@given(random_works())
def test_modes_say_truly_that_they_are_in_order(work):
    """`test_inorder` compares everything; here: which modes may be played by the running clock."""
    for name, mode in overlaps.modes().items():
        if mode.in_order:
            assert inorder.run_in_order([work]).times == run_events(work, overlap=name).times


def test_closed_forms_are_those_of_one_group():
    """A group's reads of Flash and DRAM, in the engine and as the mode says that the closed form counts them."""
    for name, mode in overlaps.modes().items():
        if mode.closed_form is not None:
            rule: ClosedForm = mode.closed_form
            assert total(make(tokens=1, flash=10, dram=4), name) == {"sum": 14, "larger": 10}[rule]

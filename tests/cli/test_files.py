"""Does every command look at where it is to write before it works, and spare what it reads and what is no file?"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from hwsim.errors import OutputError
from hwsim.trace import Trace, TraceWriter
from hwsim.util.files import check_new_file, spare
from tests.cli.run import here, refused, replay, run  # noqa: F401
from tests.conftest import write_trace
from tests.simulation.made import MINE, MRU
from tests.trace.test_trace import fill, header

POSIX = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
SYNTH = ["synth", "--model", "smollm2-135m", "--tokens", "16"]


# ---------------------------------------------------------------------- what is no regular file


@POSIX
@pytest.mark.parametrize("place", ["t.npz", "t.npz.partial", "t.npz.progress.json"])
def test_a_trace_replaces_no_pipe(place: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / place)
    with pytest.raises(OutputError, match="is no regular file") as caught:
        TraceWriter(tmp_path / "t.npz", header())
    assert "\n" not in str(caught.value)
    assert (tmp_path / place).is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == [place]


@POSIX
def test_a_link_to_a_pipe_is_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "t.npz").symlink_to(tmp_path / "pipe")
    with pytest.raises(OutputError, match="is no regular file"):
        TraceWriter(tmp_path / "t.npz", header())


@POSIX
@pytest.mark.usefixtures("here")
def test_synth_and_record_replace_no_pipe() -> None:
    os.mkfifo("pipe.npz")
    told = "pipe.npz: cannot be written: it is there and is no regular file; name another"
    for more in ([], ["--overwrite"]):
        assert refused(*SYNTH, "-o", "pipe.npz", *more) == told
        assert refused("record", "--model", "smollm2-135m", "-o", "pipe.npz", *more) == told
    assert Path("pipe.npz").is_fifo()


@pytest.mark.parametrize("name", [".", "no/t.npz", "x\0y", "x" * 300])
def test_places_where_no_file_can_be(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="cannot be written: ") as caught:
        check_new_file(Path(name))
    assert "\n" not in str(caught.value)
    with pytest.raises(OutputError, match="cannot be written: "):
        TraceWriter(name, header())
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------- what a command reads


def test_spares_under_every_name(tmp_path: Path) -> None:
    one, link, hard = tmp_path / "one", tmp_path / "link", tmp_path / "hard"
    one.write_text("")
    link.symlink_to(one)
    os.link(one, hard)
    for target in (one, link, hard, tmp_path / "." / "one"):
        with pytest.raises(OutputError, match="the command reads it; choose another name"):
            spare(target, [one])
    with pytest.raises(OutputError):
        spare(tmp_path / "new", [tmp_path / "new"])  # neither is there yet
    spare(tmp_path / "other", [one, tmp_path / "x\0y"])


@pytest.mark.parametrize(
    ("json_", "options"),
    [
        ("v.py", {"policy": "./v.py:Mine"}),
        ("v.py", {"policy": "dip,./v.py"}),
        ("v.py", {"policy": "dip,v.py:Mine,dip-ca"}),
        ("link.py", {"policy": "v.py"}),
        ("x.py", {"more": ("--eviction", "x.py:Mru")}),
        ("nets.npz", {"policy": "predictor", "more": ("--set", "predictor=nets.npz")}),
        ("./nets.npz", {"policy": "dip,predictor", "more": ("--set", "predictor.predictor= nets.npz")}),
        ("flat.yaml", {}),
        ("t.npz", {}),
    ],
)
def test_replay_spares_its_inputs(json_: str, options: dict[str, object], here: Path) -> None:  # noqa: F811
    for name, text in (("v.py", MINE), ("x.py", MRU), ("nets.npz", "nets")):
        Path(name).write_text(text)
    Path("link.py").symlink_to("v.py")
    before = {path.name: path.read_bytes() for path in here.iterdir()}
    options = dict(options)
    more = options.pop("more", ())
    arguments = replay("--json", json_, *more, **options)  # type: ignore[misc,arg-type,no-untyped-call]
    assert refused(*arguments) == f"{Path(json_)}: cannot be written: the command reads it; choose another name"
    assert {path.name: path.read_bytes() for path in here.iterdir() if path.is_file()} == before


@pytest.mark.usefixtures("here")
def test_the_others_spare_their_inputs() -> None:
    Path("v.py").write_text(MINE)
    for command in (
        ["trace", "info", "t.npz", "--json", "t.npz"],
        ["trace", "verify", "t.npz", "--json", "t.npz"],
        ["policies", "v.py", "--json", "v.py"],
        ["devices", "flat.yaml", "--json", "flat.yaml"],
        [*SYNTH, "--like", "t.npz", "-o", "t.npz", "--overwrite"],
        [*SYNTH, "--like", "t.npz", "-o", "new.npz", "--json", "t.npz"],
    ):
        assert "cannot be written: the command reads it" in refused(*command)
    for name in ("new.npz", "./new.npz", "new.npz.partial"):
        assert "the command writes the trace to it" in refused(*SYNTH, "-o", "new.npz", "--json", name)
    assert sorted(path.name for path in Path().iterdir()) == ["flat.yaml", "t.npz", "v.py"]


@pytest.mark.usefixtures("here")
def test_impossible_places_are_told_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    import hwsim.analysis.tracestats
    import hwsim.record
    import hwsim.trace.synth

    for module, name in (
        (hwsim.trace.synth, "synthesize"),
        (hwsim.analysis.tracestats, "trace_stats"),
        (hwsim.record, "record"),
    ):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("it worked"))
    for command in (SYNTH, ["trace", "info", "t.npz"], ["record", "--model", "smollm2-135m"]):
        assert "there is no folder no" in refused(*command, "--json", "no/such.json")
    assert "the folder no does not exist" in refused(*SYNTH, "-o", "no/t.npz")


# ---------------------------------------------------------------------- what was begun


@pytest.mark.usefixtures("here")
def test_overwrite_discards_what_another_command_began() -> None:
    with TraceWriter("s.npz", header(), tokens=True, nll=True) as writer:
        fill(writer, 0, 20)
    assert "is the unfinished trace of another command" in refused(*SYNTH, "-o", "s.npz")
    run(*SYNTH, "-o", "s.npz", "--overwrite")
    with Trace("s.npz") as trace:
        list(trace.verify())
    assert sorted(path.name for path in Path().iterdir()) == ["flat.yaml", "s.npz", "t.npz"]


@pytest.mark.usefixtures("here")
def test_numbers_beyond_all_sense() -> None:
    synth = ["synth", "--model", "smollm2-135m", "--tokens"]
    assert "must be at most" in refused(*synth, "1" + "0" * 30)
    assert "the disk has" in refused(*synth, 10**9)
    assert "windows; give more" in refused(*synth, 10**9, "--context", "1")
    assert sorted(path.name for path in Path().iterdir()) == ["flat.yaml", "t.npz"]


@pytest.mark.skipif(os.name != "posix", reason="elsewhere names of files are text")
@pytest.mark.usefixtures("here")
def test_json_of_a_name_that_is_no_text() -> None:
    name = os.fsdecode(b"t\xff.npz")
    shutil.copy("t.npz", name)
    assert json.loads(run("trace", "verify", name, "--json", "-")[0])["file"] == "t?.npz"


@pytest.mark.usefixtures("here")
def test_a_perplexity_beyond_all_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    write_trace(Path("x.npz"))
    for losses in ([1e30] * 65, [np.inf] * 65, [-np.inf, np.inf] * 32):
        monkeypatch.setattr(Trace, "nll", lambda self, losses=losses: np.array(losses, np.float32))
        out, err = run("trace", "info", "x.npz", "--json", "-")
        assert json.loads(out)["dense_perplexity"] is None
        assert err == ""
        assert "perplexity -" in run("trace", "info", "x.npz")[0]

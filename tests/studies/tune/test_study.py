"""Tuning on a small model: the study resumes, its best settings give what it says, and it refuses what is not its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from hwsim.cli.app import app

pytest.importorskip("torch")
pytest.importorskip("optuna")

from hwsim.closed_loop import Loops
from hwsim.device.profile import load_profile
from hwsim.record import Settings as Reading
from hwsim.simulation.settings import Settings
from hwsim.studies.tune import Goal, study
from hwsim.studies.tune.space import settings_of, uniform
from hwsim.util.units import show_number


def run(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


def command(checkpoints):
    common = [
        "--model",
        str(checkpoints["llama"]),
        *["--hw", "pixel8", "--dram", "60%", "--tokens", "64", "--context", "32"],
    ]
    return ["tune", *common, "--study", "s.db", "-o", "tuned.yaml", "--loss", "0.3,50"]


@pytest.fixture
def words(checkpoints, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return command(checkpoints)


@pytest.fixture(scope="module")
def whole(checkpoints, tmp_path_factory):
    """The folder of an undisturbed study of 14 trials, and what it printed."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        code, out, err = run(*command(checkpoints), "--trials", 14, "--json", "found.json")
    assert code == 0, err
    return folder, out


def test_a_study_finds_what_can_be_found_again(words, whole):
    folder, out = whole
    found = json.loads((folder / "found.json").read_text())
    assert found["trials"] <= 14
    assert found["now"] == 14
    best = found["best"]["50"]
    assert best["throughput_tok_s"] >= found["base"]["50"]["throughput_tok_s"]
    assert show_number(best["throughput_tok_s"]) in out
    tuned = folder / "tuned-50.yaml"
    written = yaml.safe_load(tuned.read_text())
    assert written["density"] == [best["settings"]["density"]]
    assert written["set"]["gamma"] == [best["settings"]["set"]["gamma"]]
    front = found["front"]
    costs, speeds = ([each[key] for each in front] for key in ("perplexity", "throughput_tok_s"))
    assert costs == sorted(costs)
    assert speeds == sorted(speeds)
    assert max(speeds) >= best["throughput_tok_s"]
    # the file gives the numbers of the study: in eval, and in a sweep
    options = [*words[1:3], "--hw", "pixel8", "--tokens", "64", "--context", "32"]
    code, out, err = run("eval", *options, "--settings", tuned, "--json", "-")
    assert code == 0, err
    again = json.loads(out)
    assert (again["perplexity"], again["throughput_tok_s"]) == (best["perplexity"], best["throughput_tok_s"])
    vary = ["--model", words[2], "--hw", "pixel8", "--tokens", "64", "--vary", "context=32"]
    code, out, err = run("sweep", tuned, *vary, "-o", "r.db", "--jobs", 1, "--json", "-")
    assert code == 0, err
    (swept,) = json.loads(out)["results"]
    assert (swept["perplexity"], swept["throughput_tok_s"]) == (best["perplexity"], best["throughput_tok_s"])


def test_shares_of_the_cache_are_written_and_read(words, checkpoints):
    """A trial with uneven shares gives the same numbers as its file of settings, by eval and by a sweep."""
    reading, settings = Reading(tokens=64, context=32), Settings(dram="60%")
    model = str(checkpoints["llama"])
    goal = Goal(model, "persuasion", reading, load_profile("pixel8"), settings, losses=(50.0,))
    point = uniform(0.7, 0.4) | {"share_down": 0.8}
    with Loops(goal.model, goal.text, goal.reading) as loops:
        chosen = settings_of(point, loops.ready.header.model)
        uneven = study._run(loops, goal, point, chosen)
        equal = study._run(loops, goal, point, {key: value for key, value in chosen.items() if key != "cache_shares"})
    assert uneven.flash_bytes != equal.flash_bytes
    study.write_settings(Path("t.yaml"), {"settings": chosen | {"dram": "60%"}}, "a test")
    options = [*words[1:3], "--hw", "pixel8", "--tokens", "64", "--context", "32"]
    code, out, err = run("eval", *options, "--settings", "t.yaml", "--json", "-")
    assert code == 0, err
    again = json.loads(out)
    assert (again["perplexity"], again["flash_bytes"]) == (uneven.perplexity, uneven.flash_bytes)
    vary = ["--model", words[2], "--hw", "pixel8", "--tokens", "64", "--vary", "context=32"]
    code, out, err = run("sweep", "t.yaml", *vary, "-o", "r.db", "--jobs", 1, "--json", "-")
    assert code == 0, err
    (swept,) = json.loads(out)["results"]
    assert (swept["perplexity"], swept["flash_bytes"]) == (uneven.perplexity, uneven.flash_bytes)


def test_a_study_goes_on(words):
    assert run(*words, "--trials", 5)[0] == 0
    code, _, _ = run(*words, "--trials", 9, "--json", "found.json")
    assert code == 0
    assert json.loads(Path("found.json").read_text())["now"] == 4
    assert run(*words, "--trials", 9, "--json", "found.json")[0] == 0
    assert json.loads(Path("found.json").read_text())["now"] == 0


def test_a_killed_study_finds_what_an_undisturbed_one_does(words, whole, monkeypatch):
    """Killed in a trial of the base, before the first random one, and between two: no trial is lost or another one."""
    real, begun = study._run, []

    class Killed(BaseException):
        pass

    def mortal(*arguments):
        begun.append(1)
        if len(begun) in (2, 10, 14):
            raise Killed
        return real(*arguments)

    monkeypatch.setattr(study, "_run", mortal)
    for _ in range(3):
        with pytest.raises(Killed):
            run(*words, "--trials", 14)
    assert run(*words, "--trials", 14, "--json", "other.json")[0] == 0
    first, second = (json.loads(path.read_text()) for path in (whole[0] / "found.json", Path("other.json")))
    assert first.pop("now") == 14
    assert second.pop("now") == 3
    assert first == second
    assert not list(Path().glob(".*lock"))


def test_a_study_that_vanishes_is_told(words, monkeypatch):
    real = study._run

    def meanwhile(*arguments):
        Path("s.db").unlink(missing_ok=True)
        return real(*arguments)

    monkeypatch.setattr(study, "_run", meanwhile)
    code, _, err = run(*words, "--trials", 4)
    assert code == 1
    assert err.startswith("hwsim: --study s.db: cannot be written any more; was it deleted, or is the disk full? ")
    assert len(err.splitlines()) == 1
    monkeypatch.setattr(study, "_run", real)
    assert run(*words, "--trials", 4)[0] == 0


def test_one_search_at_a_time_in_a_study(words):
    fcntl = pytest.importorskip("fcntl")
    with Path(".s.db.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        code, _, err = run(*words, "--trials", 4)
    assert (code, err) == (
        1, "hwsim: --study s.db: another process is tuning into it; wait for it, or name another\n"
    )  # fmt: skip


def test_another_goal_is_refused(words):
    assert run(*words, "--trials", 4)[0] == 0
    changed = ["70%" if word == "60%" else word for word in words]
    code, _, err = run(*changed, "--trials", 5)
    assert code == 1
    assert err == "hwsim: --study s.db: is of another --dram; name another file, or tune for the same\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--loss", "x"], "--loss x: must be numbers above 0, such as 0.1,0.5"),
        (["--loss", "-1"], "--loss -1.0: must be numbers above 0"),
        (["--least-density", "1"], "--least-density 1.0: must be above 0 and below 0.98"),
    ],
)
def test_what_is_impossible_is_told(words, options, message):
    code, _, err = run(*words, *options)
    assert (code, err) == (1, f"hwsim: {message}\n")


def test_a_file_that_is_no_study_is_told(words):
    Path("s.db").write_text("no study")
    code, _, err = run(*words)
    assert code == 1
    assert err == "hwsim: --study s.db: is no study but another file; name a new one, or a study\n"

"""`hwsim train predictor`: the same bytes after a kill, nothing of yours overwritten, every mistake told."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs torch")


from hwsim.errors import ModelError, OutputError, SettingError, TraceError
from hwsim.train import nets
from hwsim.train.partial import partial_of
from hwsim.train.predictor import Settings, train
from hwsim.util.arrayfile import read_arrays
from tests.cli.run import refused, run
from tests.conftest import write_trace

from .planted import QUICK, nets_file, planted, planted_trace

__all__ = ["nets_file", "planted_trace"]


# ---------------------------------------------------------------------- the same bytes, after a kill, too


KILLED = """
import os, signal, sys
import hwsim.train.predictor as p
honest, calls = p.fit, []
def fit(*arguments, tell, **named):
    calls.append(1)
    def deadly(epoch):
        if len(calls) == 2 and epoch == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        tell(epoch)
    return honest(*arguments, tell=deadly, **named)
p.fit = fit
from hwsim.cli import main
main()
"""
COMMAND = [
    "train",
    "predictor",
    "t.npz",
    "--density",
    "0.6",
    "--rank",
    "4",
    "--epochs",
    "6",
    "--learning-rate",
    "0.03",
    "-o",
    "nets.npz",
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted_trace: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copy(planted_trace, "t.npz")
    return tmp_path


def names() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_a_killed_training_goes_on_to_the_same_bytes(here: Path, nets_file: Path) -> None:
    dead = subprocess.run([sys.executable, "-c", KILLED, *COMMAND], check=False, capture_output=True, timeout=300)
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    assert names() == ["nets.npz.partial", "t.npz"]
    with Path("nets.npz.partial").open("ab") as file:
        file.write(b"\x10\0\0\0half a frame")  # a kill in the middle of writing
    told = refused(*COMMAND, "--seed", "1")
    assert told == (
        "nets.npz.partial: holds layers that were trained otherwise (seed 0, not 1); run that command to its end, name "
        "another file with -o, give --overwrite, or delete nets.npz.partial"
    )
    assert run(*COMMAND)[0].startswith(
        "Trained, going on from layer 1: nets of rank 4 for 2 layers of planted, on 500 "
    )
    assert Path("nets.npz").read_bytes() == nets_file.read_bytes()
    assert names() == ["nets.npz", "t.npz"]
    assert run(*COMMAND)[0].startswith("Already trained: ")
    assert json.loads(run(*COMMAND, "--json", "-")[0])["was_complete"]


def test_layers_of_other_settings_are_begun_anew_with_overwrite(here: Path, nets_file: Path) -> None:
    def interrupt(phase: str, done: int, total: int) -> None:
        if done > 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train("nets.npz", "t.npz", Settings(0.6, 3, 6), progress=interrupt)
    assert names() == ["nets.npz.partial", "t.npz"]
    assert train("nets.npz", "t.npz", QUICK, overwrite=True).resumed == 0
    assert Path("nets.npz").read_bytes() == nets_file.read_bytes()


def test_nothing_is_left_where_no_layer_was_finished(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nets._Net, "loss", lambda self, x, masks, how: self.parts["b2"].sum() * math.nan)
    with pytest.raises(SettingError, match=r"--learning-rate 0.03: the loss is no longer finite; give a lower one"):
        train("nets.npz", "t.npz", QUICK)
    assert names() == ["t.npz"]


def test_another_seed_gives_other_nets(here: Path, nets_file: Path) -> None:
    other = train("nets.npz", "t.npz", Settings(0.6, 4, 6, learning_rate=0.03, seed=1)).path
    assert not (np.load(other)["layers/000/w1"] == np.load(nets_file)["layers/000/w1"]).all()


def test_up_and_gate_serve_as_glu_does(tmp_path: Path, nets_file: Path) -> None:
    trace = planted(tmp_path / "t.npz", signals=("input", "up", "gate"))
    made = train(tmp_path / "nets.npz", trace, QUICK).path
    one, other = (read_arrays(path, "hwsim-predictor").arrays for path in (made, nets_file))
    assert all((one[name] == other[name]).all() for name in one)


# ---------------------------------------------------------------------- wrong inputs


def test_what_is_there_is_not_overwritten(here: Path) -> None:
    Path("nets.npz").write_bytes(b"mine")
    assert (
        refused(*COMMAND) == "nets.npz: exists and holds something else; name another file with -o, or give --overwrite"
    )
    assert Path("nets.npz").read_bytes() == b"mine"
    run(*COMMAND, "--overwrite")
    assert refused(*COMMAND, "--rank", "3").startswith("nets.npz: exists and holds something else")


def test_a_partial_file_that_is_none_is_spared(here: Path) -> None:
    Path("nets.npz.partial").write_text("my notes")
    for more in ([], ["--overwrite"]):
        assert refused(*COMMAND, *more) == (
            "nets.npz.partial: is there and is no unfinished training; name another file with -o"
        )
    assert Path("nets.npz.partial").read_text() == "my notes"


@pytest.mark.parametrize("more", [["-o", "t.npz"], ["-o", "t.npz", "--overwrite"], ["--json", "t.npz"]])
def test_the_trace_is_spared(here: Path, more: list[str], planted_trace: Path) -> None:
    assert "t.npz: cannot be written: the command reads it" in refused(*COMMAND, *more)
    assert Path("t.npz").read_bytes() == planted_trace.read_bytes()


def test_json_and_the_nets_are_two_files(here: Path) -> None:
    for name in ("nets.npz", "nets.npz.partial"):
        assert refused(*COMMAND, "--json", name).startswith(
            f"{name}: cannot be written: the command writes the nets to"
        )
    assert names() == ["t.npz"]


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--density", "0", "--density 0: must be above 0 and at most 1"),
        ("--density", "nan", "--density nan: must be above 0 and at most 1"),
        ("--rank", "0", "--rank 0: must be at least 1"),
        ("--rank", "22", "--rank 22: the nets alone are 0.609 of the MLP, --density is 0.6; give a lower --rank or a higher --density"),
        ("--epochs", "0", "--epochs 0: must be at least 1"),
        ("--patience", "0", "--patience 0: must be at least 1"),
        ("--learning-rate", "-1", "--learning-rate -1: must be above 0 and at most 1"),
        ("--seed", "-1", "--seed -1: must be at least 0"),
        ("--device", "abacus", "--device abacus: torch cannot use it here; usable: cpu"),
    ],
)  # fmt: skip
def test_wrong_settings(here: Path, option: str, value: str, told: str) -> None:
    assert refused(*COMMAND, option, value).startswith(told)
    assert names() == ["t.npz"]


def test_wrong_traces(here: Path) -> None:
    write_trace(Path("glu.npz"), signals=("glu",))
    assert refused("train", "predictor", "glu.npz", "-o", "n.npz") == (
        "glu.npz: has no signal 'input'; it holds glu; record it with: hwsim record --model small --signals input,glu"
    )
    write_trace(Path("up.npz"), signals=("input", "up"))
    with pytest.raises(TraceError, match="has no signal 'glu'"):
        train("n.npz", "up.npz")
    planted(Path("one.npz"), sequences=1)
    assert refused("train", "predictor", "one.npz", "-o", "n.npz").startswith(
        "one.npz: has one sequence of 64 tokens; "
    )
    assert refused("train", "predictor", "no.npz", "-o", "n.npz").startswith("no.npz: cannot be opened")
    assert refused("train", "predictor", "t.npz", "-o", "no/n.npz").startswith("no/n.npz: cannot be written")


def test_two_processes_do_not_write_one_file(here: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    with partial_of(Path("nets.npz")).open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="another process is writing it"):
            train("nets.npz", "t.npz", QUICK)


def test_without_torch_it_is_one_line(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "torch" else found(name, *more)
    )
    with pytest.raises(ModelError):
        train("nets.npz", "t.npz", QUICK)
    assert refused(*COMMAND) == (
        "training needs torch, which is not installed; install it with: pip install 'hwsim[record]'"
    )
    assert names() == ["t.npz"]

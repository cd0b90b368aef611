"""The closed loop from Python is that of the command line."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

import hwsim
from hwsim.cli.app import app
from hwsim.errors import HwsimError


def test_an_evaluation_is_that_of_the_command_line(checkpoints: dict[str, Path]) -> None:
    folder = checkpoints["llama"]
    words = [
        "--model",
        str(folder),
        "--hw",
        "pixel8",
        "--policy",
        "dip,dip-ca",
        "--tokens",
        "64",
        "--context",
        "32",
        "--dram",
        "60%",
    ]
    done = CliRunner().invoke(app, ["eval", *words, "--density", "0.6", "--set", "gamma=0.4", "--json", "-"])
    assert done.exit_code == 0, done.output
    found = hwsim.closed_loop(
        folder, "pixel8", ["dip", "dip-ca"], tokens=64, context=32, dram="60%", density=0.6, gamma=0.4
    )
    assert [json.loads(each.to_json()) for each in found] == json.loads(done.stdout)["results"]
    one = hwsim.closed_loop(folder, "pixel8", "dip", tokens=64, context=32, dram="60%", density=0.6)
    assert one.perplexity == found[0].perplexity
    assert "perplexity" in one.to_frame().columns
    assert "<th>perplexity</th>" in one._repr_html_()


def test_its_errors_are_those_of_the_command_line(checkpoints: dict[str, Path]) -> None:
    done = CliRunner().invoke(app, ["eval", "--model", "nothing", "--hw", "pixel8", "--policy", "dip"])
    try:
        hwsim.closed_loop("nothing", "pixel8", "dip")
    except HwsimError as error:
        assert done.stderr == f"hwsim: {error}\n"
    else:
        raise AssertionError

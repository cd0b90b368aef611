"""The table of commands: what it says without loading them is what they say themselves."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from hwsim.cli.app import COMMANDS
from tests.cli.commands import listed

HEAVY = {"numpy", "torch", "simpy", "yaml"}
LIGHT = {"hwsim", "hwsim.cli", "hwsim.cli.app", "hwsim.cli.group"}  # of hwsim, what `hwsim --help` needs


LISTED = dict(listed())


def test_the_table_is_what_is_listed() -> None:
    assert sorted(LISTED) == sorted(entry.name for entry in COMMANDS)


@pytest.mark.parametrize("name", LISTED)
def test_a_summary_is_the_first_paragraph(name: str) -> None:
    command = LISTED[name]
    assert command.short_help == " ".join(command.help.split("\n\n")[0].split())
    assert f"Example: hwsim {name}" in command.help


def loaded(*arguments: str) -> list[str]:
    """The modules that a command line loads."""
    program = (
        "import json, sys\nfrom hwsim.cli import main\n"
        "try: main()\nfinally: print('\\n' + json.dumps(list(sys.modules)), flush=True)"
    )
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=True, timeout=60)
    names: list[str] = json.loads(done.stdout.splitlines()[-1])
    return names


@pytest.mark.parametrize("words", [["--help"], ["trace", "--help"], ["--version"]], ids=" ".join)
def test_help_loads_no_command(words: list[str]) -> None:
    modules = loaded(*words)
    assert {name for name in modules if name.partition(".")[0] == "hwsim"} == LIGHT
    assert not HEAVY & set(modules)


def test_the_help_of_a_command_loads_that_one_alone() -> None:
    modules = loaded("synth", "--help")
    assert "hwsim.cli.synth" in modules
    assert "hwsim.cli.replay" not in modules
    assert not HEAVY & set(modules)

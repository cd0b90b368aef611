"""Options that are the fields of an object: what typer is given, and what the command is called with."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from hwsim.cli.app import COMMANDS
from hwsim.cli.common import guarded
from hwsim.cli.declared import Derived, declared, flat
from hwsim.errors import SettingError


@dataclass(frozen=True, kw_only=True)
class Inner:
    depth: Annotated[int, typer.Option(min=1, help="How deep.")] = 1
    names: Annotated[list[str] | None, typer.Option("--name", help="Of what.")] = None


@dataclass(frozen=True, kw_only=True)
class Outer:
    file: Annotated[str, typer.Argument(help="To read.")]
    width: Annotated[int, typer.Option(help="How wide.")] = 3
    inner: Inner
    wet: Annotated[bool, typer.Option("--wet", help="Whether.")] = False


@dataclass(frozen=True, kw_only=True)
class Wider(Outer):
    width: Annotated[int, typer.Option(help="How wide.")] = 5
    colour: Annotated[str, typer.Option(help="Which.")] = "red"


class Run:
    """What a provider makes: no dataclass of options, and with names of its own."""

    def __init__(self, values: dict[str, Any]) -> None:
        if values["block"] > 9:
            raise SettingError(f"--block {values['block']}: too large")
        self.values = values


def run_parameters(command: str) -> list[inspect.Parameter]:
    option = Annotated[int, typer.Option(min=1, help=f"Of {command}.")]
    share = Annotated[float | None, typer.Option(help="What is left.")]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [
        inspect.Parameter("block", kind, default=1, annotation=option),
        inspect.Parameter("share", kind, default=None, annotation=share),
    ]
    return parameters if command == "train thing" else parameters[:1]


RunField = Annotated[Run, Derived(run_parameters, Run)]


@dataclass(frozen=True, kw_only=True)
class WithRun:
    first: Annotated[int, typer.Option(help="Before.")] = 0
    run: RunField
    last: Annotated[int, typer.Option(help="After.")] = 0


def call(command: Callable[..., None], *words: str, name: str = "thing", code: int = 0) -> str:
    app = typer.Typer(add_completion=False)
    app.command("thing")(guarded(declared(command, name)))
    done = CliRunner().invoke(app, words)
    assert done.exit_code == code, done.output
    return done.output


def test_a_command_gets_the_object() -> None:
    got: list[Any] = []

    def command(ctx: typer.Context, options: Outer) -> None:
        got.append((ctx, options))

    call(command, "a.txt", "--depth", "4", "--name", "x", "--name", "y", "--wet")
    call(command, "b.txt")
    assert got[0][1] == Outer(file="a.txt", width=3, inner=Inner(depth=4, names=["x", "y"]), wet=True)
    assert got[1][1] == Outer(file="b.txt", inner=Inner())
    assert got[0][0].get_parameter_source("depth").name == "COMMANDLINE"
    assert got[1][0].get_parameter_source("depth").name == "DEFAULT"
    assert flat(got[0][1]) == {"file": "a.txt", "width": 3, "depth": 4, "names": ["x", "y"], "wet": True}


def test_a_subclass_changes_a_default_and_keeps_the_order() -> None:
    got: list[Wider] = []

    def command(options: Wider) -> None:
        got.append(options)

    names = list(inspect.signature(declared(command, "thing")).parameters)
    assert names == ["file", "width", "depth", "names", "wet", "colour"]
    call(command, "a.txt")
    assert got[0] == Wider(file="a.txt", width=5, inner=Inner(), colour="red")


def test_help_lists_options_in_the_order_of_the_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")

    def command(options: Outer, also: Annotated[int, typer.Option(help="Beside the object.")] = 2) -> None:
        """What it does."""

    shown = call(command, "--help")
    assert "What it does." in shown
    places = [shown.index(f"--{name} ") for name in ("width", "depth", "name", "wet", "also", "help")]
    assert places == sorted(places)
    assert "How deep." in shown
    assert "[default: 3]" in shown


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--width", "2"], "Missing argument"),
        (["a.txt", "--depth", "0"], "Invalid value for '--depth'"),
        (["a.txt", "--colour", "red"], "No such option"),
    ],
)
def test_a_wrong_command_line_is_refused(words: list[str], says: str) -> None:
    def command(options: Outer) -> None:
        raise AssertionError

    assert says in call(command, *words, code=2)


def test_a_provider_declares_options_and_makes_the_value() -> None:
    got: list[WithRun] = []

    def command(options: WithRun) -> None:
        got.append(options)

    names = list(inspect.signature(declared(command, "train thing")).parameters)
    assert names == ["first", "block", "share", "last"]
    call(command, "--block", "4", "--last", "7", name="train thing")
    assert (got[0].first, got[0].last) == (0, 7)
    assert got[0].run.values == {"block": 4, "share": None}
    assert flat(got[0]) == {"first": 0, "run": got[0].run, "last": 7}
    call(command, "--first", "1")
    assert got[1].run.values == {"block": 1}  # the other command has no --share
    assert "No such option" in call(command, "--share", "0.5", code=2)
    assert "Of train thing." in call(command, "--help", name="train thing")


def test_a_provider_may_be_a_parameter_itself() -> None:
    got: list[Run] = []

    def command(run: RunField) -> None:
        got.append(run)

    call(command, "--block", "2")
    assert got[0].values == {"block": 2}


def test_what_a_provider_refuses_is_one_line() -> None:
    def command(options: WithRun) -> None:
        raise AssertionError

    assert call(command, "--block", "10", code=1) == "hwsim: --block 10: too large\n"


@dataclass(frozen=True, kw_only=True)
class Twice:
    inner: Inner
    depth: Annotated[int, typer.Option(help="Again.")] = 2


@dataclass(frozen=True, kw_only=True)
class Made:
    names: Annotated[list[str], typer.Option(help="Made anew.")] = field(default_factory=list)


def two(options: Twice) -> None: ...


def made(options: Made) -> None: ...


@pytest.mark.parametrize(
    ("command", "says"),
    [(two, "hwsim thing: two options are called depth"), (made, "hwsim thing: Made.names must have a plain default")],
)
def test_declarations_that_cannot_be_are_refused(command: Callable[..., None], says: str) -> None:
    with pytest.raises(TypeError, match=says):
        declared(command, "thing")


@pytest.mark.parametrize("entry", COMMANDS, ids=lambda entry: entry.name)
def test_no_command_has_more_than_eight_parameters(entry: Any) -> None:
    module, _, function = entry.where.partition(":")
    command = getattr(importlib.import_module(f"hwsim.cli.{module}"), function)
    assert len(inspect.signature(command).parameters) <= 8

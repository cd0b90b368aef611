"""What the commands share: consoles, progress bars, and reading options."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hwsim.errors import HwsimError, SettingError, did_you_mean
from hwsim.files import write_atomic
from hwsim.model import Bits

JsonOption = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE|-", help="Write the result as JSON to a file, or to the terminal with -."),
]


_P = ParamSpec("_P")


def guarded(command: Callable[_P, None]) -> Callable[_P, None]:
    """A command whose errors are told in one line, with the exit codes that `hwsim.cli.main` promises."""

    @functools.wraps(command)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            command(*args, **kwargs)
            sys.stdout.flush()
        except HwsimError as error:
            _complain(str(error))
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            _complain("interrupted; nothing was left half-written")
            raise typer.Exit(130) from error
        except BrokenPipeError as error:
            # the reader (head, less) has gone; keep Python from complaining again when it flushes
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from error

    return run


def _complain(text: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"hwsim: {text}", style="red", markup=False)


def output() -> Console:
    """The console for answers. Not a terminal: as wide as the answer needs, no colours."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)


def note(text: str) -> None:
    """A remark that is no part of the answer: to standard error."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(text, markup=False, style="dim")


def write_json(target: str, text: str) -> None:
    """Write to a file in one step, or to standard output for ``-``."""
    if target == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        write_atomic(Path(target), text)


def to_json(data: Any) -> str:
    """JSON text with a newline at its end."""
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


@contextmanager
def progress_bar(rate: str = "") -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error, none where that is not a terminal; yields f(phase, done, total).

    Args:
        rate: unit of a rate to show beside the bar, such as "tokens".
    """
    columns = [
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
    ]
    if rate:
        columns.append(TextColumn("{task.fields[speed]}"))
    columns += [TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()]
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks: dict[str, TaskID] = {}
        started: dict[str, int] = {}

        def update(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task(phase, total=total, completed=done, speed="")
                started[phase] = done
            task = bar.tasks[bar.task_ids.index(tasks[phase])]
            speed = (done - started[phase]) / task.elapsed if task.elapsed and done > started[phase] else 0.0
            bar.update(tasks[phase], completed=done, total=total, speed=f"{speed:.0f} {rate}/s" if speed else "")

        yield update


def key_values(pairs: list[str], option: str) -> dict[str, str]:
    """Read ``key=value`` options; a later one wins.

    Raises:
        SettingError: one has no =.
    """
    values = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise SettingError(f"{option} {pair}: write {option} key=value")
        values[key.strip()] = value.strip()
    return values


def read_bits(text: str) -> Bits:
    """Read ``--bits mlp=4.5,attention=4``; what is not named keeps its default.

    Raises:
        SettingError: an unknown part, or a number out of bounds.
    """
    values = key_values([part for part in text.split(",") if part.strip()], "--bits")
    for name in values:
        if name not in Bits.model_fields:
            raise SettingError(f"--bits {name}: no such part of a model{did_you_mean(name, Bits.model_fields)}")
    try:
        return Bits.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        raise SettingError(f"--bits {first['loc'][0]}={first['input']}: {message}") from error

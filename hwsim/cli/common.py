"""Common functions of the commands: consoles, progress bars, and reading options."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TextIO, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hwsim.cli.group import complain
from hwsim.errors import HwsimError, OutputError, SettingError, one_line
from hwsim.util.files import keep_strangers, spare, write_atomic
from hwsim.util.units import printable

if TYPE_CHECKING:
    from hwsim.masking.observers import Observer
    from hwsim.simulation.metrics import Result

JsonOption = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE|-", help="Write the result as JSON to a file, or to the terminal with -."),
]


_P = ParamSpec("_P")

_answers: ContextVar[TextIO | None] = ContextVar("answers", default=None)  # standard output, while a command runs


def guarded(command: Callable[_P, None]) -> Callable[_P, None]:
    """Wrap a command so that errors are printed as one line, with the exit codes of `hwsim.cli.main`.

    Only `output`, `write_text` and `write_json` reach standard output; output of plug-ins goes to standard error.
    """

    @functools.wraps(command)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> None:
        token = _answers.set(sys.stdout)
        try:
            with redirect_stdout(sys.stderr):
                command(*args, **kwargs)
            sys.stdout.flush()
        except HwsimError as error:
            complain(str(error))
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            complain(f"interrupted; {str(error) or 'nothing was left half-written'}")
            raise typer.Exit(130) from error
        except MemoryError as error:
            complain("out of memory; ask for less, such as fewer tokens")
            raise typer.Exit(1) from error
        except BrokenPipeError as error:  # the reader (head, less) has gone
            _silence_stdout()
            raise typer.Exit(0) from error
        except OSError as error:  # without a file name it is standard output, for example on a full disk
            _silence_stdout()
            what = "the answer cannot be written" if error.filename is None else str(error.filename)
            complain(f"{what}: {error.strerror or one_line(error)}")
            raise typer.Exit(1) from error
        finally:
            _answers.reset(token)

    return run


def _stdout() -> TextIO:
    """The real standard output, also while `sys.stdout` is redirected because of plug-ins."""
    return _answers.get() or sys.stdout


def _silence_stdout() -> None:
    """Prevent a second error when Python flushes standard output at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Plain:
    """Standard output that is no terminal: strips blanks at line ends, and writes ? for what it cannot encode."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.encoding = stream.encoding or "utf-8"

    def write(self, text: str) -> int:
        lines = "\n".join(line.rstrip(" ") for line in text.split("\n"))
        return self._stream.write(lines.encode(self.encoding, "replace").decode(self.encoding))

    def flush(self) -> None:
        self._stream.flush()


class _Piped(Console):
    """A console that leaves a closed pipe to `guarded`; rich would exit as after a failure."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def output() -> Console:
    """The console for results; if it is no terminal, it has 160 characters a line and no colours."""
    stream = _stdout()
    if stream.isatty():
        return Console(highlight=False, file=stream)
    return _Piped(highlight=False, width=160, file=cast("TextIO", _Plain(stream)))


def note(text: str) -> None:
    """Print a remark that is not part of the result to standard error."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(printable(text), markup=False, style="dim")


def write_text(text: str) -> None:
    """Write text unchanged to standard output and flush it."""
    _stdout().write(text)
    _stdout().flush()


def write_json(target: str, text: str) -> None:
    """Write to a file atomically, or to standard output for ``-``."""
    if target == "-":
        write_text(text)
    else:
        write_atomic(Path(target), text)


def listed(text: str) -> list[str]:
    """Split names at commas and strip spaces."""
    return [name.strip() for name in text.split(",") if name.strip()]


def check_target(target: str | None, *sources: Path) -> None:
    """Check before long work that the result can be written to `target` without overwriting one of the `sources`.

    Raises:
        OutputError: the folder is missing, or the file is a folder, one of the sources, or not writable.
    """
    if target is None or target == "-":
        return
    path = Path(target)
    try:
        if path.is_dir():
            raise OutputError(f"{path}: cannot be written: it is a folder")
        if not path.resolve().parent.is_dir():
            raise OutputError(f"{path}: cannot be written: there is no folder {path.parent}")
        spare(path, sources)
        keep_strangers(path, "{", "[")
        writable = path if path.exists() and not path.is_file() else path.resolve().parent
        if not os.access(writable, os.W_OK):
            raise OutputError(f"{path}: cannot be written: permission denied")
    except (OSError, ValueError) as error:  # a name that no file can have
        raise OutputError(f"{target}: cannot be written: {one_line(error)}") from error


def to_json(data: Any) -> str:
    """JSON text with a final newline; ? replaces characters that UTF-8 cannot encode, as in some file names."""
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "replace").decode()


def plugin_files(specs: Iterable[str]) -> list[Path]:
    """The files named in options such as ``--policy dip,./mine.py:Mine``, split as the commands split them."""
    names = [name for spec in specs for name in (spec, *listed(spec))]
    return [Path(path + ".py") for name in names for path, ending, _ in [name.rpartition(".py")] if ending]


def setting_files(pairs: Iterable[str]) -> list[Path]:
    """The values of ``--set key=value`` that are files, single or in a list."""
    values = [value for pair in pairs for value in (pair.partition("=")[2], *pair.partition("=")[2].split(","))]
    return [path for value in values for path in [Path(value.strip(" []{}\"'"))] if path.name and is_file(path)]


def is_file(path: Path) -> bool:
    """Whether a file exists; False for a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def write_results(target: str | None, results: list[Result]) -> None:
    """Write one result as a result file, several as ``hwsim-results``."""
    if target:
        many = {"format": "hwsim-results", "version": 1, "results": [result.plain() for result in results]}
        write_json(target, results[0].to_json() if len(results) == 1 else to_json(many))


@contextmanager
def progress_bar(rate: str = "") -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on standard error, if that is a terminal; yields a function of (phase, done, total).

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
            shown = f"{speed:.0f} {rate}/s" if speed else ""
            # hide phases that are done
            bar.update(tasks[phase], completed=done, total=total, speed=shown, visible=done < total)

        yield update


def named(tell: Callable[[str, int, int], None], prefix: str = "") -> Observer:
    """An observer that shows the progress of a run, each phase with a prefix."""
    from hwsim.masking.observers import Observer

    class Progress(Observer):
        def progress(self, phase: str, done: int, total: int) -> None:
            tell(f"{prefix}{phase}", done, total)

    return Progress()


def key_values(pairs: list[str], option: str) -> dict[str, str]:
    """Read ``key=value`` options; a later value replaces an earlier one.

    Raises:
        SettingError: an option has no =.
    """
    values = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise SettingError(f"{option} {pair}: write {option} key=value")
        values[key.strip()] = value.strip()
    return values


def find_trace(trace: Path) -> Path:
    """The path of a trace or the bundled trace, as `hwsim.simulation.options.find_trace` returns it."""
    from hwsim.simulation.options import find_trace as find

    return find(trace)

"""``hwsim compare``: two results, and what makes them differ."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hwsim.cli.common import guarded, output
from hwsim.errors import SettingError


def compare(
    first: Annotated[str, typer.Argument(metavar="A.json", help="A result; FILE:N is the Nth of a file of several.")],
    second: Annotated[str, typer.Argument(metavar="B.json", help="Another.")],
) -> None:
    """Explain the difference between two results in words and numbers.

    Example: hwsim compare runs.json:1 runs.json:2
    """
    from hwsim.report.compare import render_comparison

    rows = [_read(name) for name in (first, second)]
    output().print(render_comparison(rows[0], rows[1], (first, second)))


def _read(name: str) -> dict[str, Any]:
    from hwsim.report.page.inputs import read_inputs
    from hwsim.sweep import Store

    path, _, number = name.rpartition(":")
    if not path or not number.isdigit():
        path, number = name, ""

    def stored(file: Path) -> list[dict[str, Any]]:
        with Store(file, create=False) as store:
            return list(store.results())

    found = read_inputs([Path(path)], stored).results
    if not number and len(found) > 1:
        raise SettingError(f"{path}: holds {len(found)} results; name one, such as {path}:1")
    if number and not 1 <= int(number) <= len(found):
        raise SettingError(f"{name}: there are {len(found)} results, counted from 1")
    return found[int(number or 1) - 1]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(no_args_is_help=True)(guarded(compare))

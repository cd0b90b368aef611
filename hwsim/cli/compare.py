"""``hwsim compare``: two results, and what makes them differ."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hwsim.cli.common import JsonOption, check_target, output, to_json, write_json
from hwsim.errors import SettingError


def compare(
    first: Annotated[str, typer.Argument(metavar="A.json", help="A result; FILE:N is the Nth of a file of several.")],
    second: Annotated[str, typer.Argument(metavar="B.json", help="Another.")],
    json: JsonOption = None,
) -> None:
    """Explain the difference between two results in words and numbers.

    Example: hwsim compare runs.json:1 runs.json:2
    """
    from hwsim.report.compare import plain, render_comparison

    check_target(json, *(_file(name) for name in (first, second)))
    rows = [_read(name) for name in (first, second)]
    if json:
        write_json(json, to_json(plain(rows[0], rows[1])))
    if json != "-":
        output().print(render_comparison(rows[0], rows[1], (first, second)))


def _read(name: str) -> dict[str, Any]:
    from hwsim.report.page.inputs import read_inputs
    from hwsim.studies.sweep import Store

    path = str(_file(name))
    number = name.removeprefix(path).removeprefix(":")

    def stored(file: Path) -> list[dict[str, Any]]:
        with Store(file, create=False) as store:
            return list(store.results())

    results = read_inputs([Path(path)], stored).results
    if not number and len(results) > 1:
        raise SettingError(f"{path}: holds {len(results)} results; name one, such as {path}:1")
    if number and not 1 <= int(number) <= len(results):
        raise SettingError(f"{name}: there are {len(results)} results, counted from 1")
    return results[int(number or 1) - 1]


def _file(name: str) -> Path:
    """The file of ``FILE`` or ``FILE:N``."""
    path, _, number = name.rpartition(":")
    return Path(path if path and number.isdigit() else name)

"""``hwsim report``: make one HTML page of results, and its tables and plots as separate files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hwsim.cli.common import note
from hwsim.util.files import check_new_file, keep_strangers, spare, write_atomic


def report(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULTS...", help="Files of --json, stores of `hwsim sweep`, curves of `hwsim trace curve`."
        ),
    ],
    out: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.html", help="Page to write.")],
    title: Annotated[str, typer.Option(help="Of the page.")] = "LLM token generation, simulated",
    export: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help="Also write, beside the page: csv, parquet and latex of its tables, svg and png of its plots.",
        ),
    ] = None,
) -> None:
    """Make one page of HTML of results.

    The answer comes first, then plots, tables and where the numbers are from. The page needs no network and prints.
    With results of `hwsim eval` it shows accuracy against speed.

    Example: hwsim report runs.db -o report.html
    """
    from hwsim.report.page import build_page, read_inputs
    from hwsim.report.page.export import read_formats, write_exports
    from hwsim.studies.sweep import Store

    def stored(path: Path) -> list[dict[str, object]]:
        with Store(path, create=False) as store:
            return list(store.results())

    formats = read_formats(export)
    check_new_file(out)
    spare(out, results)
    keep_strangers(out, "<!doctype html")
    inputs = read_inputs(results, stored)
    page = build_page(inputs, title)
    written = write_exports(inputs, out, formats, results)
    write_atomic(out, page)
    note(f"{len(inputs.results)} runs in {out}" + (f"; {', '.join(path.name for path in written)}" if written else ""))

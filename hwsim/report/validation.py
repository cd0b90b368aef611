"""Predictions beside measurements: a table for the terminal, and the page docs/explanation/validation.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import ConsoleRenderable, Group
from rich.text import Text

from hwsim.report.columns import Column, fit, rows, table, widen

_GAP = 2
_METHOD = (
    "Made by `hwsim validate --markdown docs/explanation/validation.md`. The rows, the conditions that each is "
    "predicted from, and the reason of each row that is left out were committed before the first prediction was made "
    "(`hwsim/studies/validate/rows.yaml`). No parameter is fitted on a row that it is judged by. A row goes through "
    "the same Flash model and the same engine as a replay: bytes, hit rate and, where the source gives it, compute "
    "time are its conditions; what Flash makes of them is predicted. Rows that give both bytes and rate are no test "
    "and are left out."
)
_VERDICT = (
    "The aim was a mean of 20 % and a median of 12 %: the mean is met, the median is missed. Read it as what to expect "
    "where conditions are known this roughly; comparisons of policies on one device depend on far less. The first "
    "predictions had a mean of 19.3 % and a median of 16.0 %; since then the end of a batch of reads is waited for, as "
    "a simulation of single requests demands ([devices.md](devices.md#flash))."
)


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def render(predictions: Sequence[Any], summary: Mapping[str, Any], width: int) -> ConsoleRenderable:
    """Render the predictions with their measurements, and the errors by source."""
    columns = [
        Column("row", [row.id for row in predictions], folds=True),
        Column("measured", [f"{_number(row.measured)} {row.unit}" for row in predictions]),
        Column("predicted", [f"{_number(row.predicted)} {row.unit}" for row in predictions]),
        Column("error", [f"{row.error:+.1%}" for row in predictions]),
        Column("Flash", [f"{row.flash_ms:.0f} ms" for row in predictions], 2),
        Column("DRAM", [f"{row.dram_ms:.0f} ms" for row in predictions], 3),
        Column("compute", [f"{row.compute_ms:.0f} ms" for row in predictions], 3),
        Column("conditions", [row.conditions for row in predictions], 4, folds=True),
    ]
    columns, dropped = fit(columns, width, _GAP)
    shown = table(columns, _GAP)
    for name, *cells in rows(columns):
        shown.add_row(name, *cells)
    parts: list[ConsoleRenderable] = [shown, Text(""), _errors(summary)]
    return Group(*parts, *([widen(dropped)] if dropped else []))


def _errors(summary: Mapping[str, Any]) -> ConsoleRenderable:
    columns = [
        Column("absolute error over", list(summary), folds=True),
        Column("rows", [str(errors.rows) for errors in summary.values()]),
        Column("mean", [f"{errors.mean:.1%}" for errors in summary.values()]),
        Column("median", [f"{errors.median:.1%}" for errors in summary.values()]),
        Column("worst", [f"{errors.worst:.1%}" for errors in summary.values()]),
    ]
    shown = table(columns, _GAP)
    for name, *cells in rows(columns):
        shown.add_row(name, *cells)
    return shown


def markdown(
    predictions: Sequence[Any], summary: Mapping[str, Any], left_out: Sequence[Any], misses: Mapping[str, str]
) -> str:
    """The page in Markdown: errors, rows, reasons for large errors, and rows that are left out."""
    lines = [
        "# Held against published measurements",
        "",
        _METHOD,
        "",
        "| absolute error over | rows | mean | median | worst |",
        "|---|---|---|---|---|",
        *(f"| {name} | {e.rows} | {e.mean:.1%} | {e.median:.1%} | {e.worst:.1%} |" for name, e in summary.items()),
        "",
        _VERDICT,
    ]
    for source in dict.fromkeys(row.source for row in predictions):
        own = [row for row in predictions if row.source == source]
        lines += [
            "",
            f"## {source}",
            "",
            "| conditions | assumed | measured | predicted | error | Flash, DRAM, compute a token |",
            "|---|---|---|---|---|---|",
        ]
        for row in own:
            busy = ", ".join(f"{value:.0f}" for value in (row.flash_ms, row.dram_ms, row.compute_ms))
            lines.append(
                f"| {row.conditions} | {row.assumptions} | {_number(row.measured)} {row.unit} "
                f"| {_number(row.predicted)} {row.unit} | {row.error:+.1%} | {busy} ms |"
            )
        if source in misses:
            lines += ["", misses[source]]
    lines += ["", "## Left out", "", "| rows | reason |", "|---|---|"]
    lines += [f"| {row.rows} | {row.reason} |" for row in left_out]
    return "\n".join(lines) + "\n"

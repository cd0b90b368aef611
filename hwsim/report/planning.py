"""The plan for a mixture of experts as a table for each amount of DRAM."""

from __future__ import annotations

from typing import Any

from rich.console import ConsoleRenderable, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hwsim.util.units import printable, show_number, show_size

_MEANING = (
    "> is recommended; * needs foresight. Weight lost: share of the router's weights that fewer\n"
    "experts give up; what that costs in accuracy only hwsim eval tells."
)


Row = dict[str, Any]


def render_plan(plan: dict[str, Any], title: str) -> ConsoleRenderable:
    """Everything that ``hwsim plan`` shows.

    Args:
        plan: the setups, from `hwsim.studies.plan.Plan.plain`.
        title: what was planned.
    """
    parts: list[ConsoleRenderable] = [Padding(Text(printable(title), style="bold"), (1, 0, 0, 0))]
    each = len(plan["rows"]) // max(1, len(plan["reasons"]))  # setups at one amount of DRAM
    by_dram = [plan["rows"][start : start + each] for start in range(0, len(plan["rows"]), each)]
    for rows, reason in zip(by_dram, plan["reasons"], strict=True):
        first = rows[0]
        head = (
            f"DRAM {show_size(first['dram'])}: {show_size(first['pinned'])} pinned, {show_size(first['cache'])} for "
            f"experts; a token needs {show_size(first['demand'])}"
        )
        parts += [Padding(Text(head), (1, 0, 0, 0)), _table(rows), Text(f"  {reason}")]
    return Group(*parts, Padding(Text(_MEANING, style="dim"), (1, 0, 0, 0)))


def _table(rows: list[Row]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    heads = ("", "experts", "weight lost", "caches", "eviction", "lanes", "hit rate", "Flash a token", "tokens/s")
    for head in heads:
        table.add_column(head, justify="left" if head in ("", "caches", "eviction") else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            ">" if row["recommended"] else "*" if row["bound"] else "",
            str(row["experts"]),
            "-" if row["weight_lost"] is None else f"{row['weight_lost']:.1%}",
            "all layers" if row["scope"] == "global" else "each layer",
            row["eviction"],
            "-" if row["lanes"] is None else str(row["lanes"]),
            f"{row['hit_rate']:.1%}",
            show_size(row["flash_bytes"]),
            show_number(row["tokens_per_second"]),
            style="bold" if row["recommended"] else "",
        )
    return table

"""The table of many results: what differs between them, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from rich.console import ConsoleRenderable, Group
from rich.text import Text

from hwsim.report.columns import Column, fit, rows, table, widen
from hwsim.report.use import KEYS, use
from hwsim.util.units import printable, show_number, show_size

_WIDE = 100  # columns of a terminal from which on tables are spaced wider

Row = dict[str, Any]
"""A result as the result file holds it."""


def settings_of(result: Row) -> dict[str, str]:
    """What a result was asked to be, by a short name each; the parameters of the plug-ins beside them."""
    told = result["provenance"]
    settings, policy, rule = told["settings"], told["policy"], told["eviction"]
    found = {
        "model": told["model"]["name"],
        "trace": told["trace"]["name"],
        "device": told["device"]["name"],
        "policy": policy["name"],
        **{key: _value(value) for key, value in policy["parameters"].items()},
        "eviction": rule["name"],
        **{f"eviction.{key}": _value(value) for key, value in rule["parameters"].items()},
        "DRAM": show_size(settings["dram_budget_bytes"]),
        "seed": str(told["seed"]),
    }
    others = {key: value for key, value in settings.items() if key not in ("dram_budget_bytes", *KEYS)}
    for key in ("bits", "pinned", "warm"):
        others[key] = others[key] and json.dumps(others[key], sort_keys=True)
    return found | {key: _value(value) for key, value in others.items()} | use(settings)


def _value(value: Any) -> str:
    if isinstance(value, str) and "/" in value:  # a file
        return value.rpartition("/")[2]
    if isinstance(value, float):
        return show_number(value)
    return "-" if value is None else str(value) if not isinstance(value, dict | list) else json.dumps(value)


def render_runs(results: Iterable[Row], *, numbers: Iterable[int] = (), width: int = 160) -> ConsoleRenderable:
    """The results, one a line, in the order given; settings that all share are told once, above.

    Args:
        results: as the result file holds them.
        numbers: of the results, by which ``hwsim compare`` finds them; none: they are not shown.
        width: characters of a line.
    """
    found = list(results)
    told = [settings_of(result) for result in found]
    names = list(dict.fromkeys(name for each in told for name in each))
    places = [str(number) for number in numbers]
    columns, same = [Column("", places)] if places else [], []
    for name in names:
        there = {each[name] for each in told if name in each}
        if len(there) > 1 or name == "policy":
            columns.append(Column(printable(name), [printable(each.get(name, "")) for each in told], folds=True))
        elif all(name in each for each in told) and there.isdisjoint(("-", "False", "None")):
            same.append(f"{name} {told[0][name]}")
    columns += [Column(head, [show(row) for row in found]) for head, show in _FOUND if any(show(row) for row in found)]
    gap = 2 if width >= _WIDE else 1
    shown, dropped = fit(columns, width, gap)
    made = table(shown, gap)
    for row in rows(shown):
        made.add_row(*row)
    parts: list[ConsoleRenderable] = [Text(printable(", ".join(same[:8])), style="dim"), Text(), made]
    return Group(*parts, *([widen(dropped)] if dropped else []))


def _perplexity(row: Row) -> str:
    return show_number(row["perplexity"]) if "perplexity" in row else ""


_FOUND: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("MLP density", lambda row: f"{row['mlp_density']:.3f}"),
    ("hit rate", lambda row: "-" if row["hit_rate"] is None else f"{row['hit_rate']:.1%}"),
    ("perplexity", _perplexity),
    ("tokens/s", lambda row: show_number(row["throughput_tok_s"])),
)

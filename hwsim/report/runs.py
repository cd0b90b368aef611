"""The table of many results: the settings that differ between them, and their figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from rich.console import ConsoleRenderable, Group
from rich.text import Text

from hwsim.report.columns import Column, fit, rows, table, widen
from hwsim.report.use import KEYS, use
from hwsim.util.units import printable, show_number, show_size

_STEPS = ("cache", "prefill", "keep_cache", "lockstep", "speculate", "accept")  # stated only where they are chosen
_WIDE = 100  # columns of a terminal from which on tables are spaced wider

Row = dict[str, Any]
"""A result as the result file holds it."""


def settings_of(result: Row) -> dict[str, str]:
    """The settings of a result by short names, with the parameters of its policy and eviction rule."""
    provenance = result["provenance"]
    settings, policy, rule = provenance["settings"], provenance["policy"], provenance["eviction"]
    settings_by_name = {
        "model": provenance["model"]["name"],
        "trace": provenance["trace"]["name"],
        "device": provenance["device"]["name"],
        "policy": policy["name"],
        **{key: _value(value) for key, value in policy["parameters"].items()},
        "eviction": rule["name"],
        **{f"eviction.{key}": _value(value) for key, value in rule["parameters"].items()},
        "DRAM": show_size(settings["dram_budget_bytes"]),
        "seed": str(provenance["seed"]),
    }
    others = {key: value for key, value in settings.items() if key not in ("dram_budget_bytes", *KEYS)}
    for key in ("bits", "pinned", "warm"):
        others[key] = others[key] and json.dumps(others[key], sort_keys=True)
    others |= {key: settings.get(key) for key in _STEPS}
    return settings_by_name | {key: _value(value) for key, value in others.items()} | use(settings)


def _value(value: Any) -> str:
    if isinstance(value, str) and "/" in value:  # a file
        return value.rpartition("/")[2]
    if isinstance(value, float):
        return show_number(value)
    return "-" if value is None else str(value) if not isinstance(value, dict | list) else json.dumps(value)


def render_runs(results: Iterable[Row], *, numbers: Iterable[int] = (), width: int = 160) -> ConsoleRenderable:
    """Render the results, one a line, in the order given; settings that all share are printed once, above.

    Args:
        results: rows of a result file.
        numbers: numbers of the results, by which ``hwsim compare`` selects them; empty: no column of numbers.
        width: characters of a line.
    """
    result_list = list(results)
    settings_list = [settings_of(result) for result in result_list]
    names = list(dict.fromkeys(name for settings in settings_list for name in settings))
    places = [str(number) for number in numbers]
    columns, same = [Column("", places)] if places else [], []
    for name in names:
        values = {settings[name] for settings in settings_list if name in settings}
        if len(values) > 1 or name == "policy":
            columns.append(
                Column(printable(name), [printable(settings.get(name, "")) for settings in settings_list], folds=True)
            )
        elif all(name in settings for settings in settings_list) and values.isdisjoint(("-", "False", "None")):
            same.append(f"{name} {settings_list[0][name]}")
    columns += [
        Column(head, [show(row) for row in result_list])
        for head, show in _FOUND
        if any(show(row) for row in result_list)
    ]
    gap = 2 if width >= _WIDE else 1
    shown, dropped = fit(columns, width, gap)
    shown_table = table(shown, gap)
    for row in rows(shown):
        shown_table.add_row(*row)
    parts: list[ConsoleRenderable] = [Text(printable(", ".join(same[:8])), style="dim"), Text(), shown_table]
    return Group(*parts, *([widen(dropped)] if dropped else []))


def _perplexity(row: Row) -> str:
    return show_number(row["perplexity"]) if "perplexity" in row else ""


_FOUND: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("MLP density", lambda row: f"{row['mlp_density']:.3f}"),
    ("hit rate", lambda row: "-" if row["hit_rate"] is None else f"{row['hit_rate']:.1%}"),
    ("perplexity", _perplexity),
    ("tokens/s", lambda row: show_number(row["throughput_tok_s"])),
)

"""Accuracy on tasks: what ``hwsim eval --tasks`` shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from rich.console import ConsoleRenderable, Group
from rich.padding import Padding

from hwsim.report.columns import Column, fit, rows, table, widen
from hwsim.report.evaluation import baseline_of, untouched
from hwsim.simulation.metrics import TaskEvaluation
from hwsim.util.units import printable, show_number


class _Metric(NamedTuple):
    task: str
    key: str  # as lm-eval writes it: "name,filter"
    shown: str


def render_tasks(results: list[TaskEvaluation], width: int = 160) -> ConsoleRenderable:
    """Render each metric of each task, for the unmodified model and then for each policy.

    Args:
        results: one for each policy, at least one.
        width: characters of a line.
    """
    cells: list[list[str]] = []
    dense = results[0].lm_eval["dense_results"]
    for metric in _metrics(dense):
        cells.append([*_head(results[0], metric), untouched(results[0]), *_values(dense, metric), "-"])
        for result in results:
            own = result.lm_eval["results"]
            name = str(result.provenance["policy"]["name"])
            cells.append(["", "", "", "", name, *_values(own, metric), _difference(own, dense, metric)])
    heads = [
        "\ntask",
        "\nmetric",
        "\nquestions",
        "better\nis",
        "\npolicy",
        "\nvalue",
        "standard\nerror",
        f"against\n{baseline_of(results[0])}",
    ]
    drops = [0, 0, 1, 2, 0, 0, 0, 0]
    columns = [
        Column(head, [printable(row[at]) for row in cells], drop, folds=at in (0, 1, 4))
        for at, (head, drop) in enumerate(zip(heads, drops, strict=True))
    ]
    columns, dropped = fit(columns, width, 2)
    shown = table(columns, 2)
    for row in rows(columns):
        row[0].stylize("bold")
        shown.add_row(*row)
    parts: list[ConsoleRenderable] = [Padding(shown, (1, 0, 0, 0))]
    return Group(*parts, *([widen(dropped)] if dropped else []))


def _metrics(answers: dict[str, Any]) -> Iterator[_Metric]:
    for task, metrics in answers.items():
        for key, value in metrics.items():
            name, comma, by = key.partition(",")
            if comma and not name.endswith("_stderr") and not isinstance(value, str):
                yield _Metric(task, key, name if by == "none" else f"{name} ({by})")


def _head(result: TaskEvaluation, metric: _Metric) -> list[str]:
    about = result.lm_eval
    questions = about["n-samples"].get(metric.task, {}).get("effective")
    higher = about["higher_is_better"].get(metric.task, {}).get(metric.key.partition(",")[0])
    better = "-" if higher is None else "higher" if higher else "lower"
    return [metric.task, metric.shown, "-" if questions is None else str(questions), better]


def _values(answers: dict[str, Any], metric: _Metric) -> list[str]:
    name, _, by = metric.key.partition(",")
    metrics = answers[metric.task]
    return [_number(metrics.get(metric.key)), _number(metrics.get(f"{name}_stderr,{by}"))]


def _difference(own: dict[str, Any], dense: dict[str, Any], metric: _Metric) -> str:
    one, other = (answers[metric.task].get(metric.key) for answers in (own, dense))
    known = isinstance(one, int | float) and isinstance(other, int | float)
    return f"{one - other:+.3g}" if known else "-"


def _number(value: Any) -> str:
    return show_number(value) if isinstance(value, int | float) else "-"

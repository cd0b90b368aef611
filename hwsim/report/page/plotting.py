"""One plot as plain data for plotly, and the colours and helpers that all plots share."""

from __future__ import annotations

from typing import Any, NamedTuple

from hwsim.report.page.digest import Named

# colours of Okabe and Ito, which people with any kind of colour vision can distinguish
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#F0E442")
MARKS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star", "hexagon")
BARS = 30  # most runs that are drawn as bars with labels


class Figure(NamedTuple):
    """One plot.

    Attributes:
        key: id in the page.
        title: title of the section.
        says: text that describes the plot, for readers who cannot see it.
        data: traces of plotly.
        layout: layout of plotly.
        heads: heads of the table of the plot's numbers.
        rows: rows of that table.
    """

    key: str
    title: str
    says: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    heads: list[str]
    rows: list[list[str]]


def axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis of plotly with a title and further settings."""
    return {"title": {"text": title}, "automargin": True, "zeroline": False, **more}


def by_policy(found: list[Named]) -> dict[str, list[Named]]:
    """Group the runs by policy."""
    groups: dict[str, list[Named]] = {}
    for run in found:
        groups.setdefault(run.policy, []).append(run)
    return groups

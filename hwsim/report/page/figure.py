"""One plot, as plain data for plotly, and what all plots share."""

from __future__ import annotations

from typing import Any, NamedTuple

from hwsim.report.page.digest import Named

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#F0E442")
MARKS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star", "hexagon")
BARS = 30  # runs that there is room for as bars with their labels


class Figure(NamedTuple):
    """One plot.

    Attributes:
        key: its id in the page.
        title: of its section.
        says: what it shows, for those who cannot see it.
        data: plotly's traces.
        layout: plotly's layout.
        heads: of the table of its numbers.
        rows: of that table.
    """

    key: str
    title: str
    says: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    heads: list[str]
    rows: list[list[str]]


def axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis of plotly, with what it has besides a title."""
    return {"title": {"text": title}, "automargin": True, "zeroline": False, **more}


def by_policy(found: list[Named]) -> dict[str, list[Named]]:
    """The runs of each policy."""
    groups: dict[str, list[Named]] = {}
    for each in found:
        groups.setdefault(each.policy, []).append(each)
    return groups

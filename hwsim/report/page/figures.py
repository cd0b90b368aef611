"""The plots of the page in their order, each with a title, a sentence and a table of its numbers."""

from __future__ import annotations

from hwsim.report.page.bars import energy, latency, time, traffic
from hwsim.report.page.digest import Named
from hwsim.report.page.inputs import Row
from hwsim.report.page.lines import curve, hits, tokens
from hwsim.report.page.plotting import BARS, Figure
from hwsim.report.page.points import pareto, speed

_OF_FEW = ("time", "bytes", "energy", "latency")


def all_figures(found: list[Named], curves: list[Row]) -> list[Figure]:
    """All plots that the results and curves have data for, in the order of the page."""
    few = fastest(found)
    plots = [
        pareto(found),
        speed(found),
        time(few),
        traffic(few),
        energy(few),
        latency(few),
        tokens(found),
        hits(found),
    ]
    shown = [plot for plot in (*plots, *map(curve, curves)) if plot is not None]
    if len(few) == len(found):
        return shown
    selection = f" Of {len(found)} runs those of dense and the fastest, {len(few)} in all."
    return [plot._replace(says=plot.says + selection) if plot.key in _OF_FEW else plot for plot in shown]


def fastest(found: list[Named]) -> list[Named]:
    """The runs to draw as bars, in page order: all, or those of `dense` and the fastest if there are many."""
    if len(found) <= BARS:
        return found
    order = sorted(found, key=lambda run: (run.policy != "dense", -run.row["throughput_tok_s"]))
    return sorted(order[:BARS], key=lambda run: run.number)

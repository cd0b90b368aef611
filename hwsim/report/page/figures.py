"""The plots of the page in their order: each with a title, a sentence, and a table of its numbers."""

from __future__ import annotations

from hwsim.report.page.bars import energy, latency, time, traffic
from hwsim.report.page.digest import Named
from hwsim.report.page.figure import BARS, Figure
from hwsim.report.page.inputs import Row
from hwsim.report.page.lines import curve, hits, tokens
from hwsim.report.page.points import pareto, speed

_OF_FEW = ("time", "bytes", "energy", "latency")


def all_figures(found: list[Named], curves: list[Row]) -> list[Figure]:
    """Those that the results have numbers for."""
    few = fastest(found)
    made = [pareto(found), speed(found), time(few), traffic(few), energy(few), latency(few), tokens(found), hits(found)]
    shown = [each for each in (*made, *map(curve, curves)) if each is not None]
    if len(few) == len(found):
        return shown
    told = f" Of {len(found)} runs those of dense and the fastest, {len(few)} in all."
    return [each._replace(says=each.says + told) if each.key in _OF_FEW else each for each in shown]


def fastest(found: list[Named]) -> list[Named]:
    """Where there are too many runs for bars, those of `dense` and the fastest, in the order of the page."""
    if len(found) <= BARS:
        return found
    order = sorted(found, key=lambda each: (each.policy != "dense", -each.row["throughput_tok_s"]))
    return sorted(order[:BARS], key=lambda each: each.number)

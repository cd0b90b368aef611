"""Plots of runs as bars: where time, bytes and energy go, and latencies."""

from __future__ import annotations

from typing import Any

from hwsim.report.page.digest import Named
from hwsim.report.page.plotting import COLORS, MARKS, Figure, axis
from hwsim.util.units import show_number

_PARTS = {
    "resident": "resident", "kv_cache": "KV cache", "streamed": "streamed", "mlp": "masked MLP",
    "attention": "masked attention", "compute": "compute",
}  # fmt: skip
_SOURCES = {
    "flash": "Flash", "dram_read": "DRAM reads", "dram_write": "DRAM writes", "compute": "arithmetic",
    "base": "base power", "all": "all",
}  # fmt: skip


def _stacked(
    runs: list[Named], parts: dict[str, list[float]], title: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Data and layout of stacked bars, one bar for each run."""
    several = len({run.device for run in runs}) > 1
    names = [f"{run.label}, {run.device}" if several else run.label for run in runs]
    data = [
        {
            "type": "bar", "orientation": "h", "name": name, "y": list(range(len(runs))), "x": values, "text": names,
            "textposition": "none", "hovertemplate": "%{text}<br>" + name + ": %{x:.4g}<extra></extra>",
            "marker": {"color": COLORS[index % len(COLORS)]},
        }
        for index, (name, values) in enumerate(parts.items())
        if any(values)
    ]  # fmt: skip
    ticks = {"tickvals": list(range(len(runs))), "ticktext": names}
    layout = {
        "barmode": "stack", "xaxis": axis(title), "yaxis": axis("", autorange="reversed", **ticks),
        "height": 140 + 26 * len(runs),
    }  # fmt: skip
    return data, layout


def time(found: list[Named]) -> Figure:
    """The plot of where the time of a mean token goes."""
    parts = {name: [1000 * run.row["time_s"][key] / run.row["tokens"] for run in found] for key, name in _PARTS.items()}
    data, layout = _stacked(found, parts, "ms a token")
    used = [name for name, values in parts.items() if any(values)]
    rows = [[run.label, run.device, *(show_number(parts[name][at]) for name in used)] for at, run in enumerate(found)]
    says = (
        "Where the milliseconds of a mean token go: reading what is resident, the KV cache, what is streamed, masked "
    )
    says += "weights; and computing."
    return Figure("time", "Where each millisecond goes", says, data, layout, ["run", "device", *used], rows)


def traffic(found: list[Named]) -> Figure:
    """The plot of the bytes that a mean token reads from Flash and DRAM."""
    parts = {
        name: [run.row[key] / run.row["tokens"] / 1e6 for run in found]
        for key, name in (("flash_bytes", "Flash"), ("dram_bytes", "DRAM"))
    }
    data, layout = _stacked(found, parts, "MB a token")
    rows = [
        [run.label, run.device, *(show_number(values[at]) for values in parts.values())] for at, run in enumerate(found)
    ]
    return Figure(
        "bytes",
        "Bytes by source",
        "MB that a mean token needs from Flash and from DRAM.",
        data,
        layout,
        ["run", "device", *parts],
        rows,
    )


def energy(found: list[Named]) -> Figure | None:
    """The plot of energy by source; None if no profile gives energies."""
    known = [run for run in found if run.row["energy_j"] is not None]
    if not known:
        return None

    def of(run: Named, source: str) -> float:
        by_source = run.row.get("energy_by_source_j")  # results of older versions have only the sum
        joules = by_source.get(source) if by_source else run.row["energy_j"] if source == "all" else None
        return 1000 * (joules or 0.0) / run.row["tokens"]

    parts = {_SOURCES[source]: [of(run, source) for run in known] for source in _SOURCES}
    parts = {name: values for name, values in parts.items() if any(values)}
    data, layout = _stacked(known, parts, "mJ a token")
    rows = [
        [run.label, run.device, *(show_number(values[at]) for values in parts.values())] for at, run in enumerate(known)
    ]
    return Figure(
        "energy",
        "Energy",
        "mJ of a mean token by source, as far as the device's profile knows them.",
        data,
        layout,
        ["run", "device", *(f"{name}, mJ" for name in parts)],
        rows,
    )


def latency(found: list[Named]) -> Figure:
    """The plot of the percentiles of a token's time."""
    kinds = ("p50", "p95", "p99", "max")
    names = [f"{run.number}. {run.label}" for run in found]
    data = [
        {
            "type": "scatter", "mode": "markers", "name": kind, "y": list(range(len(found))), "text": names,
            "x": [1000 * run.row["latency_s"][kind] for run in found],
            "hovertemplate": "%{text}<br>" + kind + " %{x:.4g} ms<extra></extra>",
            "marker": {"color": COLORS[index], "symbol": MARKS[index], "size": 9},
        }
        for index, kind in enumerate(kinds)
    ]  # fmt: skip
    ticks = {"tickvals": list(range(len(found))), "ticktext": [run.label for run in found]}
    layout = {
        "xaxis": axis("ms", rangemode="tozero"), "yaxis": axis("", autorange="reversed", **ticks),
        "height": 140 + 26 * len(found),
    }  # fmt: skip
    rows = [
        [run.label, run.device, *(show_number(1000 * run.row["latency_s"][kind]) for kind in kinds)] for run in found
    ]
    return Figure(
        "latency",
        "Latency of a token",
        "Percentiles of the time of a token, ms.",
        data,
        layout,
        ["run", "device", *kinds],
        rows,
    )

"""Plots of runs as bars: where time, bytes and energy go, and latencies."""

from __future__ import annotations

from typing import Any

from hwsim.report.page.digest import Named
from hwsim.report.page.figure import COLORS, MARKS, Figure, axis
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
    found: list[Named], parts: dict[str, list[float]], title: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Bars of parts, one for each run."""
    several = len({each.device for each in found}) > 1
    names = [f"{each.label}, {each.device}" if several else each.label for each in found]
    data = [
        {
            "type": "bar", "orientation": "h", "name": name, "y": list(range(len(found))), "x": values, "text": names,
            "textposition": "none", "hovertemplate": "%{text}<br>" + name + ": %{x:.4g}<extra></extra>",
            "marker": {"color": COLORS[index % len(COLORS)]},
        }
        for index, (name, values) in enumerate(parts.items())
        if any(values)
    ]  # fmt: skip
    ticks = {"tickvals": list(range(len(found))), "ticktext": names}
    layout = {
        "barmode": "stack", "xaxis": axis(title), "yaxis": axis("", autorange="reversed", **ticks),
        "height": 140 + 26 * len(found),
    }  # fmt: skip
    return data, layout


def time(found: list[Named]) -> Figure:
    """Where the time of a token goes."""
    parts = {
        name: [1000 * each.row["time_s"][key] / each.row["tokens"] for each in found] for key, name in _PARTS.items()
    }
    data, layout = _stacked(found, parts, "ms a token")
    used = [name for name, values in parts.items() if any(values)]
    rows = [
        [each.label, each.device, *(show_number(parts[name][at]) for name in used)] for at, each in enumerate(found)
    ]
    says = (
        "Where the milliseconds of a mean token go: reading what is resident, the KV cache, what is streamed, masked "
    )
    says += "weights; and computing."
    return Figure("time", "Where each millisecond goes", says, data, layout, ["run", "device", *used], rows)


def traffic(found: list[Named]) -> Figure:
    """Bytes from Flash and DRAM."""
    parts = {
        name: [each.row[key] / each.row["tokens"] / 1e6 for each in found]
        for key, name in (("flash_bytes", "Flash"), ("dram_bytes", "DRAM"))
    }
    data, layout = _stacked(found, parts, "MB a token")
    rows = [
        [each.label, each.device, *(show_number(values[at]) for values in parts.values())]
        for at, each in enumerate(found)
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
    """Energy, where the profile knows it."""
    known = [each for each in found if each.row["energy_j"] is not None]
    if not known:
        return None

    def of(each: Named, source: str) -> float:
        told = each.row.get("energy_by_source_j")  # results of older versions have the sum alone
        joules = told.get(source) if told else each.row["energy_j"] if source == "all" else None
        return 1000 * (joules or 0.0) / each.row["tokens"]

    parts = {_SOURCES[source]: [of(each, source) for each in known] for source in _SOURCES}
    parts = {name: values for name, values in parts.items() if any(values)}
    data, layout = _stacked(known, parts, "mJ a token")
    rows = [
        [each.label, each.device, *(show_number(values[at]) for values in parts.values())]
        for at, each in enumerate(known)
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
    """The distribution of a token's time, by its percentiles."""
    kinds = ("p50", "p95", "p99", "max")
    names = [f"{each.number}. {each.label}" for each in found]
    data = [
        {
            "type": "scatter", "mode": "markers", "name": kind, "y": list(range(len(found))), "text": names,
            "x": [1000 * each.row["latency_s"][kind] for each in found],
            "hovertemplate": "%{text}<br>" + kind + " %{x:.4g} ms<extra></extra>",
            "marker": {"color": COLORS[index], "symbol": MARKS[index], "size": 9},
        }
        for index, kind in enumerate(kinds)
    ]  # fmt: skip
    ticks = {"tickvals": list(range(len(found))), "ticktext": [each.label for each in found]}
    layout = {
        "xaxis": axis("ms", rangemode="tozero"), "yaxis": axis("", autorange="reversed", **ticks),
        "height": 140 + 26 * len(found),
    }  # fmt: skip
    rows = [
        [each.label, each.device, *(show_number(1000 * each.row["latency_s"][kind]) for kind in kinds)]
        for each in found
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

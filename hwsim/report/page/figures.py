"""The plots, as plain data for plotly: each with a title, a sentence, and a table of its numbers."""

from __future__ import annotations

from typing import Any, NamedTuple

from hwsim.report.page.digest import Named
from hwsim.report.page.inputs import Row
from hwsim.util.units import show_number

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#F0E442")
MARKS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star", "hexagon")
_PARTS = {
    "resident": "resident", "kv_cache": "KV cache", "streamed": "streamed", "mlp": "masked MLP",
    "attention": "masked attention", "compute": "compute",
}  # fmt: skip
_SOURCES = {
    "flash": "Flash", "dram_read": "DRAM reads", "dram_write": "DRAM writes", "compute": "arithmetic",
    "base": "base power", "all": "all",
}  # fmt: skip
BARS = 30  # runs that there is room for as bars with their labels
_OF_FEW = ("time", "bytes", "energy", "latency")


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


def _axis(title: str, **more: Any) -> dict[str, Any]:
    return {"title": {"text": title}, "automargin": True, "zeroline": False, **more}


def _by_policy(found: list[Named]) -> dict[str, list[Named]]:
    groups: dict[str, list[Named]] = {}
    for each in found:
        groups.setdefault(each.policy, []).append(each)
    return groups


def pareto(found: list[Named]) -> Figure | None:
    """Perplexity against tokens/s, with the runs that no other run of the same device and text beats in both."""
    judged = [each for each in found if each.closed]
    if not judged:
        return None
    data: list[dict[str, Any]] = []
    for index, (policy, group) in enumerate(_by_policy(judged).items()):
        data.append(
            {
                "type": "scatter", "mode": "markers", "name": policy,
                "x": [each.row["throughput_tok_s"] for each in group], "y": [each.row["perplexity"] for each in group],
                "text": [f"{each.label}, {each.device}" for each in group],
                "hovertemplate": "%{text}<br>%{x:.4g} tokens/s, perplexity %{y:.4g}<extra></extra>",
                "marker": {"color": COLORS[index % len(COLORS)], "symbol": MARKS[index % len(MARKS)], "size": 10},
            }
        )  # fmt: skip
    best: list[Named] = []
    scored = [round(each.row["dense_perplexity"], 6) for each in judged]  # another text, or other tokens of it
    for alike in dict.fromkeys((each.device, dense) for each, dense in zip(judged, scored, strict=True)):
        front = best_of([each for each, dense in zip(judged, scored, strict=True) if (each.device, dense) == alike])
        best += front
        data.append(
            {
                "type": "scatter", "mode": "lines", "name": "no run of the device is better in both",
                "x": [each.row["throughput_tok_s"] for each in front], "y": [each.row["perplexity"] for each in front],
                "line": {"color": "#888888", "dash": "dot", "shape": "hv"}, "hoverinfo": "skip",
                "legendgroup": "front", "showlegend": len(best) == len(front),
            }
        )  # fmt: skip
    layout = {
        "height": 460,
        "xaxis": _axis("tokens/s", type=_scale([each.row["throughput_tok_s"] for each in judged], 20)),
        "yaxis": _axis("perplexity", type=_scale([each.row["perplexity"] for each in judged], 4)),
        "shapes": [
            {
                "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": dense, "y1": dense,
                "line": {"color": "#888888", "width": 1},
            }
            for dense in dict.fromkeys(scored)
        ],
    }  # fmt: skip
    says = f"Perplexity against tokens/s of {len(judged)} runs; to the right and down is better. "
    lines = ", ".join(map(show_number, dict.fromkeys(scored)))
    says += f"The line is the dense model's perplexity, {lines}."
    if len(set(scored)) > 1:
        says += " These runs were scored on different tokens: compare perplexities with the same line only."
    rows = [
        [
            each.label,
            each.device,
            show_number(each.row["throughput_tok_s"]),
            show_number(each.row["perplexity"]),
            "yes" if each in best else "",
        ]
        for each in judged
    ]
    return Figure(
        "pareto",
        "Accuracy against speed",
        says,
        data,
        layout,
        ["run", "device", "tokens/s", "perplexity", "on the front"],
        rows,
    )


def best_of(judged: list[Named]) -> list[Named]:
    """The runs that no other beats in both speed and perplexity, from fast to slow."""
    front: list[Named] = []
    for each in sorted(judged, key=lambda each: (-each.row["throughput_tok_s"], each.row["perplexity"])):
        if not front or each.row["perplexity"] < front[-1].row["perplexity"]:
            front.append(each)
    return front


def _scale(values: list[float], wide: float) -> str:
    """Logarithmic where the largest value is more than `wide` times the smallest."""
    return "log" if max(values) > wide * min(values) else "linear"


def speed(found: list[Named]) -> Figure:
    """Tokens/s by device: bars where there is room for their labels, else points."""
    data: list[dict[str, Any]] = []
    labels = list(dict.fromkeys(each.label for each in found))
    devices = list(dict.fromkeys(each.device for each in found))
    if len(labels) * len(devices) <= BARS:
        for index, device in enumerate(devices):
            own = [each for each in found if each.device == device]
            data.append(
                {
                    "type": "bar", "orientation": "h", "name": device, "y": [each.label for each in own],
                    "x": [each.row["throughput_tok_s"] for each in own],
                    "marker": {"color": COLORS[index % len(COLORS)]},
                    "hovertemplate": "%{y}<br>%{x:.4g} tokens/s<extra>" + device.replace("<", "") + "</extra>",
                }
            )  # fmt: skip
        layout: dict[str, Any] = {
            "xaxis": _axis("tokens/s"),
            "yaxis": _axis("", autorange="reversed"),
            "barmode": "group",
        }
        layout["height"] = 140 + 26 * len(found)
    else:
        by_density = len(devices) == 1
        for index, (policy, group) in enumerate(_by_policy(found).items()):
            marker = {
                "color": COLORS[index % len(COLORS)],
                "symbol": MARKS[index % len(MARKS)],
                "size": 8,
                "opacity": 0.75,
            }
            data.append(
                {
                    "type": "scatter", "mode": "markers", "name": policy, "marker": marker,
                    "x": [each.row["mlp_density"] if by_density else each.device for each in group],
                    "y": [each.row["throughput_tok_s"] for each in group], "text": [each.label for each in group],
                    "hovertemplate": "%{text}<br>%{y:.4g} tokens/s<extra>%{x}</extra>",
                }
            )  # fmt: skip
        across = _axis("MLP density" if by_density else "")
        scale = _scale([each.row["throughput_tok_s"] for each in found], 20)
        layout = {"xaxis": across, "yaxis": _axis("tokens/s", rangemode="tozero", type=scale), "height": 420}
    rows = [[each.label, each.device, show_number(each.row["throughput_tok_s"])] for each in found]
    says = f"Tokens/s of {len(found)} runs on {len(devices)} device{'s' * (len(devices) > 1)}."
    return Figure(
        "speed",
        f"Tokens/s {'by MLP density' if len(labels) > BARS and len(devices) == 1 else 'by device'}",
        says,
        data,
        layout,
        ["run", "device", "tokens/s"],
        rows,
    )


def _stacked(
    found: list[Named], parts: dict[str, list[float]], axis: str
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
        "barmode": "stack", "xaxis": _axis(axis), "yaxis": _axis("", autorange="reversed", **ticks),
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
        "xaxis": _axis("ms", rangemode="tozero"), "yaxis": _axis("", autorange="reversed", **ticks),
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


def tokens(found: list[Named]) -> Figure | None:
    """The time of each token of one run, where tokens were kept; the page lets the reader choose the run."""
    kept = [each for each in found if each.row.get("per_token")]
    if not kept:
        return None
    data = [
        {
            "type": "scatter", "mode": "lines", "name": each.label, "visible": index == 0, "showlegend": False,
            "y": [1000 * token["latency_s"] for token in each.row["per_token"]],
            "line": {"color": COLORS[0], "width": 1.5},
            "meta": f"{each.label}, {each.device}",
        }
        for index, each in enumerate(kept)
    ]  # fmt: skip
    layout = {"xaxis": _axis("token"), "yaxis": _axis("ms", rangemode="tozero")}
    rows = [[each.label, each.device, str(len(each.row["per_token"]))] for each in kept]
    return Figure(
        "tokens",
        "Token by token",
        "The time of each token of the run that is chosen, ms.",
        data,
        layout,
        ["run", "device", "tokens kept"],
        rows,
    )


def hits(found: list[Named]) -> Figure | None:
    """Hit rate by layer and group of one run; the page lets the reader choose the run."""
    masked = [each for each in found if each.row["groups"]]
    if not masked:
        return None
    masked = sorted(masked, key=lambda each: -each.row["throughput_tok_s"])
    data, rows = [], []
    for index, each in enumerate(masked):
        groups = each.row["groups"]
        names, layers = (list(dict.fromkeys(group[key] for group in groups)) for key in ("group", "layer"))
        rate = {(g["group"], g["layer"]): g["hits"] / g["requests"] if g["requests"] else None for g in groups}
        data.append(
            {
                "type": "heatmap", "x": layers, "y": names,
                "z": [[rate.get((n, layer)) for layer in layers] for n in names],
                "zmin": 0, "zmax": 1, "colorscale": "Cividis", "visible": index == 0,
                "meta": f"{each.label}, {each.device}",
                "hovertemplate": "layer %{x}, %{y}: %{z:.1%}<extra></extra>", "colorbar": {"tickformat": ".0%"},
            }
        )  # fmt: skip
        for n in names:
            own = [value for layer in layers if (value := rate.get((n, layer))) is not None]
            if own:
                rows.append([each.label, each.device, n, f"{min(own):.1%}", f"{max(own):.1%}"])
    few = {"dtick": 1} if len(layers) <= 20 else {}  # else plotly marks halves of layers
    layout = {"xaxis": _axis("layer", **few), "yaxis": _axis("group"), "height": 260}
    says = "Hit rate of each group of each layer of the run that is chosen."
    return Figure(
        "hits", "Hit rate by layer and group", says, data, layout, ["run", "device", "group", "least", "most"], rows
    )


def curve(row: Row) -> Figure:
    """Miss ratio of LRU at every size of the cache, with the present size marked."""
    data, rows = [], []
    for index, (name, group) in enumerate(row["groups"].items()):
        units, asked = group["units"], group["requests"]
        color = COLORS[index % len(COLORS)]
        shares = [capacity / units for capacity in group["capacities"]]
        misses = [1 - hit / asked for hit in group["hits"]]
        data.append(
            {
                "type": "scatter", "mode": "lines", "name": str(name), "x": shares, "y": misses,
                "line": {"color": color},
                "hovertemplate": "%{x:.0%} of the units: %{y:.1%} missed<extra></extra>",
            }
        )  # fmt: skip
        rows += [[str(name), str(c), f"{m:.1%}"] for c, m in zip(group["capacities"], misses, strict=True)][
            :: max(1, len(misses) // 12)
        ]
        if group["capacity"] in group["capacities"]:
            at = group["capacities"].index(group["capacity"])
            data.append(
                {
                    "type": "scatter", "mode": "markers", "name": f"{name}, as the device has it",
                    "x": [shares[at]], "y": [misses[at]],
                    "marker": {"color": color, "size": 12, "symbol": "circle-open", "line": {"width": 3}},
                }
            )  # fmt: skip
    layout = {
        "xaxis": _axis("cache, share of a group's units", tickformat=".0%"),
        "yaxis": _axis("miss ratio", tickformat=".0%", rangemode="tozero"),
    }
    told = f"{row['policy']['name']} on {row['trace']['name']} ({row['trace']['origin']})"
    title = f"Miss ratio of LRU by size of the cache: {told}"
    says = (
        "Share of requests that miss, for every size of the cache; circles are the sizes that the device's DRAM gives."
    )
    key = f"curve-{row['policy']['name']}-{row['trace']['hash'][:8]}-{row['dram_budget_bytes']}"
    return Figure(key, title, says, data, layout, ["group", "units of the cache", "missed"], rows)

"""Plots by token, layer and cache size."""

from __future__ import annotations

from hwsim.report.page.digest import Named
from hwsim.report.page.inputs import Row
from hwsim.report.page.plotting import COLORS, Figure, axis
from hwsim.util.units import show_size


def tokens(found: list[Named]) -> Figure | None:
    """The plot of the time of each token of one run that the reader chooses; None if no run kept its tokens."""
    kept = [run for run in found if run.row.get("per_token")]
    if not kept:
        return None
    data = [
        {
            "type": "scatter", "mode": "lines", "name": run.label, "visible": index == 0, "showlegend": False,
            "y": [1000 * token["latency_s"] for token in run.row["per_token"]],
            "line": {"color": COLORS[0], "width": 1.5},
            "meta": f"{run.label}, {run.device}",
        }
        for index, run in enumerate(kept)
    ]  # fmt: skip
    layout = {"xaxis": axis("token"), "yaxis": axis("ms", rangemode="tozero")}
    rows = [[run.label, run.device, str(len(run.row["per_token"]))] for run in kept]
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
    """The plot of the hit rate by layer and group of one run that the reader chooses; None if no run has masks."""
    masked = [run for run in found if run.row["groups"]]
    if not masked:
        return None
    masked = sorted(masked, key=lambda run: -run.row["throughput_tok_s"])
    data, rows = [], []
    for index, run in enumerate(masked):
        groups = run.row["groups"]
        names, layers = (list(dict.fromkeys(group[key] for group in groups)) for key in ("group", "layer"))
        rate = {(g["group"], g["layer"]): g["hits"] / g["requests"] if g["requests"] else None for g in groups}
        data.append(
            {
                "type": "heatmap", "x": layers, "y": names,
                "z": [[rate.get((n, layer)) for layer in layers] for n in names],
                "zmin": 0, "zmax": 1, "colorscale": "Cividis", "visible": index == 0,
                "meta": f"{run.label}, {run.device}",
                "hovertemplate": "layer %{x}, %{y}: %{z:.1%}<extra></extra>", "colorbar": {"tickformat": ".0%"},
            }
        )  # fmt: skip
        for n in names:
            own = [value for layer in layers if (value := rate.get((n, layer))) is not None]
            if own:
                rows.append([run.label, run.device, n, f"{min(own):.1%}", f"{max(own):.1%}"])
    few = {"dtick": 1} if len(layers) <= 20 else {}  # else plotly marks halves of layers
    layout = {"xaxis": axis("layer", **few), "yaxis": axis("group"), "height": 260}
    says = "Hit rate of each group of each layer of the run that is chosen."
    return Figure(
        "hits", "Hit rate by layer and group", says, data, layout, ["run", "device", "group", "least", "most"], rows
    )


def curve(row: Row) -> Figure:
    """The plot of the miss ratio by cache size, with the device's cache size marked."""
    return _by_bytes(row) if "sizes" in row else _by_share(row)


def _by_bytes(row: Row) -> Figure:
    """The plot for caches of experts."""
    sizes = [each["cache_bytes"] for each in row["sizes"]]
    misses = [1 - each["hits"] / max(1, each["requests"]) for each in row["sizes"]]
    data = [
        {
            "type": "scatter", "mode": "lines+markers", "name": row["eviction"], "x": [size / 1e9 for size in sizes],
            "y": misses, "line": {"color": COLORS[0]}, "hovertemplate": "%{x:.3g} GB: %{y:.1%} missed<extra></extra>",
        }
    ]  # fmt: skip
    if row["cache_bytes"] in sizes:
        at = sizes.index(row["cache_bytes"])
        data.append(
            {
                "type": "scatter", "mode": "markers", "name": "as the device has it", "x": [sizes[at] / 1e9],
                "y": [misses[at]],
                "marker": {"color": COLORS[0], "size": 12, "symbol": "circle-open", "line": {"width": 3}},
            }
        )  # fmt: skip
    layout = {
        "xaxis": axis("caches, GB", rangemode="tozero"),
        "yaxis": axis("miss ratio", tickformat=".0%", rangemode="tozero"),
    }
    about = f"{row['eviction']}, scope {row['cache_scope']}"
    replay = f"{row['policy']['name']} on {row['trace']['name']} ({row['trace']['origin']})"
    title = f"Miss ratio of caches of experts by their size: {replay}, {about}"
    says = "Share of the experts that decoding needs and the caches lack; a circle is the size that the DRAM gives."
    key = f"curve-{row['policy']['name']}-{row['trace']['hash'][:8]}-{row['eviction']}-{row['cache_scope']}"
    key += f"-{row['dram_budget_bytes']}"
    rows = [[show_size(size), f"{miss:.1%}"] for size, miss in zip(sizes, misses, strict=True)]
    return Figure(key, title, says, data, layout, ["caches", "missed"], rows)


def _by_share(row: Row) -> Figure:
    """The plot for LRU's caches of rows and columns."""
    data, rows = [], []
    for index, (name, group) in enumerate(row["groups"].items()):
        units, requests = group["units"], group["requests"]
        color = COLORS[index % len(COLORS)]
        shares = [capacity / units for capacity in group["capacities"]]
        misses = [1 - hit / requests for hit in group["hits"]]
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
        "xaxis": axis("cache, share of a group's units", tickformat=".0%"),
        "yaxis": axis("miss ratio", tickformat=".0%", rangemode="tozero"),
    }
    replay = f"{row['policy']['name']} on {row['trace']['name']} ({row['trace']['origin']})"
    title = f"Miss ratio of LRU by size of the cache: {replay}"
    says = (
        "Share of requests that miss, for every size of the cache; circles are the sizes that the device's DRAM gives."
    )
    key = f"curve-{row['policy']['name']}-{row['trace']['hash'][:8]}-{row['dram_budget_bytes']}"
    return Figure(key, title, says, data, layout, ["group", "units of the cache", "missed"], rows)

"""Plots of runs as points: speed against loss, and speed against density."""

from __future__ import annotations

from typing import Any

from hwsim.report.page.digest import Named
from hwsim.report.page.plotting import BARS, COLORS, MARKS, Figure, axis, by_policy
from hwsim.util.units import show_number


def pareto(found: list[Named]) -> Figure | None:
    """The plot of perplexity against tokens/s, with the Pareto front of each device and text; None without accuracy."""
    judged = [run for run in found if run.closed]
    if not judged:
        return None
    data: list[dict[str, Any]] = []
    for index, (policy, group) in enumerate(by_policy(judged).items()):
        data.append(
            {
                "type": "scatter", "mode": "markers", "name": policy,
                "x": [run.row["throughput_tok_s"] for run in group], "y": [run.row["perplexity"] for run in group],
                "text": [f"{run.label}, {run.device}" for run in group],
                "hovertemplate": "%{text}<br>%{x:.4g} tokens/s, perplexity %{y:.4g}<extra></extra>",
                "marker": {"color": COLORS[index % len(COLORS)], "symbol": MARKS[index % len(MARKS)], "size": 10},
            }
        )  # fmt: skip
    best: list[Named] = []
    scored = [round(run.row["dense_perplexity"], 6) for run in judged]  # differs with another text or other tokens
    for alike in dict.fromkeys((run.device, dense) for run, dense in zip(judged, scored, strict=True)):
        front = best_of([run for run, dense in zip(judged, scored, strict=True) if (run.device, dense) == alike])
        best += front
        data.append(
            {
                "type": "scatter", "mode": "lines", "name": "no run of the device is better in both",
                "x": [run.row["throughput_tok_s"] for run in front], "y": [run.row["perplexity"] for run in front],
                "line": {"color": "#888888", "dash": "dot", "shape": "hv"}, "hoverinfo": "skip",
                "legendgroup": "front", "showlegend": len(best) == len(front),
            }
        )  # fmt: skip
    layout = {
        "height": 460,
        "xaxis": axis("tokens/s", type=_scale([run.row["throughput_tok_s"] for run in judged], 20)),
        "yaxis": axis("perplexity", type=_scale([run.row["perplexity"] for run in judged], 4)),
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
            run.label,
            run.device,
            show_number(run.row["throughput_tok_s"]),
            show_number(run.row["perplexity"]),
            "yes" if run in best else "",
        ]
        for run in judged
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
    """The Pareto front of speed and perplexity: runs that no other run beats in both, from fast to slow."""
    front: list[Named] = []
    for run in sorted(judged, key=lambda run: (-run.row["throughput_tok_s"], run.row["perplexity"])):
        if not front or run.row["perplexity"] < front[-1].row["perplexity"]:
            front.append(run)
    return front


def _scale(values: list[float], wide: float) -> str:
    """The scale of an axis: logarithmic if the largest value is more than `wide` times the smallest."""
    return "log" if max(values) > wide * min(values) else "linear"


def speed(found: list[Named]) -> Figure:
    """The plot of tokens/s by device: bars if there is room for their labels, otherwise points."""
    data: list[dict[str, Any]] = []
    labels = list(dict.fromkeys(run.label for run in found))
    devices = list(dict.fromkeys(run.device for run in found))
    if len(labels) * len(devices) <= BARS:
        for index, device in enumerate(devices):
            own = [run for run in found if run.device == device]
            data.append(
                {
                    "type": "bar", "orientation": "h", "name": device, "y": [run.label for run in own],
                    "x": [run.row["throughput_tok_s"] for run in own],
                    "marker": {"color": COLORS[index % len(COLORS)]},
                    "hovertemplate": "%{y}<br>%{x:.4g} tokens/s<extra>" + device.replace("<", "") + "</extra>",
                }
            )  # fmt: skip
        layout: dict[str, Any] = {
            "xaxis": axis("tokens/s"),
            "yaxis": axis("", autorange="reversed"),
            "barmode": "group",
        }
        layout["height"] = 140 + 26 * len(found)
    else:
        by_density = len(devices) == 1
        for index, (policy, group) in enumerate(by_policy(found).items()):
            marker = {
                "color": COLORS[index % len(COLORS)],
                "symbol": MARKS[index % len(MARKS)],
                "size": 8,
                "opacity": 0.75,
            }
            data.append(
                {
                    "type": "scatter", "mode": "markers", "name": policy, "marker": marker,
                    "x": [run.row["mlp_density"] if by_density else run.device for run in group],
                    "y": [run.row["throughput_tok_s"] for run in group], "text": [run.label for run in group],
                    "hovertemplate": "%{text}<br>%{y:.4g} tokens/s<extra>%{x}</extra>",
                }
            )  # fmt: skip
        across = axis("MLP density" if by_density else "")
        scale = _scale([run.row["throughput_tok_s"] for run in found], 20)
        layout = {"xaxis": across, "yaxis": axis("tokens/s", rangemode="tozero", type=scale), "height": 420}
    rows = [[run.label, run.device, show_number(run.row["throughput_tok_s"])] for run in found]
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

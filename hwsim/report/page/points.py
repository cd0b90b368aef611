"""Plots of runs as points: speed against loss, and speed against density."""

from __future__ import annotations

from typing import Any

from hwsim.report.page.digest import Named
from hwsim.report.page.figure import BARS, COLORS, MARKS, Figure, axis, by_policy
from hwsim.util.units import show_number


def pareto(found: list[Named]) -> Figure | None:
    """Perplexity against tokens/s, with the runs that no other run of the same device and text beats in both."""
    judged = [each for each in found if each.closed]
    if not judged:
        return None
    data: list[dict[str, Any]] = []
    for index, (policy, group) in enumerate(by_policy(judged).items()):
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
        "xaxis": axis("tokens/s", type=_scale([each.row["throughput_tok_s"] for each in judged], 20)),
        "yaxis": axis("perplexity", type=_scale([each.row["perplexity"] for each in judged], 4)),
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
                    "x": [each.row["mlp_density"] if by_density else each.device for each in group],
                    "y": [each.row["throughput_tok_s"] for each in group], "text": [each.label for each in group],
                    "hovertemplate": "%{text}<br>%{y:.4g} tokens/s<extra>%{x}</extra>",
                }
            )  # fmt: skip
        across = axis("MLP density" if by_density else "")
        scale = _scale([each.row["throughput_tok_s"] for each in found], 20)
        layout = {"xaxis": across, "yaxis": axis("tokens/s", rangemode="tozero", type=scale), "height": 420}
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

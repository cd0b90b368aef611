"""Plot of the Flash read rate by request size and queue depth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hwsim.device.profile import Profile
from hwsim.errors import OutputError, SettingError, one_line
from hwsim.report.page.plotting import COLORS
from hwsim.util.files import write_atomic
from hwsim.util.units import printable

_SIZES = [2**power for power in range(9, 23)]  # 512 B to 4 MiB
_DEPTHS = (1, 2, 4, 8, 16, 32)
_TICKS = [step * 10**power for power in range(6) for step in (1, 2, 5)]
KINDS = (".html", ".svg", ".png")


def figure(profile: Profile) -> dict[str, Any]:
    """The plotly figure: a line for each queue depth, with the measured points."""
    flash = profile.flash
    table = flash.table
    deepest = max(flash.queue_depth or 1, *(table.queue_depth if table else (1,)))
    depths = table.queue_depth if table else tuple(d for d in _DEPTHS if d <= deepest) if flash.queue else ()
    data: list[dict[str, Any]] = []
    for number, depth in enumerate(depths):
        color = {"color": COLORS[number % len(COLORS)]}
        rates = [float(flash.bandwidth(size, depth)) / 1e6 for size in _SIZES]
        data.append(
            {"type": "scatter", "mode": "lines", "name": f"depth {depth}", "x": _SIZES, "y": rates, "line": color}
        )
        if table:
            column = table.queue_depth.index(depth)
            points = [row[column] * table.unit / 1e6 for row in table.read.values()]
            data.append({
                "type": "scatter", "mode": "markers", "x": list(table.read), "y": points, "showlegend": False,
                "marker": color, "name": f"measured at depth {depth}",
            })  # fmt: skip
    flat = [flash.read_bandwidth / 1e6] * 2
    data.append({
        "type": "scatter", "mode": "lines", "name": "flat", "x": [_SIZES[0], _SIZES[-1]], "y": flat,
        "line": {"dash": "dot", "color": "#999999"},
    })  # fmt: skip
    labels = [
        f"{size} B" if size < 1024 else f"{size >> 10} KiB" if size < 2**20 else f"{size >> 20} MiB" for size in _SIZES
    ]
    layout = {
        "title": {"text": f"Flash of {printable(profile.name)}, random reads"},
        "xaxis": {"title": {"text": "request"}, "type": "log", "tickvals": _SIZES, "ticktext": labels},
        "yaxis": {"title": {"text": "MB/s"}, "type": "log", "tickvals": _TICKS, "ticktext": [f"{t:,}" for t in _TICKS]},
        "template": "plotly_white",
    }
    return {"data": data, "layout": layout}


def write_plot(profile: Profile, path: Path) -> None:
    """Write the plot in the format that the file name ends with, one of `KINDS`.

    Raises:
        SettingError: the name ends otherwise, or plotly is missing.
        OutputError: the plot cannot be drawn or written.
    """
    if path.suffix.lower() not in KINDS:
        raise SettingError(f"--plot {path}: must end with one of {', '.join(KINDS)}")
    try:
        import plotly.io
    except ImportError as error:
        raise SettingError("--plot needs plotly: pip install 'hwsim[report]'") from error
    plot = figure(profile)
    if path.suffix.lower() == ".html":
        write_atomic(path, plotly.io.to_html(plot, include_plotlyjs=True, full_html=True))
        return
    try:
        image = plotly.io.to_image(
            plot | {"layout": plot["layout"] | {"width": 900, "height": 550}}, format=path.suffix[1:]
        )
    except (ImportError, ValueError, RuntimeError, OSError) as error:
        raise OutputError(
            f"--plot {path}: plotly cannot draw it: {one_line(error)[:200]}; it needs kaleido and Chrome or Chromium; "
            "an .html file needs neither"
        ) from error
    write_atomic(path, image)

"""The report's tables and plots as files, for papers and other programs."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from hwsim.errors import OutputError, SettingError, one_line
from hwsim.report.page import digest, figures, plotting
from hwsim.report.page.inputs import Inputs
from hwsim.report.page.latex import latex
from hwsim.simulation.frames import rows_of
from hwsim.util.files import check_new_file, spare, write_atomic

FORMATS = ("csv", "parquet", "latex", "svg", "png")


def read_formats(text: str | None) -> list[str]:
    """Return the formats that ``--export`` names.

    Raises:
        SettingError: a format is not one of `FORMATS`.
    """
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    for name in names:
        if name not in FORMATS:
            raise SettingError(f"--export {name}: must be some of {', '.join(FORMATS)}")
    return list(dict.fromkeys(names))


def write_exports(inputs: Inputs, page: Path, formats: list[str], sources: list[Path]) -> list[Path]:
    """Write files beside the page, named after it: ``report.csv``, ``report-groups.csv``, ``report-pareto.svg``.

    Args:
        inputs: results and curves of the report.
        page: file of the report.
        formats: some of `FORMATS`.
        sources: files that must not be overwritten.

    Raises:
        OutputError: a file cannot be written, or would overwrite a source.
        SettingError: a library is missing.
    """
    runs = digest.name(inputs.results)
    contents: dict[str, bytes | str] = {}
    if "csv" in formats:
        contents[".csv"] = _csv([{"run": run.label} | row for run in runs for row in rows_of(run.row)])
        contents["-groups.csv"] = _csv([{"run": run.label} | row for run in runs for row in rows_of(run.row, "groups")])
    if "parquet" in formats:
        contents[".parquet"] = _parquet([{"run": run.label} | row for run in runs for row in rows_of(run.row)])
    if "latex" in formats:
        contents[".tex"] = latex(runs)
    for kind in ("svg", "png"):
        if kind in formats:
            for plot in figures.all_figures(runs, inputs.curves):
                contents[f"-{plot.key}.{kind}"] = _image(plot, kind)
    paths = [page.with_name(page.stem + ending) for ending in contents]
    for path in paths:
        check_new_file(path)
        spare(path, sources)
    for path, content in zip(paths, contents.values(), strict=True):
        write_atomic(path, content)
    return paths


def _csv(rows: list[dict[str, Any]]) -> str:
    heads = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, heads, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    try:
        import pandas
    except ImportError as error:
        raise SettingError("--export parquet needs pandas and pyarrow: pip install pandas pyarrow") from error
    table = pandas.DataFrame(rows)
    mixed = [name for name in table if table[name].map(type).nunique() > 1]
    table[mixed] = table[mixed].map(
        lambda value: value if isinstance(value, int | float) else None if value is None else str(value)
    )
    text = io.BytesIO()
    try:
        table.convert_dtypes().to_parquet(text, index=False)
    except ImportError as error:
        raise SettingError("--export parquet needs pandas and pyarrow: pip install pandas pyarrow") from error
    return text.getvalue()


def _image(plot: plotting.Figure, kind: str) -> bytes:
    try:
        import plotly.io
    except ImportError as error:
        raise SettingError(f"--export {kind} needs plotly and kaleido: pip install 'hwsim[report]' kaleido") from error
    layout = {"template": "plotly_white", "width": 900, "height": 500, "font": {"size": 14}, **plot.layout}
    layout |= {
        "margin": {"l": 70, "r": 20, "t": 50, "b": 60},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"},
    }
    layout["height"] = max(layout["height"], 300)
    try:
        image: bytes = plotly.io.to_image({"data": plot.data, "layout": layout}, format=kind, scale=2)
    except (ImportError, ValueError, RuntimeError, OSError) as error:
        why = one_line(error)[:200]
        raise OutputError(
            f"--export {kind}: plotly cannot draw it: {why}; it needs kaleido and Chrome or Chromium"
        ) from error
    return image

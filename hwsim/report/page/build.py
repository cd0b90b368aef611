"""The page itself: a template, the plots as data, and plotly's own script, all in one file."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from hwsim.errors import SettingError
from hwsim.report.page import digest, figures
from hwsim.report.page.inputs import Inputs


def build_page(inputs: Inputs, title: str) -> str:
    """Return the report as one HTML page that needs no network.

    Args:
        inputs: results, at least one, and curves.
        title: title of the page.

    Raises:
        SettingError: plotly or jinja2 is not installed.
    """
    try:
        from jinja2 import Environment
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise SettingError("a report needs plotly and jinja2: pip install 'hwsim[report]'") from error
    runs = digest.name(inputs.results)
    plots = figures.all_figures(runs, inputs.curves)
    heads, body = digest.table(runs)
    loop_heads, loop_body = digest.loops(runs)
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        files("hwsim.report.page").joinpath("template.html").read_text(encoding="utf-8")
    )
    return template.render(
        title=title, answers=digest.answers(runs), synthetic=digest.synthetic(runs), heads=heads, body=body,
        plots=plots, data=[(plot.key, _embedded({"data": plot.data, "layout": plot.layout})) for plot in plots],
        loop_heads=loop_heads, loop_body=loop_body, notes=digest.notes(runs), provenance=digest.provenance(runs),
        files=inputs.files, plotly=get_plotlyjs(),
        settings=[(run.number, run.label, run.device, _plain(run.row["provenance"])) for run in runs],
    )  # fmt: skip


def _embedded(value: Any) -> str:
    """JSON that is safe inside a script element."""
    return json.dumps(value, ensure_ascii=True, allow_nan=False).replace("<", "\\u003c").replace("&", "\\u0026")


def _plain(value: dict[str, Any]) -> str:
    """The provenance of a run as JSON, without the parts that the page shows once for all runs."""
    kept = {key: value[key] for key in ("trace", "policy", "eviction", "settings", "seed") if key in value}
    return json.dumps(kept, indent=1, ensure_ascii=False, sort_keys=True)

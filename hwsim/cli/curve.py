"""``hwsim trace curve``: the hit rate of LRU for caches of every size, from one pass over the masks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from hwsim.cli import options as o
from hwsim.cli.common import (
    JsonOption,
    check_target,
    find_trace,
    note,
    output,
    plugin_files,
    progress_bar,
    setting_files,
    to_json,
    write_json,
)
from hwsim.cli.replay import make_policies
from hwsim.cli.runoptions import Run

_SHARES = tuple(tenth / 10 for tenth in range(1, 11))  # cache sizes as shares of the units: columns of the table


@dataclass(frozen=True, kw_only=True)
class CurveOptions:
    """Options of ``hwsim trace curve``."""

    trace: Annotated[Path, typer.Argument(metavar="TRACE", help="Trace file; sample: the bundled one.")]
    policy: Annotated[
        str, typer.Option(metavar="NAME|FILE.py", help="Policy that decides the masks, without a look at the cache.")
    ]
    density: o.Density = None
    set_: o.Parameters = None
    hw: Annotated[
        str | None,
        typer.Option(
            "--hw", metavar="NAME|FILE", help="Mark the size that caches have on this device.", show_default="none"
        ),
    ] = None
    dram: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE|SHARE",
            help="Mark the size that caches have with this DRAM: a size (4GB), or a share of the weight bytes (50%).",
            show_default="the budget of --hw",
        ),
    ] = None
    run: Run
    json: JsonOption = None


def curve(options: CurveOptions) -> None:
    """Show the hit rate of LRU for caches of every size at once; --json holds every size, the table ten.

    Example: hwsim trace curve sample --policy dip --dram 70%
    """
    from hwsim.analysis.curve import curve as count
    from hwsim.device.profile import find_profile, load_profile
    from hwsim.evictions.lru import Lru
    from hwsim.masking.checks import check_trace
    from hwsim.report.curve import render_curve
    from hwsim.simulation.run import Conditions, Source
    from hwsim.trace import Trace

    hw, json, dram, pairs = options.hw, options.json, options.dram, options.set_ or []
    trace = find_trace(options.trace)
    files = [trace, *plugin_files([options.policy]), *setting_files(pairs), *([find_profile(hw)] if hw else [])]
    check_target(json, *files)
    profile = load_profile(hw) if hw else None
    known = profile is not None or dram is not None
    ((shown, policy),) = make_policies([options.policy], options.density, pairs)
    settings = options.run.settings(dram=dram if known else "100%")
    with Trace(trace) as opened, progress_bar() as progress:
        header, layers = opened.header, opened.model.num_hidden_layers
        run = Conditions(profile, Lru(), settings).run(Source.of_trace(opened), policy, shown)
        check_trace(opened, policy, run.placement.plans, shown)
        curves = count(
            opened, run.sequences, run.masking, _SHARES, known=known,
            progress=lambda done: progress("masks and stacks", done, layers),
        )  # fmt: skip
        data: dict[str, Any] = {
            "format": "hwsim-curve",
            "version": 1,
            "trace": {"name": opened.path.name, "hash": opened.hash, "origin": header.origin},
            "policy": {"name": shown, "parameters": policy.model_dump(mode="json")},
            "eviction": "lru",
            "dram_budget_bytes": run.placement.bytes.budget if known else None,
            "seed": settings.seed,
            "groups": {
                name: {
                    "units": group.units,
                    "capacity": group.capacity,
                    "requests": group.requests,
                    "first_requests": group.first,
                    "largest_mask": group.largest,
                    "capacities": list(group.hits),
                    "hits": list(group.hits.values()),
                }
                for name, group in curves.items()
            },
        }
    if json:
        write_json(json, to_json(data))
    if json != "-":
        title = f"{shown} on {trace.name} ({header.origin}), {header.decoded} tokens, {layers} layers, eviction lru"
        output().print(render_curve(curves, _SHARES, title))
    if json and json != "-":
        note(f"Written to {json}")

"""``hwsim trace curve``: the hit rate by the size of the caches; of LRU for every size at once, from one pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwsim.cli import options as o
from hwsim.cli.caching import make_rule
from hwsim.cli.common import (
    JsonOption,
    check_target,
    find_trace,
    listed,
    note,
    output,
    plugin_files,
    progress_bar,
    setting_files,
    to_json,
    write_json,
)
from hwsim.cli.replay import make_policies
from hwsim.cli.runoptions import Run, check_for_experts
from hwsim.errors import SettingError, UnitError
from hwsim.util.units import parse, shorten

if TYPE_CHECKING:
    from rich.console import ConsoleRenderable

    from hwsim.evictions import Eviction
    from hwsim.masking.counts import Counts
    from hwsim.simulation.run import Run as SimulatedRun

Tell = Callable[[str, int, int], None]
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
    eviction: Annotated[
        str, typer.Option(metavar="NAME|FILE.py", help="Who leaves a full cache of experts; of others LRU only.")
    ] = "lru"
    cache: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE,...", help="Bytes of the caches of experts to count.", show_default="ten shares of all"
        ),
    ] = None
    run: Run
    json: JsonOption = None


def curve(options: CurveOptions) -> None:
    """Show the hit rate by the size of the caches.

    Caches of experts are replayed at each size. For others all sizes of LRU are counted at once; --json holds every
    size, the table ten.

    Example: hwsim trace curve sample --policy dip --dram 70%
    """
    from hwsim.device.profile import find_profile, load_profile
    from hwsim.masking.checks import check_trace
    from hwsim.simulation.run import Conditions, Source
    from hwsim.trace import Trace

    hw, json, dram, pairs = options.hw, options.json, options.dram, options.set_ or []
    trace = find_trace(options.trace)
    files = [trace, *plugin_files([options.policy, options.eviction]), *setting_files(pairs)]
    files += [find_profile(hw)] if hw else []
    check_target(json, *files)
    profile = load_profile(hw) if hw else None
    known = profile is not None or dram is not None
    rule_name, rule, pairs = make_rule(options.eviction, pairs)
    ((shown, policy),) = make_policies([options.policy], options.density, pairs)
    settings = options.run.settings(dram=dram if known else "100%")
    with Trace(trace) as opened, progress_bar() as progress:
        run = Conditions(profile, rule, settings, rule_name).run(Source.of_trace(opened), policy, shown)
        check_trace(opened, policy, run.placement.plans, shown)
        if run.placement.plans.sparse:
            data, table = _of_experts(run, options, known=known, progress=progress)
        else:
            _check_dense(options, rule)
            data, table = _of_stack(run, known=known, progress=progress)
    if json:
        write_json(json, to_json(data))
    if json != "-":
        output().print(table)
    if json and json != "-":
        note(f"Written to {json}")


def _check_dense(options: CurveOptions, rule: Eviction) -> None:
    """Refuse options that are for experts only.

    Raises:
        SettingError: one is given.
    """
    from hwsim.evictions.lru import Lru

    if type(rule) is not Lru:
        raise SettingError(
            f"--eviction {options.eviction}: the curve of all sizes is that of lru; hwsim trace locality compares rules"
        )
    check_for_experts(options.run, {"--cache": options.cache})


def _about(run: SimulatedRun) -> dict[str, Any]:
    """What a curve is of, for the JSON."""
    return {
        "format": "hwsim-curve",
        "version": 1,
        "trace": {key: run.source.origin[key] for key in ("name", "hash", "origin")},
        "policy": {"name": run.names.policy, "parameters": run.policy.model_dump(mode="json")},
        "eviction": run.names.eviction,
    }


def _title(run: SimulatedRun) -> str:
    header = run.header
    return (
        f"{run.names.policy} on {run.source.origin['name']} ({header.origin}), {header.decoded} tokens, "
        f"{run.placement.layers} layers, eviction {run.names.eviction}"
    )


def _of_stack(run: SimulatedRun, *, known: bool, progress: Tell) -> tuple[dict[str, Any], ConsoleRenderable]:
    """Count all sizes of LRU at once; return the JSON and the table."""
    from hwsim.analysis.curve import curve as count
    from hwsim.report.curve import render_curve

    layers = run.placement.layers
    assert run.source.trace is not None
    curves = count(
        run.source.trace, run.sequences, run.masking, _SHARES, known=known,
        progress=lambda done: progress("masks and stacks", done, layers),
    )  # fmt: skip
    data = _about(run) | {
        "dram_budget_bytes": run.placement.bytes.budget if known else None,
        "seed": run.settings.seed,
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
    return data, render_curve(curves, _SHARES, _title(run))


def _of_experts(
    run: SimulatedRun, options: CurveOptions, *, known: bool, progress: Tell
) -> tuple[dict[str, Any], ConsoleRenderable]:
    """Replay caches of experts at each size; return the JSON and the table."""
    from hwsim.analysis.expert_curve import curve_by_size
    from hwsim.report.curve import render_sizes
    from hwsim.simulation.replay import count

    where = run.placement.bytes
    now = where.cache if known else None
    sizes = _sizes(options.cache) or [int(share * where.sparse + 1e-9) for share in _SHARES]
    sizes += [] if now is None else [now]

    def counts_of(size: int) -> Counts:
        return count(run.but(cache=size, dram=None))

    points = curve_by_size(
        counts_of, sizes, run.placement.plans, lambda done, total: progress("sizes of the caches", done, total)
    )
    scope = run.settings.cache_scope
    data = _about(run) | {
        "dram_budget_bytes": where.budget if known else None,
        "seed": run.settings.seed,
        "groups": {},
        "cache_scope": scope,
        "cache_bytes": now,
        "expert_bytes": where.sparse,
        "sizes": [
            {
                "cache_bytes": size, "requests": point.requests, "hits": point.hits, "steps": point.steps,
                "miss_bytes": point.miss_bytes, "demand_bytes": point.demand,
                "prompt_requests": point.prompt_requests, "prompt_hits": point.prompt_hits,
            }
            for size, point in points.items()
        ],
    }  # fmt: skip
    return data, render_sizes(points, where.sparse, now, scope, _title(run))


def _sizes(text: str | None) -> list[int]:
    """The bytes that ``--cache`` lists; none if it is not given."""
    sizes = []
    for word in listed(text) if text is not None else ():
        try:
            sizes.append(int(parse(word, "size")) if word.strip("0") else 0)
        except UnitError as error:
            raise SettingError(f"--cache {shorten(word)}: {error}") from error
    if text is not None and not sizes:
        raise SettingError("--cache: names no size; write 2GB,4GB")
    return sizes

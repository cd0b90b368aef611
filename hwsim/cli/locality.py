"""``hwsim trace locality``: where the hits of a cache come from, under every eviction rule."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

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
from hwsim.errors import SettingError


@dataclass(frozen=True, kw_only=True)
class LocalityOptions:
    """Options of ``hwsim trace locality``."""

    trace: Annotated[Path, typer.Argument(metavar="TRACE", help="Trace file; sample: the bundled one.")]
    policy: Annotated[
        str, typer.Option(metavar="NAME|FILE.py", help="Policy that decides the masks, without a look at the cache.")
    ]
    dram: Annotated[
        str,
        typer.Option(
            metavar="SIZE|SHARE",
            help="DRAM for the model: a size (4GB), or a share of its weight bytes (50%), the KV cache on top.",
        ),
    ]
    density: o.Density = None
    set_: o.Parameters = None
    eviction: Annotated[
        list[str] | None,
        typer.Option(
            "--eviction",
            metavar="NAME|FILE.py",
            help="Rule; several by commas or by repeating the option.",
            show_default="all that cache",
        ),
    ] = None
    run: Run
    seed: Annotated[int, typer.Option(min=0, help="Seed of the shuffle and of the policy's random numbers.")] = 0
    json: JsonOption = None


def locality(options: LocalityOptions) -> None:
    """Compare every eviction rule on a trace and on the same tokens shuffled: popularity and locality apart.

    Example: hwsim trace locality sample --policy dip --dram 70%
    """
    from hwsim.analysis.expert_locality import expert_locality, rules_for
    from hwsim.analysis.locality import locality as count
    from hwsim.evictions.lru import Lru
    from hwsim.masking.checks import check_trace
    from hwsim.report.locality import render_locality
    from hwsim.simulation.plugins import EVICTIONS
    from hwsim.simulation.run import Conditions, Source
    from hwsim.trace import Trace

    json, seed = options.json, options.seed
    rule_names = [name for option in options.eviction or [] for name in listed(option)]
    trace, rules, pairs = find_trace(options.trace), {}, options.set_ or []
    check_target(json, trace, *plugin_files([options.policy, *rule_names]), *setting_files(pairs))
    for spec in rule_names or EVICTIONS.names():
        name, rule, others = make_rule(spec, pairs if len(rule_names) == 1 else [])
        if name in rules:
            raise SettingError(f"--eviction names {name!r} twice")
        if rule.caches or rule_names:
            rules[name] = rule
        pairs = others if len(rule_names) == 1 else pairs
    ((shown, policy),) = make_policies([options.policy], options.density, pairs)
    settings = options.run.settings(dram=options.dram, seed=seed)
    with Trace(trace) as opened, progress_bar() as progress:
        header, layers = opened.header, opened.model.num_hidden_layers
        run = Conditions(None, Lru(), settings).run(Source.of_trace(opened), policy, shown)
        plans = run.placement.plans
        check_trace(opened, policy, plans, shown)
        if plans.sparse:
            rules = rules_for(run.masking, rules, named=bool(rule_names))
            localities = {
                "experts": expert_locality(
                    opened, run.sequences, run.steps, run.masking, rules, run.placement.bytes.cache,
                    progress=lambda done: progress("rules", done, len(rules)),
                )
            }  # fmt: skip
        else:
            check_for_experts(options.run)
            localities = count(
                opened, run.sequences, run.masking, rules,
                progress=lambda done: progress("masks and hits", done, layers),
            )  # fmt: skip
        data = {
            "format": "hwsim-locality",
            "version": 1,
            "trace": {"name": opened.path.name, "hash": opened.hash, "origin": header.origin},
            "policy": {"name": shown, "parameters": policy.model_dump(mode="json")},
            "dram_budget_bytes": run.placement.bytes.budget,
            "seed": seed,
            "groups": {name: asdict(group) for name, group in localities.items()},
        }
    if json:
        write_json(json, to_json(data))
    if json != "-":
        output().print(
            render_locality(localities, f"{shown} on {trace.name} ({header.origin}), {header.decoded} tokens")
        )
    if json and json != "-":
        note(f"Written to {json}")

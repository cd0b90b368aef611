"""``hwsim replay``: a trace, a device and one or more policies -> the comparison."""

from __future__ import annotations

from dataclasses import dataclass
from json import loads
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwsim.cli import caching as c
from hwsim.cli import device as d
from hwsim.cli import options as o
from hwsim.cli.common import (
    JsonOption,
    check_target,
    find_trace,
    is_file,
    key_values,
    listed,
    named,
    note,
    output,
    plugin_files,
    setting_files,
    write_results,
)
from hwsim.cli.runoptions import Run, check_per_token
from hwsim.errors import SettingError, did_you_mean
from hwsim.util.units import printable, shorten

if TYPE_CHECKING:
    from hwsim.simulation.metrics import Result
    from hwsim.simulation.run import Conditions


@dataclass(frozen=True, kw_only=True)
class ReplayOptions:
    """Options of ``hwsim replay``."""

    trace: Annotated[
        Path,
        typer.Argument(
            help="Trace, from `hwsim record` or `hwsim synth`, or masks, from `hwsim eval`; sample: the bundled trace."
        ),
    ]
    hw: Annotated[
        list[str],
        typer.Option(
            "--hw",
            metavar="NAME|FILE",
            help="Hardware profile, several by commas or by repeating the option; `hwsim list devices` lists them.",
        ),
    ]
    policy: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            metavar="NAME|FILE.py",
            help="Policy; several by commas or by repeating the option. Saved masks need none.",
            show_default="required for a trace",
        ),
    ] = None
    rule: c.RuleOptions
    run: Run
    save_cache: c.SaveCache = None
    timeline: d.Timeline = None
    timeline_tokens: d.TimelineTokens = d.SHOWN
    watch: d.WatchIt = False
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="That decide masks and count hits; the result is the same.", show_default="all cores"),
    ] = None
    settings_file: o.SettingsFile = None
    json: JsonOption = None


def replay(ctx: typer.Context, options: ReplayOptions) -> None:
    """Replay a trace on one or more devices under one or more policies.

    Example: hwsim replay smollm2.npz --hw pixel8 --dram 50% --policy dip,dip-ca
    """
    from hwsim.device.profile import find_profile, load_profile
    from hwsim.masking.mask_file import is_mask_file
    from hwsim.report.matrix import print_matrix
    from hwsim.report.table import print_results
    from hwsim.simulation.run import Conditions

    json, save_cache, rule = options.json, options.save_cache, options.rule
    given = o.Chosen(options.policy, rule.density, rule.set_, rule.eviction, options.run)
    chosen = o.with_settings(ctx, options.settings_file, given)
    check_per_token(chosen.run, json)
    pairs, policy_options = chosen.set_ or [], chosen.policy or []
    trace = find_trace(options.trace)
    devices = [device for option in options.hw for device in ([option] if is_file(Path(option)) else listed(option))]
    if len(set(devices)) < len(devices) or not devices:
        raise SettingError(f"--hw {','.join(devices)}: must name at least one device, each once")
    sources = [
        trace,
        *map(find_profile, devices),
        *plugin_files([chosen.eviction, *policy_options]),
        *setting_files(pairs),
    ]
    sources += [*chosen.run.files(), *density_files(chosen.density)]
    sources += [options.settings_file] if options.settings_file else []
    check_target(json, *sources, *([save_cache] if save_cache else []))
    names = [name for option in policy_options for name in listed(option)]
    held = c.Held(save_cache, sources, devices, names)
    drawn = d.Drawing(
        options.timeline, options.timeline_tokens, options.watch, sources, devices, names, chosen.run["timing"]
    )  # fmt: skip
    guesses, pairs = d.prefetch_parameters(pairs)
    settings = chosen.run.settings(prefetch_parameters=guesses)
    name, eviction, pairs = c.make_rule(chosen.eviction, pairs)
    conditions = [Conditions(load_profile(device), eviction, settings, name) for device in devices]
    if is_mask_file(trace):
        if policy_options or pairs or chosen.density is not None:
            raise SettingError(f"{trace}: holds masks that were decided; leave out --policy, --density and --set")
        outcomes = [_saved(trace, condition, held, drawn) for condition in conditions]
    else:
        if not policy_options:
            raise typer.BadParameter("is missing; name one or several, such as dip,dip-ca", param_hint="--policy")
        policies = make_policies(names, chosen.density, pairs)
        outcomes = [_decided(trace, condition, policies, held, options.threads, drawn) for condition in conditions]
    held.write(outcomes[0][0][0])
    write_results(json, [result for results, _ in outcomes for result in results])
    if json != "-" and len(devices) == 1:
        print_results(output(), *outcomes[0])
    elif json != "-":
        print_matrix(output(), [(device, *pair) for device, pair in zip(devices, outcomes, strict=True)])
    if json and json != "-":
        note(f"Result written to {json}")
    if save_cache:
        note(f"Contents of the caches written to {save_cache}")
    drawn.write()


def _decided(
    trace: Path,
    conditions: Conditions,
    policies: list[tuple[str, Any]],
    held: c.Held,
    threads: int | None,
    drawn: d.Drawing,
) -> tuple[list[Result], Result]:
    """Replay the signals of a trace; return the results, and the result of the baseline."""
    from hwsim.simulation.plugins import baseline
    from hwsim.simulation.replay import replay as run
    from hwsim.simulation.run import Source
    from hwsim.trace import Trace

    with Trace(trace) as opened, drawn.follow() as progress:
        source = Source.of_trace(opened)

        def one(name: str, policy: Any) -> Result:
            moments = drawn.observers(first=policy is policies[0][1])
            observers = [held.observer(), named(progress, f"{name}: "), *moments]
            return run(conditions.run(source, policy, name), observers, threads=threads)

        results = {name: one(name, policy) for name, policy in policies}
        name, policy = baseline(opened.model)
        dense = results.get(name) or one(name, policy)
    return list(results.values()), dense


def _saved(path: Path, conditions: Conditions, held: c.Held, drawn: d.Drawing) -> tuple[list[Result], Result]:
    """Replay saved masks; return the result, and the result of `dense` on the same tokens."""
    from hwsim.masking.mask_file import MaskFile
    from hwsim.simulation.replay import replay as run
    from hwsim.simulation.run import Source

    masks = MaskFile(path)
    with drawn.follow() as progress:
        result, dense = (
            run(
                conditions.run(Source.of_masks(source), source.policy, source.policy.name),
                [held.observer(), named(progress), *drawn.observers(first=source is masks)],
            )
            for source in (masks, masks.without_masks())
        )
    return [result], dense


def density_files(density: str | None) -> list[Path]:
    """The file that ``--density`` names, as a list; empty if it names none.

    Raises:
        BadParameter: the text is neither a number, a list nor a file.
    """
    if density is None or _is_number(density) or density.startswith("["):
        return []
    if not is_file(Path(density)):
        raise typer.BadParameter(
            f"{printable(shorten(repr(density)))} is not a valid float, and no file; give a share such as 0.5, or a "
            "file with one for each layer (`hwsim sweep` takes several)",
            param_hint="'--density'",
        )
    return [Path(density)]


def _density(text: str | None) -> float | Path | list[Any] | None:
    """Read ``--density``: a number, a file, or a list in brackets."""
    if text is None or density_files(text):
        return Path(text) if text else None
    if not text.startswith("["):
        return float(text)
    try:
        values = loads(text)
    except ValueError as error:
        raise SettingError(f"--density {shorten(text)}: is no list; write [0.5, 0.6, ...]") from error
    return values if isinstance(values, list) else [values]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def make_policies(specs: list[str], density: str | None, pairs: list[str]) -> list[tuple[str, Any]]:
    """Make the policies of the options, as (name, instance).

    If there are several, `density`, a number or a file with one for each layer, is used by those that take one; a
    single policy must take it.

    Raises:
        PluginError, SettingError: unknown policy, unknown parameter, value out of bounds.
    """
    from hwsim.simulation.options import make_policy, takes_density
    from hwsim.simulation.plugins import POLICIES

    if not specs:
        raise SettingError("--policy names no policy")
    kinds = [POLICIES.find(spec) for spec in specs]
    names = [name for name, _ in kinds]
    if len(set(names)) < len(names):
        raise SettingError(f"--policy names {next(n for n in names if names.count(n) > 1)!r} twice")
    given = key_values(pairs, "--set")
    takers = [name for name, kind in kinds if takes_density(kind)]
    others = [name for name in names if name not in takers]
    if density is not None and takers and others:
        note(f"--density {density} is for {', '.join(takers)}; {', '.join(others)} as without it")
    chosen = _density(density)
    policies: list[tuple[str, Any]] = []
    for name, kind in kinds:
        own = {}
        for key, value in given.items():
            owner, _, field = key.rpartition(".")
            if owner == name or (not owner and (len(kinds) == 1 or field in kind.model_fields)):
                own[field] = value
        takes = name in takers or not takers
        policies.append((name, make_policy(name, kind, own, chosen if takes else None)))
    for key in given:
        owner, _, field = key.rpartition(".")
        if owner and owner not in names:
            raise SettingError(f"--set {key}: policy {owner!r} is not part of this replay{did_you_mean(owner, names)}")
        if not any(field in kind.model_fields for _, kind in kinds):
            known = {known for _, kind in kinds for known in kind.model_fields}
            raise SettingError(f"--set {key}: no policy here has a parameter {field!r}{did_you_mean(field, known)}")
    return policies

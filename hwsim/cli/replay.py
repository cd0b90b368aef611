"""``hwsim replay``: a trace, a device and one or more policies -> the comparison."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwsim.cli import options as o
from hwsim.cli.common import (
    JsonOption,
    check_target,
    find_trace,
    guarded,
    key_values,
    note,
    output,
    plugin_files,
    progress_bar,
    read_bits,
    setting_files,
    write_results,
)
from hwsim.errors import SettingError, did_you_mean

if TYPE_CHECKING:
    from hwsim.metrics import Result
    from hwsim.profile import Profile
    from hwsim.simulation import Settings


def replay(
    trace: Annotated[
        Path,
        typer.Argument(
            help="Trace, from `hwsim record` or `hwsim synth`, or masks, from `hwsim eval`; sample: the bundled trace."
        ),
    ],
    hw: o.Hardware,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            metavar="NAME|FILE.py",
            help="Policy; several by commas or by repeating the option. Saved masks need none.",
            show_default="required for a trace",
        ),
    ] = None,
    density: o.Density = None,
    set_: o.Parameters = None,
    eviction: o.EvictionRule = "lfu",
    lora: o.Lora = None,
    lora_merged: o.LoraMerged = False,
    cache_scope: o.CacheScope = o.Scope.MATRIX,
    cache_shares: o.CacheShares = "equal",
    block: o.Block = 1,
    layout: o.NeuronLayout = None,
    dram: o.Dram = None,
    kv_tokens: o.KvTokens = None,
    bits: o.BitsOfParts = o.DEFAULT_BITS,
    timing: o.TimingModel = o.Timing.EVENTS,
    overlap: o.OverlapOf = o.Overlap.NONE,
    seed: o.Seed = 0,
    json: JsonOption = None,
    per_token: o.PerToken = False,
) -> None:
    """Replay a trace on a device under one or more policies.

    Example: hwsim replay smollm2.npz --hw pixel8 --dram 50% --policy dip,dip-ca
    """
    from hwsim.masks import is_mask_file
    from hwsim.plugins import EVICTIONS
    from hwsim.profile import find_profile, load_profile
    from hwsim.report.table import print_results
    from hwsim.simulation import Settings

    o.check_per_token(per_token, json)
    pairs, asked = set_ or [], policy or []
    trace = find_trace(trace)
    read = [trace, find_profile(hw), *plugin_files([eviction, *asked]), *setting_files(pairs)]
    check_target(json, *read, *o.lora_files(lora, lora_merged), *o.cache_files(cache_shares, layout))
    settings = Settings(
        dram, kv_tokens, read_bits(bits), timing.value, overlap.value, seed, per_token, lora, lora_merged,
        cache_scope=cache_scope.value, cache_shares=o.read_shares(cache_shares), block=block,
        neurons=o.read_layout(layout),
    )  # fmt: skip
    profile, rule = load_profile(hw), EVICTIONS.make(eviction)
    if is_mask_file(trace):
        if asked or pairs or density is not None:
            raise SettingError(f"{trace}: holds masks that were decided; leave out --policy, --density and --set")
        results, dense = _saved(trace, profile, rule, settings)
    else:
        if not asked:
            raise typer.BadParameter("is missing; name one or several, such as dip,dip-ca", param_hint="--policy")
        names = [name for option in asked for name in option.split(",") if name]
        results, dense = _decided(trace, profile, make_policies(names, density, pairs), rule, settings)
    write_results(json, results)
    if json != "-":
        print_results(output(), results, dense)
    if json and json != "-":
        note(f"Result written to {json}")


def _decided(
    trace: Path, profile: Profile, policies: list[tuple[str, Any]], rule: tuple[str, Any], settings: Settings
) -> tuple[list[Result], Result]:
    """Replay the signals of a trace: the results, and that of `dense`."""
    from hwsim.plugins import POLICIES
    from hwsim.simulation import replay as run
    from hwsim.trace import Trace

    with Trace(trace) as opened, progress_bar() as progress:

        def one(name: str, made: Any) -> Result:
            return run(
                opened, profile, made, rule[1], settings, policy_name=name, eviction_name=rule[0],
                progress=lambda phase, done, total: progress(f"{name}: {phase}", done, total),
            )  # fmt: skip

        results = {name: one(name, made) for name, made in policies}
        dense = results.get("dense") or one("dense", POLICIES.make("dense")[1])
    return list(results.values()), dense


def _saved(path: Path, profile: Profile, rule: tuple[str, Any], settings: Settings) -> tuple[list[Result], Result]:
    """Replay masks that were saved: the result, and that of `dense` on the same tokens."""
    from hwsim.masks import MaskFile
    from hwsim.simulation import replay_masks

    masks = MaskFile(path)
    with progress_bar() as progress:
        made, dense = (
            replay_masks(each, profile, rule[1], settings, eviction_name=rule[0], progress=progress)
            for each in (masks, masks.without_masks())
        )
    return [made], dense


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(no_args_is_help=True)(guarded(replay))


def make_policies(specs: list[str], density: float | None, pairs: list[str]) -> list[tuple[str, Any]]:
    """The policies that the options ask for: (name, instance) each.

    Of several, `density` is for those that take one; what is alone must.

    Raises:
        PluginError, SettingError: unknown policy, unknown parameter, value out of bounds.
    """
    from hwsim.plugins import POLICIES, build, set_density

    if not specs:
        raise SettingError("--policy names no policy")
    found = [POLICIES.find(spec) for spec in specs]
    names = [name for name, _ in found]
    if len(set(names)) < len(names):
        raise SettingError(f"--policy names {next(n for n in names if names.count(n) > 1)!r} twice")
    given = key_values(pairs, "--set")
    takers = [name for name, kind in found if _takes_density(kind)]
    others = [name for name in names if name not in takers]
    if density is not None and takers and others:
        note(f"--density {density} is for {', '.join(takers)}; {', '.join(others)} as without it")
    made = []
    for name, kind in found:
        own = {}
        for key, value in given.items():
            owner, _, field = key.rpartition(".")
            if owner == name or (not owner and (len(found) == 1 or field in kind.model_fields)):
                own[field] = value
        if density is not None and (name in takers or not takers):
            if "density" in own:
                raise SettingError("--density and --set density=... both set the density; give one")
            own |= {key: str(value) for key, value in set_density(name, kind, density).items()}
        made.append((name, build(kind, f"policy {name}", own)))
    for key in given:
        owner, _, field = key.rpartition(".")
        if owner and owner not in names:
            raise SettingError(f"--set {key}: policy {owner!r} is not part of this replay{did_you_mean(owner, names)}")
        if not any(field in kind.model_fields for _, kind in found):
            known = {known for _, kind in found for known in kind.model_fields}
            raise SettingError(f"--set {key}: no policy here has a parameter {field!r}{did_you_mean(field, known)}")
    return made


def _takes_density(kind: type[Any]) -> bool:
    """Whether a policy has a density that can be chosen; that of `dense` has one value only."""
    field = kind.model_fields.get("density")
    if field is None:
        return False
    bounds = {name: getattr(rule, name) for rule in field.metadata for name in ("ge", "le") if hasattr(rule, name)}
    return "ge" not in bounds or bounds["ge"] != bounds.get("le")

"""``hwsim replay``: a trace, a device and one or more policies -> the comparison."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

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
    to_json,
    write_json,
)
from hwsim.errors import SettingError, did_you_mean


class Timing(StrEnum):
    """How time is computed."""

    EVENTS = "events"
    CLOSED_FORM = "closed-form"


class Overlap(StrEnum):
    """What happens at the same time."""

    NONE = "none"
    GROUP = "group"


def replay(
    trace: Annotated[
        Path, typer.Argument(help="Trace file, from `hwsim record` or `hwsim synth`; sample: the bundled one.")
    ],
    hw: Annotated[str, typer.Option("--hw", metavar="NAME|FILE", help="Hardware profile; `hwsim devices` lists them.")],
    policy: Annotated[
        list[str],
        typer.Option("--policy", metavar="NAME|FILE.py", help="Policy; several by commas or by repeating the option."),
    ],
    density: Annotated[
        float | None,
        typer.Option(
            help="MLP density: share of the MLP's weights that a token reads.", show_default="the policy's, mostly 0.5"
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A policy's parameter; POLICY.KEY=VALUE for one of several."),
    ] = None,
    eviction: Annotated[str, typer.Option(metavar="NAME|FILE.py", help="Who leaves a full cache.")] = "lfu",
    dram: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE|SHARE",
            help="DRAM for the model: a size (4GB), or a share of its weight bytes (50%), the KV cache on top.",
            show_default="the profile's budget",
        ),
    ] = None,
    kv_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, max=10**9, help="Tokens that the KV cache is reserved for.", show_default="longest sequence"
        ),
    ] = None,
    bits: Annotated[
        str, typer.Option(metavar="PART=BITS,...", help="Bits of a stored number; also predictor=4.")
    ] = "mlp=4,attention=4,lm_head=4,kv_cache=8",
    timing: Annotated[Timing, typer.Option(help="The event engine, or the closed form of the paper.")] = Timing.EVENTS,
    overlap: Annotated[Overlap, typer.Option(help="group: Flash and DRAM work at once within a group.")] = Overlap.NONE,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the policies' random numbers.")] = 0,
    json: JsonOption = None,
    per_token: Annotated[bool, typer.Option("--per-token", help="Keep every token in the JSON.")] = False,
) -> None:
    """Replay a trace on a device under one or more policies.

    Example: hwsim replay smollm2.npz --hw pixel8 --dram 50% --policy dip,dip-ca
    """
    from hwsim.plugins import EVICTIONS, POLICIES
    from hwsim.profile import find_profile, load_profile
    from hwsim.report.table import print_results
    from hwsim.simulation import Settings
    from hwsim.simulation import replay as run
    from hwsim.trace import Trace

    if per_token and json is None:
        raise SettingError("--per-token: single tokens are in the JSON only; give --json FILE, too")
    pairs = set_ or []
    trace = find_trace(trace)
    check_target(json, trace, find_profile(hw), *plugin_files([eviction, *policy]), *setting_files(pairs))
    settings = Settings(dram, kv_tokens, read_bits(bits), timing.value, overlap.value, seed, per_token)
    profile = load_profile(hw)
    rule_name, rule = EVICTIONS.make(eviction)
    policies = make_policies([name for option in policy for name in option.split(",") if name], density, pairs)
    with Trace(trace) as opened, progress_bar() as progress:
        results = [
            run(
                opened, profile, made, rule, settings, policy_name=name, eviction_name=rule_name,
                progress=lambda phase, done, total, name=name: progress(f"{name}: {phase}", done, total),  # type: ignore[misc]
            )
            for name, made in policies
        ]  # fmt: skip
        dense = next((result for (name, _), result in zip(policies, results, strict=True) if name == "dense"), None)
        if dense is None:
            _, made = POLICIES.make("dense")
            dense = run(opened, profile, made, rule, settings, policy_name="dense", eviction_name=rule_name)
    if json:
        many = {"format": "hwsim-results", "version": 1, "results": [_plain(result) for result in results]}
        write_json(json, results[0].to_json() if len(results) == 1 else to_json(many))
    if json != "-":
        print_results(output(), results, dense)
    if json and json != "-":
        note(f"Result written to {json}")


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


def _plain(result: Any) -> Any:
    return result.model_dump(exclude={"per_token"} if result.per_token is None else set())

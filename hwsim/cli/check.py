"""``hwsim plugin check``: the contract of a policy or an eviction rule, rule by rule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from hwsim.cli import options as o
from hwsim.cli.common import (
    JsonOption,
    check_target,
    key_values,
    output,
    plugin_files,
    setting_files,
    to_json,
    write_json,
)
from hwsim.errors import SettingError, did_you_mean

if TYPE_CHECKING:
    from rich.console import Console

    from hwsim.model.shape import ModelShape
    from hwsim.testing import Speed

KEPT, BROKEN, UNCHECKED = "kept", "broken", "unchecked"


def check(
    plugin: Annotated[
        str,
        typer.Argument(
            metavar="FILE.py|NAME", help="Policy or eviction rule; a file that defines both, or a name of both."
        ),
    ],
    set_: o.Parameters = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Shape to try a policy on, such as smollm2-135m: needed where it reads a file made for a model.",
            show_default="a small one",
        ),
    ] = None,
    json: JsonOption = None,
) -> None:
    """Check a policy or an eviction rule against every rule of the contract. Exit code 1 if one is broken.

    Example: hwsim plugin check ./mine.py
    """
    from hwsim.model.catalog import known_shape
    from hwsim.simulation.plugins import kinds_of

    pairs = set_ or []
    check_target(json, *plugin_files([plugin]), *setting_files(pairs))
    given, shape = key_values(pairs, "--set"), None if model is None else known_shape(model)
    found = [(kind, *kind.find(plugin)) for kind in kinds_of(plugin)]
    known = {field for _, _, each in found for field in each.model_fields}
    for key in given:
        if key not in known:
            raise SettingError(f"--set {key}: {plugin} has no parameter {key!r}{did_you_mean(key, known)}")
    verdicts = [
        _verdict(kind, name, each, {key: value for key, value in given.items() if key in each.model_fields}, shape)
        for kind, name, each in found
    ]
    if json:
        plain = [{key: value for key, value in each.items() if key != "speed"} for each in verdicts]
        write_json(json, to_json({"format": "hwsim-check", "version": 1, "checked": plain}))
    if json != "-":
        console = output()
        for verdict in verdicts:
            _show(console, verdict)
    if not all(verdict["kept"] for verdict in verdicts):
        raise typer.Exit(1)


def _verdict(kind: Any, name: str, found: Any, parameters: dict[str, str], shape: ModelShape | None) -> dict[str, Any]:
    """One plug-in's rules, each with its state; the speed is information and not part of the JSON."""
    from hwsim.simulation.plugins import POLICIES, build
    from hwsim.testing import (
        SMALL_MODEL,
        BrokenRuleError,
        check_eviction,
        check_policy,
        eviction_speed,
        policy_speed,
    )

    made = build(found, f"{kind.noun} {name}", parameters) if parameters else found
    verdict: dict[str, Any] = {"kind": kind.noun, "name": name, "kept": True}
    try:
        kept = check_policy(made, shape or SMALL_MODEL) if kind is POLICIES else check_eviction(made)
        verdict["rules"] = [{"rule": rule, "state": KEPT} for rule in kept]
    except BrokenRuleError as error:
        verdict["kept"] = False
        verdict["rules"] = [
            *({"rule": rule, "state": KEPT} for rule in error.kept),
            {"rule": error.rule, "state": BROKEN, "reason": str(error)},
            *({"rule": rule, "state": UNCHECKED} for rule in error.unchecked),
        ]
        return verdict
    instance = made if parameters else found()
    verdict["speed"] = policy_speed(instance, shape) if kind is POLICIES else eviction_speed(instance)
    return verdict


def _show(console: Console, verdict: dict[str, Any]) -> None:
    marks = _marks(console)
    console.print(Text(f"{verdict['kind']} {verdict['name']}", style="bold"))
    for rule in verdict["rules"]:
        mark, style = marks[rule["state"]]
        console.print(
            Text.assemble("  ", (mark, style), " ", (rule["rule"], "dim" if rule["state"] == UNCHECKED else ""))
        )
        if "reason" in rule:
            console.print(Text(f"      {rule['reason']}", style="red"))
    if verdict.get("speed"):
        console.print(Text(f"  {_speed(verdict['kind'], verdict['speed'])}", style="dim"))
    broken = [rule["rule"] for rule in verdict["rules"] if rule["state"] == BROKEN]
    left = sum(rule["state"] == UNCHECKED for rule in verdict["rules"])
    if not broken:
        console.print(f"{verdict['name']} keeps every rule of the contract.")
    else:
        after = f"; what comes after it ({left}) was not checked" if left else ""
        console.print(Text(f"{verdict['name']} breaks a rule of the contract{after}.", style="red"))


def _marks(console: Console) -> dict[str, tuple[str, str]]:
    """A tick, a cross and a dash, or words where the terminal's encoding has no such signs."""
    signs = {KEPT: "✓", BROKEN: "✗", UNCHECKED: "-"}
    try:
        "".join(signs.values()).encode(console.encoding)
    except UnicodeEncodeError:
        signs = {KEPT: "ok", BROKEN: "NO", UNCHECKED: "- "}
    styles = {KEPT: "green", BROKEN: "bold red", UNCHECKED: "dim"}
    return {state: (sign, styles[state]) for state, sign in signs.items()}


def _speed(kind: str, speed: Speed) -> str:
    from hwsim.util.units import show_time

    plain = "the plain top-k" if kind == "policy" else "lru"
    took = "deciding" if kind == "policy" else "serving"
    took = f"{took} a token takes {show_time(speed.seconds, 2)} in a layer of {speed.units} units"
    return f"speed, for information: {took}, {speed.ratio:.1f} x {plain}"

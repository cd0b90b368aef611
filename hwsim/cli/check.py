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
    plugins = [(kind, *kind.find(plugin)) for kind in kinds_of(plugin)]
    known = {field for _, _, plugin_class in plugins for field in plugin_class.model_fields}
    for key in given:
        if key not in known:
            raise SettingError(f"--set {key}: {plugin} has no parameter {key!r}{did_you_mean(key, known)}")
    verdicts = [
        _verdict(
            kind,
            name,
            plugin_class,
            {key: value for key, value in given.items() if key in plugin_class.model_fields},
            shape,
        )
        for kind, name, plugin_class in plugins
    ]
    if json:
        plain = [{key: value for key, value in plugin_class.items() if key != "speed"} for plugin_class in verdicts]
        write_json(json, to_json({"format": "hwsim-check", "version": 1, "checked": plain}))
    if json != "-":
        console = output()
        for verdict in verdicts:
            _show(console, verdict)
    if not all(verdict["kept"] for verdict in verdicts):
        raise typer.Exit(1)


def _verdict(kind: Any, name: str, plugin: Any, parameters: dict[str, str], shape: ModelShape | None) -> dict[str, Any]:
    """Check one plug-in and return its rules with their states, and its speed, which is not part of the JSON."""
    from hwsim.simulation.plugins import POLICIES, build
    from hwsim.testing import (
        BrokenRuleError,
        check_eviction,
        check_policy,
        eviction_speed,
        policy_speed,
    )

    subject = build(plugin, f"{kind.noun} {name}", parameters) if parameters else plugin
    verdict: dict[str, Any] = {"kind": kind.noun, "name": name, "kept": True}
    try:
        kept = check_policy(subject, shape) if kind is POLICIES else check_eviction(subject)
        verdict["rules"] = [{"rule": rule, "state": KEPT} for rule in kept]
    except BrokenRuleError as error:
        verdict["kept"] = False
        verdict["rules"] = [
            *({"rule": rule, "state": KEPT} for rule in error.kept),
            {"rule": error.rule, "state": BROKEN, "reason": str(error)},
            *({"rule": rule, "state": UNCHECKED} for rule in error.unchecked),
        ]
        return verdict
    instance = subject if parameters else plugin()
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
    """Mark and style of each state: a tick, a cross and a dash, or words if the terminal cannot encode these."""
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
    duration = "deciding" if kind == "policy" else "serving"
    duration = f"{duration} a token takes {show_time(speed.seconds, 2)} in a layer of {speed.units} units"
    return f"speed, for information: {duration}, {speed.ratio:.1f} x {plain}"

"""``hwsim list policies``, ``evictions``, ``prefetches`` and ``devices``: list all, or show one in full."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from pydantic_core import to_jsonable_python
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hwsim.cli.common import JsonOption, check_target, note, output, plugin_files, to_json, write_json
from hwsim.errors import PluginError, SettingError
from hwsim.util.files import check_new_file, spare

NameArgument = Annotated[str | None, typer.Argument(help="Show this one in full.", show_default=False)]


def _summary(plugin: type[BaseModel]) -> str:
    text = (plugin.__doc__ or "").strip()
    return text.splitlines()[0] if text else ""


def _bounds(metadata: list[Any]) -> str:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    limits = [
        f"{sign} {getattr(rule, name)}" for rule in metadata for name, sign in signs.items() if hasattr(rule, name)
    ]
    return ", ".join(limits)


def _parameters(plugin: type[BaseModel]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "default": None
            if field.is_required()
            else to_jsonable_python(field.get_default(call_default_factory=True), fallback=str),
            "required": field.is_required(),
            "bounds": _bounds(field.metadata),
            "type": getattr(field.annotation, "__name__", None)
            if isinstance(field.annotation, type)
            else str(field.annotation).replace("pathlib.", ""),
            "description": field.description or "",
        }
        for name, field in plugin.model_fields.items()
    ]


def _list_plugins(kind: Any, name: str | None, json: str | None) -> None:
    """List all plug-ins of a kind, or show one with its parameters."""
    console = output()
    check_target(json, *plugin_files([name or ""]))
    if name is not None:
        shown, plugin = kind.find(name)
        data = {"name": shown, "summary": _summary(plugin), "parameters": _parameters(plugin)}
        if json:
            write_json(json, to_json(data))
        if json != "-":
            _show_plugin(console, data)
        return
    rows = []
    for plugin_name, origin in kind.names().items():
        try:
            _, plugin = kind.find(plugin_name)
        except PluginError as error:  # list the others even if one is broken
            rows.append(
                {"name": plugin_name, "summary": f"cannot be used: {error}", "origin": origin, "parameters": []}
            )
            continue
        rows.append(
            {"name": plugin_name, "summary": _summary(plugin), "origin": origin, "parameters": _parameters(plugin)}
        )
    if json:
        write_json(json, to_json(rows))
    if json != "-":
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column(kind.noun, style="bold", no_wrap=True)
        table.add_column("what it does", overflow="fold")
        table.add_column("parameters", overflow="fold")
        for row in rows:
            words = ", ".join(f"{p['name']}={_value(p)}" for p in row["parameters"])
            table.add_row(str(row["name"]), Text(str(row["summary"])), Text(words))
        console.print(table)


def _value(parameter: dict[str, Any]) -> str:
    if parameter["required"]:
        return "required"
    return "none" if parameter["default"] is None else str(parameter["default"])


def _show_plugin(console: Console, data: dict[str, Any]) -> None:
    console.print(Text(data["name"], style="bold"), Text(data["summary"]))
    if not data["parameters"]:
        console.print("It has no parameters.")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for head in ("parameter", "default", "type", "bounds", "meaning"):
        table.add_column(head, no_wrap=head == "parameter", overflow="fold")
    for parameter in data["parameters"]:
        row = (
            parameter["name"],
            _value(parameter),
            str(parameter["type"]),
            parameter["bounds"],
            parameter["description"],
        )
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def policies(name: NameArgument = None, json: JsonOption = None) -> None:
    """List the policies, or show one with its parameters, defaults and bounds.

    Example: hwsim list policies dip-ca
    """
    from hwsim.simulation.plugins import POLICIES

    _list_plugins(POLICIES, name, json)


def evictions(name: NameArgument = None, json: JsonOption = None) -> None:
    """List the eviction rules, or show one.

    Example: hwsim list evictions
    """
    from hwsim.simulation.plugins import EVICTIONS

    _list_plugins(EVICTIONS, name, json)


def prefetches(name: NameArgument = None, json: JsonOption = None) -> None:
    """List the rules that guess what the next layer needs, or show one.

    Example: hwsim list prefetches
    """
    from hwsim.simulation.plugins import PREFETCHES

    _list_plugins(PREFETCHES, name, json)


def devices(
    name: NameArgument = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the rate of its Flash over request size: .html, .svg, .png."),
    ] = None,
    json: JsonOption = None,
) -> None:
    """List the hardware profiles, or show one with units, sources and confidence.

    Example: hwsim list devices pixel8
    """
    from hwsim.device.profile import find_profile, known_profiles, load_profile
    from hwsim.report.device import render_device, render_devices

    console = output()
    if name is not None:
        path = find_profile(name)
        check_target(json, path)
        profile = load_profile(path)
        if json:
            write_json(json, to_json(profile.model_dump(mode="json", exclude_none=True)))
        if plot:
            from hwsim.report.flashplot import write_plot

            check_new_file(plot)
            spare(plot, [path])
            write_plot(profile, plot)
            note(f"Plot written to {plot}")
        if json != "-":
            console.print(render_device(profile, path, console.width))
        return
    if plot:
        raise SettingError("--plot: draws one device; name it")
    check_target(json, *known_profiles().values())
    profiles = {profile_name: load_profile(path) for profile_name, path in known_profiles().items()}
    if json:
        write_json(
            json,
            to_json(
                {profile_name: p.model_dump(mode="json", exclude_none=True) for profile_name, p in profiles.items()}
            ),
        )
    if json != "-":
        console.print(render_devices(profiles, console.width))

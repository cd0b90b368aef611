"""Make objects from the plain values that a user chooses, for the command line, Python and sweeps alike."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from hwsim.errors import SettingError
from hwsim.policy import Policy
from hwsim.simulation.densities import Layered, read_densities
from hwsim.simulation.plugins import build, check_density
from hwsim.trace.synth import bundled


def find_trace(name: str | Path) -> Path:
    """The path of a trace; ``sample`` is the trace that comes with hwsim, unless a file has that name."""
    return bundled() if str(name) == "sample" and not Path(name).exists() else Path(name)


def make_policy(
    name: str,
    kind: type[Policy],
    parameters: Mapping[str, Any],
    density: float | str | Path | list[float] | None = None,
) -> Policy:
    """Make a policy with its parameters.

    Args:
        name: name of the policy in messages.
        kind: class of the policy.
        parameters: values of its fields; text is read as the field's type. For a field that is one number, a list has
            one value for each layer.
        density: a number, or a list or file with one number for each layer; None: the policy's default.

    Raises:
        SettingError: a parameter is unknown or out of bounds, lists differ in length, or the policy takes no density.
    """
    values, by_layer, sources = dict(parameters), {}, []
    if density is not None:
        check_density(name, kind)
        if "density" in parameters:
            raise SettingError("--density and --set density=... both set the density; give one")
        if isinstance(density, str | Path):
            by_layer["density"] = read_densities(Path(density))
            sources.append(f"--density {density}")
        else:
            values["density"] = density
    for key, value in (
        parameters.items() if density is None else (*parameters.items(), ("density", values.get("density")))
    ):
        values_by_layer = _by_layer(kind, key, value)
        if values_by_layer is not None:
            by_layer[key] = values_by_layer
            sources.append(f"--set {key}")
    if not by_layer:
        return build(kind, f"policy {name}", values)
    lengths = {len(values_of) for values_of in by_layer.values()}
    at = sources[0]
    if len(lengths) > 1:
        counts = ", ".join(f"{key} {len(values_of)}" for key, values_of in by_layer.items())
        raise SettingError(f"{at}: lists of one value for each layer must have one length: {counts}")
    copies = [
        build(
            kind,
            f"{at}: layer {layer}: policy {name}",
            values | {key: values_of[layer] for key, values_of in by_layer.items()},
        )
        for layer in range(lengths.pop())
    ]
    if not copies:
        raise SettingError(f"{at}: the list is empty; give one value for each layer")
    return Layered(layers=tuple(copies), source=at, named=tuple(by_layer))


def _by_layer(kind: type[Policy], key: str, value: Any) -> list[Any] | None:
    """The list of values by layer for a field that is one number, given as a list or its text; otherwise None."""
    field = kind.model_fields.get(key)
    if field is None or not {field.annotation, *get_args(field.annotation)} & {int, float}:
        return None
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return value if isinstance(value, list) else None


def takes_density(kind: type[Any]) -> bool:
    """Whether a policy has a density that can be chosen; the density of `dense` has only one value."""
    field = kind.model_fields.get("density")
    if field is None:
        return False
    bounds = {name: getattr(rule, name) for rule in field.metadata for name in ("ge", "le") if hasattr(rule, name)}
    return "ge" not in bounds or bounds["ge"] != bounds.get("le")

"""Values by layer: files of densities, and a policy whose parameters differ by layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import SerializeAsAny, model_serializer

from hwsim.errors import SettingError, one_line
from hwsim.policy import Group, ModelShape, Policy


class Layered(Policy):
    """A policy whose density or other parameters differ by layer: a separate copy decides in each layer.

    Attributes:
        layers: the copies.
        source: option that gave the values, for messages.
        named: fields that were given layer by layer.
    """

    layers: tuple[SerializeAsAny[Policy], ...]
    source: str
    named: tuple[str, ...] = ("density",)

    def groups(self, model: ModelShape) -> list[Group]:
        """The groups of the first layer.

        Raises:
            SettingError: there are more or fewer values than layers.
        """
        if len(self.layers) != model.num_hidden_layers:
            raise SettingError(
                f"{self.source}: has {len(self.layers)} {'densities' if self.named == ('density',) else 'values'}, "
                f"{model.name} has {model.num_hidden_layers} layers; give one for each"
            )
        return self.layers[0].groups(model)

    def in_layer(self, layer: int) -> Policy:
        """The copy with the parameters of one layer."""
        return self.layers[layer]

    def predictor_parameters(self, model: ModelShape) -> int:
        """The predictor parameters, which do not depend on the density."""
        return self.layers[0].predictor_parameters(model)

    @model_serializer
    def _parameters(self) -> dict[str, Any]:
        """The parameters of the policy, with lists for the fields that differ by layer."""
        dumped = [layer.model_dump(mode="json") for layer in self.layers]
        return dumped[0] | {name: [parameters[name] for parameters in dumped] for name in self.named}


def read_densities(path: Path) -> list[float]:
    """Read a YAML or JSON list of one MLP density for each layer, each more than 0 and at most 1.

    Raises:
        SettingError: the file cannot be read, or has another content.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise SettingError(f"--density {path}: cannot be read: {reason}") from error
    try:
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        kind = "JSON" if path.suffix == ".json" else "YAML"
        raise SettingError(f"--density {path}: is no {kind}: {one_line(error)[:120]}") from error
    if not isinstance(values, list) or not values:
        raise SettingError(f"--density {path}: must be a list of numbers, one density for each layer: [0.6, 0.5, ...]")
    for layer, value in enumerate(values):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and 0 < value <= 1):  # also refuses infinity and NaN
            shown = one_line(ValueError(repr(value)))[:60]
            raise SettingError(f"--density {path}: layer {layer}: {shown}; must be a number above 0 and at most 1")
    return [float(value) for value in values]

"""Files of unit sets, one set for each layer and group: units that are pinned, or cached when a sequence begins.

``hwsim-units`` version 1, a file of `hwsim.util.arrayfile`: one member ``layers/000/GROUP`` for each, bool ``[units]``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hwsim.errors import PluginError, SettingError
from hwsim.util.arrayfile import read_arrays, write_arrays
from hwsim.util.units import printable

FORMAT = "hwsim-units"


@dataclass(frozen=True, eq=False)
class UnitSets:
    """A set of units for each layer and group.

    Attributes:
        sets: bool ``[units]`` by ``layers/000/GROUP``.
        name: name in messages and results.
        sha256: hash of the file; None for sets without a file.
        units: what a unit is according to the file, as (indices of a unit, order of the neurons); None if not stated.
    """

    sets: dict[str, np.ndarray]
    name: str = "units"
    sha256: str | None = None
    units: tuple[int, str | None] | None = None

    def check(self, block: int, layout: str | None) -> None:
        """Refuse sets whose units differ from those of the run.

        Args:
            block: indices of a unit.
            layout: name of the order of the neurons; None: the model's own.

        Raises:
            SettingError: the units differ.
        """
        if self.units is not None and self.units != (block, layout if block > 1 else None):
            own, order = self.units
            raise SettingError(
                f"{self.name}: its units are {_called(own, order)}, those of this run are {_called(block, layout)}; "
                "make it with the same --block and --layout"
            )

    def of(self, layer: int, group: str, units: int) -> np.ndarray:
        """Return the set of a layer and group, bool ``[units]``.

        Raises:
            SettingError: the set is missing, or has another shape or dtype.
        """
        member = member_of(layer, group)
        if member not in self.sets:
            raise SettingError(f"{self.name}: lacks {member}; it must hold bool [units] for every layer and group")
        unit_set = self.sets[member]
        if unit_set.dtype != bool or unit_set.shape != (units,):
            raise SettingError(
                f"{self.name}: {member} is {unit_set.dtype} of shape {unit_set.shape}; "
                f"the group needs bool of shape ({units},)"
            )
        return unit_set


def member_of(layer: int, group: str) -> str:
    """The name of a set in a file."""
    return f"layers/{layer:03d}/{group}"


def read_units(path: Path) -> UnitSets:
    """Read a file of units.

    Raises:
        PluginError: the file does not exist or has another format.
    """
    header, sets = read_arrays(path, FORMAT)
    return UnitSets(sets, printable(path.name), hashlib.sha256(path.read_bytes()).hexdigest(), _units(path, header))


def _units(path: Path, header: dict[str, Any]) -> tuple[int, str | None] | None:
    """(indices of a unit, order of the neurons) from a header that a replay wrote; None if it does not state them."""
    settings = header.get("settings", {})
    if not isinstance(settings, dict) or "block" not in settings:
        return None
    block, layout = settings["block"], settings.get("layout")
    if not isinstance(block, int) or not isinstance(layout, str | None):
        raise PluginError(f"{path}: header: settings must name block, a whole number, and layout, text or null")
    return block, layout if block > 1 else None


def _called(block: int, layout: str | None) -> str:
    if block == 1:
        return "single indices"
    return f"blocks of {block}" + (f" in the order of the layout {layout[:12]}" if layout else "")


def write_units(path: Path, header: dict[str, Any], sets: dict[str, np.ndarray]) -> None:
    """Write a file of units; the same arguments give the same bytes.

    Args:
        path: path of the file.
        header: description of the run that the sets are from.
        sets: bool ``[units]`` by `member_of`.

    Raises:
        OutputError: the file cannot be written.
    """
    write_arrays(path, FORMAT, header, sets)

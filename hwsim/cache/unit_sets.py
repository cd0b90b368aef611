"""Files of units, for each layer and group a set: what is pinned in a cache, or what it holds when a sequence begins.

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
        name: how messages and results call it.
        sha256: of its file; None for sets without one.
        units: what the file says that its units are, (indices of a unit, order of the neurons); None: nothing.
    """

    sets: dict[str, np.ndarray]
    name: str = "units"
    sha256: str | None = None
    units: tuple[int, str | None] | None = None

    def check(self, block: int, layout: str | None) -> None:
        """Refuse sets of other units than those of a run.

        Args:
            block: indices that make up a unit.
            layout: names the order of the neurons; None: the model's own.

        Raises:
            SettingError: they are others.
        """
        if self.units is not None and self.units != (block, layout if block > 1 else None):
            own, order = self.units
            raise SettingError(
                f"{self.name}: its units are {_called(own, order)}, those of this run are {_called(block, layout)}; "
                "make it with the same --block and --layout"
            )

    def of(self, layer: int, group: str, units: int) -> np.ndarray:
        """One of the sets, bool ``[units]``.

        Raises:
            SettingError: there is none, or it is of another shape or type.
        """
        member = member_of(layer, group)
        if member not in self.sets:
            raise SettingError(f"{self.name}: lacks {member}; it must hold bool [units] for every layer and group")
        found = self.sets[member]
        if found.dtype != bool or found.shape != (units,):
            raise SettingError(
                f"{self.name}: {member} is {found.dtype} of shape {found.shape}; "
                f"the group needs bool of shape ({units},)"
            )
        return found


def member_of(layer: int, group: str) -> str:
    """The name of a set in a file."""
    return f"layers/{layer:03d}/{group}"


def read_units(path: Path) -> UnitSets:
    """Read a file of units.

    Raises:
        PluginError: no such file, or one of another kind.
    """
    header, sets = read_arrays(path, FORMAT)
    return UnitSets(sets, printable(path.name), hashlib.sha256(path.read_bytes()).hexdigest(), _units(path, header))


def _units(path: Path, header: dict[str, Any]) -> tuple[int, str | None] | None:
    """What the units are, as a replay that saves them writes it."""
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
        path: of the file.
        header: what it was made for.
        sets: bool ``[units]`` by `member_of`.

    Raises:
        OutputError: it cannot be written.
    """
    write_arrays(path, FORMAT, header, sets)

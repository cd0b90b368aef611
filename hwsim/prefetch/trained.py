"""Prefetch by two frequencies a unit, counted on another trace: need after a need, and need after none."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
from pydantic import Field

from hwsim.errors import PluginError
from hwsim.prefetch import Ahead, Prefetch, best
from hwsim.util.arrayfile import read_arrays

KIND = "hwsim-prefetch"


def member(layer: int, group: str) -> str:
    """Name of an array: ``layers/000/down``, float32 ``[2, units]``."""
    return f"layers/{layer:03d}/{group}"


def uses_member(layer: int, group: str) -> str:
    """Name of an array: ``uses/000/down``, int64 ``[units]``: tokens that needed each unit."""
    return f"uses/{layer:03d}/{group}"


class Trained(Prefetch):
    """By how often a unit was needed after a token that needed it, or did not: counted by `hwsim train prefetch`."""

    path: Path = Field(description="file of hwsim train prefetch")

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """The frequencies, by member.

        Raises:
            PluginError: there is no such file, or it is of another kind.
        """
        return read_arrays(self.path, KIND).arrays

    def guess(self, ahead: Ahead) -> np.ndarray:
        """The units most likely to be needed, as many as the previous token needed."""
        name = member(ahead.layer, ahead.group)
        frequencies = self.arrays.get(name)
        if frequencies is None or frequencies.shape != (2, ahead.units):
            state = "lacks it" if frequencies is None else f"has {frequencies.shape} there"
            raise PluginError(
                f"{self.path}: {name} must be float32 (2, {ahead.units}), the file {state}; it was trained for another "
                "model or policy, train one: hwsim train prefetch TRACE --policy NAME -o FILE"
            )
        return best(np.where(ahead.last, frequencies[1], frequencies[0]), ahead.last)

"""What units are needed after what they were: two frequencies a unit, counted on another trace."""

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


class Trained(Prefetch):
    """By how often a unit was needed after a token that needed it, or did not: counted by `hwsim train prefetch`."""

    path: Path = Field(description="file of hwsim train prefetch")

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """The frequencies, by member.

        Raises:
            PluginError: no such file, or another.
        """
        return read_arrays(self.path, KIND).arrays

    def guess(self, ahead: Ahead) -> np.ndarray:
        """The likeliest, as many as the token before needed."""
        name = member(ahead.layer, ahead.group)
        found = self.arrays.get(name)
        if found is None or found.shape != (2, ahead.units):
            told = "lacks it" if found is None else f"has {found.shape} there"
            raise PluginError(
                f"{self.path}: {name} must be float32 (2, {ahead.units}), the file {told}; it was trained for another "
                "model or policy, train one: hwsim train prefetch TRACE --policy NAME -o FILE"
            )
        return best(np.where(ahead.last, found[1], found[0]), ahead.last)

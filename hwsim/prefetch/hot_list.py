"""Prefetch of a fixed set of units: those that another trace used most often, or those of a file of units."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
from pydantic import Field

from hwsim.errors import PluginError
from hwsim.prefetch import Ahead, Prefetch, first
from hwsim.prefetch.trained import KIND, uses_member
from hwsim.util.arrayfile import read_arrays

UNITS = "hwsim-units"


class HotList(Prefetch):
    """A fixed list: the units of each layer that another trace used most often, or the experts of a file of units."""

    path: Path = Field(description="file of hwsim train prefetch, or of --save-cache")
    k: int | None = Field(None, ge=1, description="experts to predict; none: as many as the model uses")

    @cached_property
    def counted(self) -> dict[str, np.ndarray]:
        """The arrays of a file of `hwsim train prefetch`."""
        return read_arrays(self.path, KIND).arrays

    @cached_property
    def listed(self) -> dict[str, np.ndarray] | None:
        """The sets of a file of units; None if it is of another kind."""
        try:
            return read_arrays(self.path, UNITS).arrays
        except PluginError:
            return None

    def guess(self, ahead: Ahead) -> np.ndarray:
        """The same units for every token: k experts, of other units as many as the previous token needed."""
        if self.listed is not None:
            return self._set(ahead, self.listed)
        name = uses_member(ahead.layer, ahead.group)
        uses = self.counted.get(name)
        if uses is None or uses.shape != (ahead.units,):
            state = "lacks it" if uses is None else f"has {uses.shape} there"
            raise PluginError(
                f"{self.path}: {name} must be int64 ({ahead.units},), the file {state}; it is of another model, policy "
                "or version, make one: hwsim train prefetch TRACE --policy NAME -o FILE"
            )
        count = ahead.experts(self.k) or np.count_nonzero(ahead.last, axis=1)
        counts = np.broadcast_to(np.minimum(count, np.count_nonzero(uses)), len(ahead.last))
        return first(np.broadcast_to(uses, ahead.last.shape), counts)

    def _set(self, ahead: Ahead, sets: dict[str, np.ndarray]) -> np.ndarray:
        """The set of a file of units."""
        name = f"layers/{ahead.layer:03d}/{ahead.group}"
        units = sets.get(name)
        if not ahead.used:
            raise PluginError(
                f"{self.path}: a file of units lists experts, and group {ahead.group} holds none; give a file of "
                "hwsim train prefetch"
            )
        if units is None or units.dtype != bool or units.shape != (ahead.units,):
            state = "lacks it" if units is None else f"has {units.dtype} {units.shape} there"
            raise PluginError(f"{self.path}: {name} must be bool ({ahead.units},), the file {state}")
        if self.k is not None and np.count_nonzero(units) > ahead.experts(self.k):
            raise PluginError(
                f"k={self.k}: {self.path} lists {np.count_nonzero(units)} experts in layer {ahead.layer} and does not "
                "rank them; leave k out, or give a file of hwsim train prefetch"
            )
        return np.broadcast_to(units, ahead.last.shape).copy()

"""What policies that read a calibration share: the file of ``hwsim fit thresholds`` (docs/howto/calibration.md)."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hwsim.policy import Context, Field, ModelShape, PluginError, Policy, read_arrays, threshold

_KIND = "hwsim-calibration"


class Calibration(NamedTuple):
    """An open calibration."""

    path: Path
    header: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @property
    def anew(self) -> str:
        """The command that makes it anew."""
        return f"hwsim fit thresholds TRACE -o {self.path}"

    def check(self, model: ModelShape, signals: list[str], part: str) -> None:
        """Refuse what was made for another model, or lacks `part` of one of the signals.

        Raises:
            PluginError: with the command that makes one that fits.
        """
        model = model.whole
        made, wanted = self.header.get("model"), model.model_dump()
        if not isinstance(made, dict) or not isinstance(made.get("name"), str):
            raise PluginError(f"{self.path}: its header names no model; make it anew: {self.anew}")
        if made["name"] != model.name:
            raise PluginError(
                f"{self.path}: was made for {made['name']}, the model is {model.name}; make one from a trace of "
                f"{model.name}: {self.anew}"
            )
        if other := [field for field in wanted if made.get(field) != wanted[field]]:
            of_both = f"{other[0]} {made.get(other[0])}, the model has {wanted[other[0]]}"
            what = "other layers than the model" if other[0] == "layers" else of_both
            raise PluginError(
                f"{self.path}: was made for a {model.name} with {what}; make one from its own trace: {self.anew}"
            )
        for signal in signals:
            for layer in model.layers_with(signal):
                widths = {"quantiles": None, "mean": model.signal_width(signal, layer)}
                self._check_member(member(layer, signal, part), widths[part], signal, ",".join(signals))

    def _check_member(self, name: str, width: int | None, signal: str, needed: str) -> None:
        array = self.arrays.get(name)
        if array is None:
            known = self.header.get("signals")
            if isinstance(known, list) and signal in known:
                raise PluginError(f"{self.path}: lacks the member {name!r}, it is damaged; make it anew: {self.anew}")
            raise PluginError(
                f"{self.path}: lacks the signal {signal}; calibrate a trace that has it: "
                f"hwsim record --model {self.header['model']['name']} --signals {needed} -o TRACE, then {self.anew}"
            )
        right = array.dtype == np.float32 and array.ndim == 1 and array.size == (width or max(2, array.size))
        if not right or (array < 0).any() or (width is None and (np.diff(array) < 0).any()):
            rule = f"{width} float32 from 0" if width else "ascending float32 from 0, one for each level"
            raise PluginError(f"{self.path}: {name}: must be {rule}; make it anew: {self.anew}")

    def threshold(self, layer: int, signal: str, keep: float) -> np.float32:
        """What |signal| must exceed for a share `keep` of the calibration's values to pass."""
        return threshold(self.arrays[member(layer, signal, "quantiles")], keep)

    def mean(self, layer: int, signal: str) -> np.ndarray:
        """Mean |signal| of each unit, float32 ``[units]``."""
        return self.arrays[member(layer, signal, "mean")]


def member(layer: int, signal: str, part: str) -> str:
    """Name of an array: ``layers/000/gate/quantiles``."""
    return f"layers/{layer:03d}/{signal}/{part}"


class Calibrated(Policy):
    """A policy that reads a calibration."""

    calibration: Path | None = Field(None, description="file of hwsim fit thresholds; must be given")

    @cached_property
    def calibrated(self) -> Calibration:
        """The file.

        Raises:
            PluginError: there is none, or it is damaged; with the command that makes it.
        """
        if self.calibration is None:
            raise PluginError(
                "needs a calibration; make one from a trace: hwsim fit thresholds TRACE -o FILE, and give it: "
                "--set calibration=FILE"
            )
        try:
            return Calibration(self.calibration, *read_arrays(self.calibration, _KIND))
        except PluginError as error:
            raise PluginError(f"{error}; make it anew: hwsim fit thresholds TRACE -o {self.calibration}") from error


class Thresholds(Calibrated):
    """A policy whose masks are what exceeds a threshold: |signal| of the group's one signal, strictly."""

    def keep_of(self, model: ModelShape, layer: int, signal: str) -> float:
        """Share of the calibration's values that a threshold lets pass."""
        raise PluginError(f"{type(self).__name__} must define keep_of(self, model, layer, signal)")

    def select(self, ctx: Context) -> np.ndarray:
        """Everything that exceeds the threshold of this layer, which is looked up once a sequence."""
        signal = ctx.group.needs[0]
        limit = ctx.state.get("limit")
        if limit is None:
            keep = self.keep_of(ctx.model, ctx.layer, signal)
            limit = ctx.state["limit"] = self.calibrated.threshold(ctx.layer, signal, keep)
        mask: np.ndarray = np.abs(ctx.signals[signal]) > limit
        return mask

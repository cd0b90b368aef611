"""TEAL (arXiv 2408.14690): thresholds on the inputs of all seven matrices of a block, attention too.

Matrices that share an input share a threshold, and so a mask: q, k and v; gate and up.
"""

from __future__ import annotations

import numpy as np

from hwsim.policy import Field, Group, ModelShape, PluginError
from hwsim_policies._calibration import Calibration, Thresholds, member

_SIGNALS = ["attn_input", "attn_output", "input", "glu"]


class Teal(Thresholds):
    """TEAL: columns of all matrices of a block, attention too, where |input| exceeds the layer's threshold."""

    density: float = Field(0.5, gt=0, le=1, description="share of the MLP that a token reads; attention goes along")

    def keep_of(self, model: ModelShape, layer: int, signal: str) -> float:
        """The same keep everywhere or, where the calibration holds a greedy allocation, the one on its way.

        All layers stand at the same step of the way, at which their MLPs together have the density.
        """
        paths = _paths(self.calibrated, model)
        if paths is None or self.density == 1:
            return self.density
        step = float(np.interp(-self.density, -_mlp_density(paths, model), np.arange(paths["glu"].shape[1])))
        return float(np.interp(step, np.arange(paths[signal].shape[1]), paths[signal][layer]))

    def groups(self, model: ModelShape) -> list[Group]:
        """One group for each signal that enters matrices."""
        self.calibrated.check(model, _SIGNALS, "quantiles")
        paths = _paths(self.calibrated, model)
        if paths is not None and self.density < (least := _mlp_density(paths, model)[-1]):
            raise PluginError(
                f"density={self.density}: the allocation of {self.calibration} goes down to {least:.3f}; choose a "
                f"higher --density, or a calibration without --model: {self.calibrated.anew}"
            )
        inputs = [f"{matrix}.column" for matrix in model.mlp[:-1]]
        return [
            Group("attention", axis="hidden", slices=["q.column", "k.column", "v.column"], needs=["attn_input"]),
            Group("output", axis="attention", slices=["o.column"], needs=["attn_output"]),
            Group("input", axis="hidden", slices=inputs, needs=["input"]),
            Group("down", axis="neuron", slices=["down.column"], needs=["glu"]),
        ]


def _paths(calibration: Calibration, model: ModelShape) -> dict[str, np.ndarray] | None:
    """Keeps by signal, float32 ``[layers, steps]``, on the way from all to little; None: no allocation was measured.

    Raises:
        PluginError: they are damaged.
    """
    if "allocation" not in calibration.header:
        return None
    paths = {}
    for signal in _SIGNALS:
        names = [member(layer, signal, "keeps") for layer in range(model.num_hidden_layers)]
        rows = [calibration.arrays.get(name, np.empty(0)) for name in names]
        sound = all(row.dtype == np.float32 and row.ndim == 1 and row.shape == rows[0].shape for row in rows)
        if not sound or rows[0].size < 2 or any(row[0] != 1 or row[-1] < 0 or (np.diff(row) > 0).any() for row in rows):
            raise PluginError(
                f"{calibration.path}: {names[0]} and its like must be float32 of one length, falling from 1; "
                f"make it anew: {calibration.anew} --model {model.name}"
            )
        paths[signal] = np.stack(rows)
    if len({path.shape for path in paths.values()}) > 1:
        raise PluginError(
            f"{calibration.path}: the keeps of its signals differ in length; make it anew: "
            f"{calibration.anew} --model {model.name}"
        )
    return paths


def _mlp_density(paths: dict[str, np.ndarray], model: ModelShape) -> np.ndarray:
    """Share of all MLPs that is read at each step: float64 ``[steps]``, falling from 1."""
    matrices = len(model.mlp)
    share: np.ndarray = ((matrices - 1) * paths["input"].astype(np.float64) + paths["glu"]) / matrices
    return share.mean(axis=0)

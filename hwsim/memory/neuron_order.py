"""The order in which a model's neurons lie in Flash, and the blocks of neighbours that are read as one unit.

A unit of a group is a block of B indices that lie side by side: in the axis's own order, or, for neurons, in the order
of a layout. Policies decide single indices; this module converts between masks of indices and masks of blocks.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hwsim.errors import PluginError, SettingError
from hwsim.model.shape import ModelShape
from hwsim.util.arrayfile import read_arrays, write_arrays

KIND = "hwsim-layout"
AXIS = "neuron"
_LARGEST = float(np.finfo(np.float32).max)


class Blocks:
    """The division of a group's axis in one layer into units of several neighbours.

    Args:
        indices: size of the axis.
        block: neighbours of a unit; the last unit has the remaining indices.
        order: int ``[indices]``: index at each place; None: the axis's own order.
    """

    def __init__(self, indices: int, block: int, order: np.ndarray | None = None) -> None:
        self.units = -(-indices // block)
        places = np.arange(indices) // block
        self._unit = places.copy()  # of each index
        if order is not None:
            self._unit[order] = places

    def sums(self, scores: np.ndarray) -> np.ndarray:
        """Score of each unit, float32 ``[units]``: the sum over its indices, in float64 in the order of indices.

        Infinite scores count as the largest float32, so that a sum is never NaN.
        """
        finite = np.clip(scores, -_LARGEST, _LARGEST)
        with np.errstate(over="ignore"):
            return np.bincount(self._unit, finite, self.units).astype(np.float32)

    def touched(self, mask: np.ndarray) -> np.ndarray:
        """Units that contain any index of a mask: bool ``[indices]`` -> bool ``[units]``."""
        units = np.zeros(self.units, bool)
        units[self._unit[mask]] = True
        return units

    def expand(self, units: np.ndarray, out: np.ndarray) -> np.ndarray:
        """All indices of the units: bool ``[units]`` -> `out`, bool ``[indices]``."""
        return np.take(units, self._unit, out=out)


@dataclass(frozen=True, eq=False)
class Layout:
    """Orders of the neurons of every layer.

    Attributes:
        header: header of the file.
        orders: int32 ``[layers, neurons]``: neuron at each place.
    """

    header: dict[str, Any]
    orders: np.ndarray

    @cached_property
    def digest(self) -> str:
        """Hash that identifies the orders in a result."""
        return hashlib.sha256(np.ascontiguousarray(self.orders, np.int32).tobytes()).hexdigest()

    def check(self, model: ModelShape) -> None:
        """Refuse a layout that was made for another model.

        Raises:
            SettingError: the number of layers or neurons differs.
        """
        model.check_alike("--layout")
        layers, neurons = self.orders.shape
        if (layers, neurons) != (model.num_hidden_layers, model.intermediate_size):
            name = self.header.get("model", {}).get("name", "a model")
            raise SettingError(
                f"--layout: was made for {name} with {layers} layers of {neurons} neurons; {model.name} has "
                f"{model.num_hidden_layers} of {model.intermediate_size}; make one: hwsim fit layout TRACE"
            )


def read_layout(path: Path) -> Layout:
    """Read a file of `hwsim fit layout`.

    Raises:
        PluginError: there is no such file, or it holds no orders.
    """
    header, arrays = read_arrays(path, KIND)
    names = [f"layers/{layer:03d}/{AXIS}" for layer in range(len(arrays))]
    if not names or sorted(arrays) != names:
        raise PluginError(f"{path}: must hold layers/000/{AXIS} and so on, one for each layer, and nothing else")
    first = arrays[names[0]].shape
    for name in names:
        order = arrays[name]
        if order.ndim != 1 or order.shape != first or order.dtype.kind not in "iu":
            raise PluginError(f"{path}: {name} is {order.dtype} {order.shape}, needs whole numbers of shape {first}")
        if not np.array_equal(np.sort(order), np.arange(len(order))):
            raise PluginError(f"{path}: {name} must name each neuron from 0 to {len(order) - 1} once")
    if not isinstance(header.get("model", {}), dict):
        raise PluginError(f"{path}: header: model must be an object")
    return Layout(header, np.stack([arrays[name] for name in names]).astype(np.int32))


def write_layout(path: Path, layout: Layout) -> None:
    """Write a layout to a file; the same layout gives the same bytes.

    Raises:
        OutputError: the file cannot be written.
    """
    orders = {f"layers/{layer:03d}/{AXIS}": order for layer, order in enumerate(layout.orders.astype(np.int32))}
    write_arrays(path, KIND, layout.header, orders)

"""The search space: density, split and gamma by thirds of the layers; shares of the cache; eviction; adapter."""

from __future__ import annotations

import math
from typing import Any, Protocol

from hwsim.policy import ModelShape

THIRDS = ("first", "middle", "last")  # of the layers
EVICTIONS = ("lfu", "lru")
_SLOPE, _SHIFT = 0.9849930711, 0.2997647759  # the authors' split, on the scale of logits (arXiv 2412.01380)
_LEAST = 0.02  # least share of a group's units

_EQUAL = 1000  # weight of a matrix with an equal share of the cache

Point = dict[str, Any]
"""A point of the space: ``density``, ``gamma_first`` and so on, each a plain value."""


class Trial(Protocol):
    """The methods of an Optuna trial that are used."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number between `low` and `high`; on a logarithmic scale with `log`."""

    def suggest_categorical(self, name: str, choices: list[Any]) -> Any:
        """One of the choices."""


def suggest(trial: Trial, low: float, *, adapter: bool) -> Point:
    """Return a point to try.

    Args:
        trial: a trial of the study.
        low: least MLP density.
        adapter: whether there is an adapter, which may be on or off.
    """
    point: Point = {"density": trial.suggest_float("density", low, 0.98)}
    for third in THIRDS[1:]:  # relative to the first third, in logits
        point[f"density_{third}"] = trial.suggest_float(f"density_{third}", -0.5, 0.5)
    for third in THIRDS:
        point[f"split_{third}"] = trial.suggest_float(f"split_{third}", -0.6, 0.6)  # input above the authors' split
        point[f"gamma_{third}"] = trial.suggest_float(f"gamma_{third}", 0.05, 1.0, log=True)
    point["share_down"] = trial.suggest_float(
        "share_down", -1.0, 1.0
    )  # logarithm of its share relative to an equal share
    point["eviction"] = trial.suggest_categorical("eviction", list(EVICTIONS))
    if adapter:
        point["lora"] = trial.suggest_categorical("lora", [False, True])
    return point


def uniform(density: float, gamma: float, *, adapter: bool | None = None) -> Point:
    """The point of DIP-CA as its authors set it: one density, their split, one gamma, LFU.

    Args:
        density: density of the MLP.
        gamma: gamma of all layers.
        adapter: whether the adapter is on; None: there is none.
    """
    point: Point = {"density": density, **{f"density_{third}": 0.0 for third in THIRDS[1:]}}
    for third in THIRDS:
        point |= {f"split_{third}": 0.0, f"gamma_{third}": gamma}
    return point | {"share_down": 0.0, "eviction": "lfu"} | ({} if adapter is None else {"lora": adapter})


def settings_of(point: Point, model: ModelShape) -> dict[str, Any]:
    """The settings of a point, by the names of a sweep's keys; lists have one value for each layer.

    ``cache_shares``, if they are not equal, are weights by group, as in the option. Keeps are limited to their bounds:
    if the split asks for more than all of a group, the group is kept whole.
    """
    layers, matrices = model.num_hidden_layers, len(model.mlp)
    densities, inputs, gammas = [], [], []
    for layer in range(layers):
        third = THIRDS[3 * layer // layers]
        logit = math.log(point["density"] / (1 - point["density"])) + point.get(f"density_{third}", 0.0)
        density = round(1 / (1 + math.exp(-logit)), 6)
        keep = 1 / (1 + math.exp(-(_SLOPE * logit + _SHIFT + point[f"split_{third}"])))
        # down = matrices x density - (matrices - 1) x keep must lie between the least and 1
        least, most = (matrices * density - 1) / (matrices - 1), (matrices * density - _LEAST) / (matrices - 1)
        keep = min(max(keep, least, _LEAST), most, 1.0)
        densities.append(density)
        # rounded up if all of down is kept, so that the keep of down does not exceed 1
        inputs.append(math.ceil(keep * 1e6) / 1e6 if keep == least else math.floor(keep * 1e6) / 1e6)
        gammas.append(round(point[f"gamma_{third}"], 6))
    chosen = {
        "policy": "dip-ca", "density": densities, "set": {"keep_input": inputs, "gamma": gammas},
        "eviction": point["eviction"],
    }  # fmt: skip
    if share := point["share_down"]:
        chosen["cache_shares"] = f"input={_EQUAL * (matrices - 1)},down={round(_EQUAL * math.exp(share))}"
    return chosen

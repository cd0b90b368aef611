"""Prefetch rules: each file defines one rule, and this module is their contract.

While a layer is computed, Flash is idle most of the time. A rule predicts the masks of the next layer. Predicted units
that are not cached are read in that idle time, into a separate buffer. This changes neither masks nor hits nor caches,
only the time at which misses arrive and the number of bytes read.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from hwsim.errors import PluginError
from hwsim.util.kernels import top_k


class Ahead(NamedTuple):
    """Input of a prediction: the masks of one group of one layer are predicted, for some tokens.

    Attributes:
        layer: number of the layer.
        group: name of the group.
        units: number of its units.
        last: bool ``[tokens, units]``: the mask of the previous token in this layer; no unit is set for the first token
            of a sequence.
        signals: signals of the previous layer that the rule asks for, float32 ``[tokens, width]`` by name; empty at
            layer 0.
        needs: the signals from which the policy decides this group.
        truth: bool ``[tokens, units]``: the masks themselves, only for a rule that is an oracle.
    """

    layer: int
    group: str
    units: int
    last: np.ndarray
    signals: dict[str, np.ndarray]
    needs: tuple[str, ...]
    truth: np.ndarray | None


class Prefetch(BaseModel):
    """Base of all prefetch rules.

    Attributes:
        signals: names of the previous layer's signals that the rule uses, if the trace has them.
        oracle: True for a rule that receives the masks themselves: a bound, not a practical rule.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    signals: ClassVar[tuple[str, ...]] = ()
    oracle: ClassVar[bool] = False

    def guess(self, ahead: Ahead) -> np.ndarray:
        """The predicted masks: bool ``[tokens, units]``. Predicting a unit that is already cached costs nothing."""
        raise PluginError(f"{type(self).__name__} must define guess(self, ahead)")


def best(scores: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Mask of each token's best scores, as many as the token's mask in `like` holds: bool ``[tokens, units]``.

    Args:
        scores: ``[tokens, units]``.
        like: bool ``[tokens, units]``.
    """
    counts = np.count_nonzero(like, axis=1)
    rows = [
        top_k(row, int(count)) if count else np.zeros(len(row), bool) for row, count in zip(scores, counts, strict=True)
    ]
    return np.array(rows, bool).reshape(scores.shape)

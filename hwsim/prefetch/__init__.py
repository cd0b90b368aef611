"""Prefetch rules: each file defines one rule, and this module is their contract.

While a layer is computed, Flash is idle most of the time. A rule predicts the masks of the next layer. Predicted units
that are not cached are read in that idle time, into a separate buffer. This changes neither masks nor hits nor caches,
only the time at which misses arrive and the number of bytes read.

Units are rows, columns or neurons of matrices, or experts. Masks of prompts are not predicted.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from hwsim.errors import PluginError
from hwsim.util.kernels import top_k


class Ahead(NamedTuple):
    """Input of a prediction: the masks of one group of one layer are predicted, for some tokens.

    If the units are experts, the token before the first decoded one is the last of the prompt, with the experts that
    the model's router chose for it. Of other units nothing is known about a prompt.

    Attributes:
        layer: number of the layer.
        group: name of the group.
        units: number of its units.
        last: bool ``[tokens, units]``: the mask of the previous token in this layer; no unit is set for the first token
            of a sequence.
        signals: signals that the rule asks for and that are known while the previous layer runs, float32
            ``[tokens, width]`` by name: those of the previous layer, and this layer's ``router_ahead``; empty at
            layer 0.
        needs: the signals from which the policy decides this group.
        truth: bool ``[tokens, units]``: the masks themselves, only for a rule that is an oracle.
        used: experts that the model's router chooses for a token; 0 if the units are no experts.
        order: int64 ``[tokens, used]``: the experts that the router chose for the previous token, by falling weight,
            -1 where there are fewer. None if the units are no experts, or without a trace that tells.
        uses: int64 ``[tokens, units]``: how many earlier tokens of the sequence needed each unit; only for a rule that
            says `counts`.
    """

    layer: int
    group: str
    units: int
    last: np.ndarray
    signals: dict[str, np.ndarray]
    needs: tuple[str, ...]
    truth: np.ndarray | None
    used: int = 0
    order: np.ndarray | None = None
    uses: np.ndarray | None = None

    def experts(self, k: int | None) -> int:
        """Number of experts to predict for a token: `k`, or as many as the model uses; 0 if the units are no experts.

        Raises:
            PluginError: `k` is given, but the units are no experts, or there are fewer.
        """
        if k is None:
            return self.used
        if not self.used:
            raise PluginError(f"k={k}: counts experts, and group {self.group} holds none; leave k out")
        if k > self.units:
            raise PluginError(f"k={k}: layer {self.layer} has {self.units} experts; set k to at most {self.units}")
        return k


class Prefetch(BaseModel):
    """Base of all prefetch rules.

    Attributes:
        signals: names of the signals that the rule uses, if the trace has them, see `Ahead.signals`.
        required: names of signals without which a trace is refused.
        counts: True for a rule that uses `Ahead.uses`.
        oracle: True for a rule that receives the masks themselves: a bound, not a practical rule.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    signals: ClassVar[tuple[str, ...]] = ()
    required: ClassVar[tuple[str, ...]] = ()
    counts: ClassVar[bool] = False
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
    return first(scores, np.count_nonzero(like, axis=1))


def first(scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mask of each token's best scores: bool ``[tokens, units]``; ties are broken by the lower index.

    Args:
        scores: ``[tokens, units]``.
        counts: int ``[tokens]``: number of units of each token.
    """
    rows = [
        top_k(row, int(count)) if count else np.zeros(len(row), bool) for row, count in zip(scores, counts, strict=True)
    ]
    return np.array(rows, bool).reshape(scores.shape)

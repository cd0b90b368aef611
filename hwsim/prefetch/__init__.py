"""Guesses of what the next layer will need, so that Flash can read ahead: one file a rule; this page is the contract.

While a layer is computed, Flash is idle most of the time. A rule guesses the masks of the layer after it; what of a
guess is not in the cache is read in that idle time, into a buffer of its own. It changes neither masks nor hits nor
caches: only when misses arrive, and how much is read.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from hwsim.errors import PluginError
from hwsim.util.kernels import top_k


class Ahead(NamedTuple):
    """What may be known when some tokens' masks of one group of one layer are guessed.

    Attributes:
        layer: whose mask is guessed.
        group: its name.
        units: of the group.
        last: bool ``[tokens, units]``: the mask of the token before in this layer; of a sequence's first: nothing.
        signals: of the layer before, float32 ``[tokens, width]`` by name, those that the rule asks for; at layer 0
            none.
        needs: the signals from which the policy decides this group.
        truth: bool ``[tokens, units]``: the masks, where the rule says that it is an oracle.
    """

    layer: int
    group: str
    units: int
    last: np.ndarray
    signals: dict[str, np.ndarray]
    needs: tuple[str, ...]
    truth: np.ndarray | None


class Prefetch(BaseModel):
    """Base of all rules.

    Attributes:
        signals: of the layer before that the rule looks at, where the trace has them.
        oracle: True for a rule that is told the masks themselves: a bound, not a way.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    signals: ClassVar[tuple[str, ...]] = ()
    oracle: ClassVar[bool] = False

    def guess(self, ahead: Ahead) -> np.ndarray:
        """The guess: bool ``[tokens, units]``. What is guessed and cached already costs nothing."""
        raise PluginError(f"{type(self).__name__} must define guess(self, ahead)")


def best(scores: np.ndarray, like: np.ndarray) -> np.ndarray:
    """As many of the best scores, ``[tokens, units]``, as a mask of each token, bool ``[tokens, units]``, holds."""
    counts = np.count_nonzero(like, axis=1)
    rows = [
        top_k(row, int(count)) if count else np.zeros(len(row), bool) for row, count in zip(scores, counts, strict=True)
    ]
    return np.array(rows, bool).reshape(scores.shape)

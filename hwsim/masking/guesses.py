"""Predictions of a prefetch rule during a run, and how many of their units are useful."""

from __future__ import annotations

from typing import ClassVar, Protocol

import numpy as np

from hwsim.errors import ContractError
from hwsim.masking.counts import Served
from hwsim.masking.observers import Observer
from hwsim.memory.groups import Place, Plans
from hwsim.model.shape import ModelShape
from hwsim.prefetch import Ahead, Prefetch
from hwsim.trace.sequences import Sequences
from hwsim.util.calls import call


class Signals(Protocol):
    """A source of signals."""

    def read(self, layer: int, signal: str, start: int, stop: int) -> np.ndarray:
        """Values of a signal, float32 ``[stop - start, width]``."""

    def has(self, signal: str) -> bool:
        """Whether the source has a signal."""

    @property
    def model(self) -> ModelShape:
        """The model, which tells the layers that have a signal."""


class Guesses(Observer):
    """Asks a prefetch rule to predict each mask, and counts predicted and useful units.

    Attributes:
        ahead: int64 ``[tokens, layers, slots]``: predicted units that are not cached.
        useful: int64 ``[tokens, layers, slots]``: units of these that are needed.

    Args:
        rule: predicts masks.
        plans: the groups.
        sequences: windows of the trace.
        source: signals for the predictions, or None.
    """

    sees_cache: ClassVar[bool] = True
    any_order: ClassVar[bool] = True

    def __init__(self, rule: Prefetch, plans: Plans, sequences: Sequences, source: Signals | None = None) -> None:
        shape = (sequences.decoded_tokens, plans.layers, plans.slots)
        self.ahead, self.useful = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self._rule, self._source = rule, source
        self._starts, self._rows = sequences.starts, sequences.rows()
        self._last: dict[tuple[int, int], np.ndarray] = {}  # mask of the token before, by layer and slot

    def masks(self, place: Place, token: int, served: Served) -> None:
        """Predict the masks that were served, and count."""
        assert served.before is not None
        masks = served.units
        at = slice(token, token + len(masks)), place.layer, place.slot
        guessed = self._guess(place, token, masks) & ~served.before
        self.ahead[at] = np.count_nonzero(guessed, axis=1)
        self.useful[at] = np.count_nonzero(guessed & masks & ~served.before, axis=1)

    def _guess(self, place: Place, token: int, masks: np.ndarray) -> np.ndarray:
        layer, plan, rule = place.layer, place.plan, self._rule
        before = self._last.get((layer, place.slot))
        last = np.zeros_like(masks)
        last[1:] = masks[:-1]
        if before is not None and token not in self._starts:
            last[0] = before
        self._last[layer, place.slot] = masks[-1].copy()
        signals = {}
        if layer and self._source is not None:
            row = int(self._rows[token])
            for name in rule.signals:
                if self._source.has(name) and self._source.model.signal_width(name, layer - 1):
                    signals[name] = self._source.read(layer - 1, name, row, row + len(masks))
        truth = masks if rule.oracle else None
        ahead = Ahead(layer, plan.name, plan.units, last, signals, tuple(plan.group.needs), truth)
        who = f"prefetch {type(rule).__name__}"
        guessed = call(who, rule.guess, ahead)
        if not isinstance(guessed, np.ndarray) or guessed.dtype != bool or guessed.shape != masks.shape:
            raise ContractError(f"{who}: guess() must return bool {masks.shape}")
        return guessed

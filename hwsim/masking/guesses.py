"""Predictions of a prefetch rule during a run, and how many of their units are useful."""

from __future__ import annotations

from typing import ClassVar, Protocol

import numpy as np

from hwsim.errors import ContractError
from hwsim.masking.counts import Served
from hwsim.masking.observers import Observer
from hwsim.memory.groups import Place, Plans
from hwsim.model.shape import ROUTER_AHEAD, ModelShape
from hwsim.prefetch import Ahead, Prefetch
from hwsim.trace.sequences import Decoded, Sequences
from hwsim.util.calls import call


class Signals(Protocol):
    """A source of signals."""

    def read(self, layer: int, signal: str, start: int, stop: int) -> np.ndarray:
        """Values of a signal, float32 ``[stop - start, width]``; ``experts``: int64."""

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
        model: the model, which tells how many experts its router chooses; only for groups of experts.
    """

    sees_cache: ClassVar[bool] = True
    any_order: ClassVar[bool] = True

    def __init__(
        self, rule: Prefetch, plans: Plans, sequences: Sequences, source: Signals | None = None,
        model: ModelShape | None = None,
    ) -> None:  # fmt: skip
        shape = (sequences.decoded_tokens, plans.layers, plans.slots)
        self.ahead, self.useful = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self._rule, self._source, self._model = rule, source, model
        self._parts = {part.tokens.start: part for part in sequences.decoded()}
        self._first_rows, self._rows = sequences.first_rows, sequences.rows()
        self._past: dict[tuple[int, int], _Past] = {}  # by layer and slot

    def masks(self, place: Place, token: int, served: Served) -> None:
        """Predict the masks that were served, and count."""
        assert served.before is not None
        masks = served.units
        at = slice(token, token + len(masks)), place.layer, place.slot
        guessed = self._guess(place, token, masks) & ~served.before
        self.ahead[at] = np.count_nonzero(guessed, axis=1)
        self.useful[at] = np.count_nonzero(guessed & masks & ~served.before, axis=1)

    def _guess(self, place: Place, token: int, masks: np.ndarray) -> np.ndarray:
        rule, plan = self._rule, place.plan
        past = self._past.get(place[:2])
        if past is None or token in self._parts:
            past = self._past[place[:2]] = self._begin(place, self._parts[token])
        order = None if past.chosen is None else past.chosen[past.tokens : past.tokens + len(masks)]
        last, uses = past.go_on(masks)
        row = int(self._rows[token])
        ahead = Ahead(
            place.layer, plan.name, plan.units, last, self._signals(place.layer, row, row + len(masks)),
            tuple(plan.group.needs), masks if rule.oracle else None, past.used, order, uses,
        )  # fmt: skip
        who = f"prefetch {type(rule).__name__}"
        guessed = call(who, rule.guess, ahead)
        if not isinstance(guessed, np.ndarray) or guessed.dtype != bool or guessed.shape != masks.shape:
            raise ContractError(f"{who}: guess() must return bool {masks.shape}")
        return guessed

    def _signals(self, layer: int, start: int, stop: int) -> dict[str, np.ndarray]:
        """The signals that the rule asks for and that are known while the layer before runs."""
        source = self._source
        if not layer or source is None:
            return {}
        layer_of = {name: layer if name == ROUTER_AHEAD else layer - 1 for name in self._rule.signals}
        return {
            name: source.read(at, name, start, stop)
            for name, at in layer_of.items()
            if source.has(name) and source.model.signal_width(name, at)
        }

    def _begin(self, place: Place, part: Decoded) -> _Past:
        """The past of a place at the first decoded token of a sequence: what is known of the prompt."""
        plan, source = place.plan, self._source
        experts = self._model.by_layer[place.layer].experts if plan.routed and self._model is not None else None
        past = _Past(plan.units, 0 if experts is None else experts.used, counts=self._rule.counts)
        if experts is None or source is None:
            return past
        start, stop = self._first_rows[part.number], part.rows.start
        chosen = source.read(place.layer, "experts", start, part.rows.stop)
        past.chosen = np.full((len(part.rows), past.used), -1, np.int64)
        prompt = stop - start
        past.chosen[0 if prompt else 1 :] = chosen[max(0, prompt - 1) : -1]
        if prompt:
            past.last[_units(chosen[prompt - 1])] = True
        if past.uses is not None:
            past.uses += np.bincount(_units(chosen[:prompt]), minlength=plan.units)
        return past


def _units(chosen: np.ndarray) -> np.ndarray:
    """The experts of some rows, without the -1 at the end of shorter rows."""
    return chosen[chosen >= 0]


class _Past:
    """What the tokens of a sequence needed so far in one place.

    Attributes:
        last: bool ``[units]``: the mask of the token before.
        uses: int64 ``[units]``: tokens that needed each unit; None if it is not counted.
        used: experts that the model uses for a token; 0 if the units are no experts.
        chosen: int64 ``[decoded tokens, used]``: the experts that the router chose for the token before each.
        tokens: decoded tokens so far.
    """

    def __init__(self, units: int, used: int, *, counts: bool) -> None:
        self.last: np.ndarray = np.zeros(units, bool)
        self.uses: np.ndarray | None = np.zeros(units, np.int64) if counts else None
        self.used, self.tokens = used, 0
        self.chosen: np.ndarray | None = None

    def go_on(self, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Add the masks of the next tokens; return the mask before each of them, and the uses before each."""
        last = np.concatenate([self.last[None], masks[:-1]])
        self.last = masks[-1].copy()
        self.tokens += len(masks)
        if self.uses is None:
            return last, None
        sums = np.cumsum(masks, axis=0, dtype=np.int64) + self.uses
        uses = np.concatenate([self.uses[None], sums[:-1]])
        self.uses = sums[-1]
        return last, uses

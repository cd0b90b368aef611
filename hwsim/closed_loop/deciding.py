"""Decide the masks of the passes of a running model by a policy, and serve them from its caches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from hwsim.cache.experts import in_order
from hwsim.closed_loop.prompts import Prompts
from hwsim.errors import ModelError, SettingError
from hwsim.masking.choosers import Demand
from hwsim.masking.counts import Counts, Served, serve_units
from hwsim.masking.decider import Block
from hwsim.masking.observers import Observer
from hwsim.masking.scan import SharedCaches, Tally, saved_streams
from hwsim.masking.streams import Masking, PolicyStream
from hwsim.memory.groups import Place
from hwsim.trace import Sequence
from hwsim.trace.sequences import Decoded, Sequences
from hwsim.trace.steps import Together


class _Events(NamedTuple):
    """What a sequence needs of the experts of one place, to be served later."""

    prompt: list[Demand]
    decoded: list[np.ndarray]  # int64 in the order of their use, of each token


class Decisions:
    """The streams of a policy's masks and its caches, over passes that are announced one after the other.

    Args:
        masking: the policy and its caches.
        together: whether prompts go through the caches, and in which chunks.
        observers: receive every mask.
        steps: whether each pass has one token, so that a policy may read caches that layers share.
        fast: whether to use the compiled scan if policy and caches allow it; it decides the same.
        token: number of the first decoded token, for the observers.

    Attributes:
        takes_prompts: whether prompts go through the caches.
        coupled: whether groups are coupled by a cache, so that they are served in the order of a device.
        token: number of the first decoded token of the pass.

    Raises:
        SettingError: the eviction cannot serve a shared cache, or prompts cannot go through it.
    """

    def __init__(
        self, masking: Masking, together: Together, observers: Iterable[Observer], *, steps: bool, fast: bool,
        token: int,
    ) -> None:  # fmt: skip
        plans, shared = masking.plans, masking.shared
        self._masking, self._observers, self._chunk = masking, tuple(observers), together.chunk
        self.takes_prompts, self.token = together.prompts and bool(plans), token
        self._caches = SharedCaches(masking) if shared else None
        # a layer has one group of experts at most, and no other group shares its cache
        self.coupled = shared is not None and not (plans.routed and shared.scope == "layer")
        self._later = self.coupled and not steps
        blind = ""
        if shared and self._later:  # the masks of a whole window are decided before a cache serves them
            blind = (
                f"--cache-scope {shared.scope} couples groups that are decided here one after the other for all "
                "tokens; choose matrix, or read a text"
            )
            if self.takes_prompts and not plans.routed:
                raise SettingError(
                    f"--prefill cached: a model that runs cannot read prompts through a cache of --cache-scope "
                    f"{shared.scope}; choose --prefill dense, or --cache-scope matrix"
                )
        self._streams: list[list[tuple[Place, PolicyStream]]] = [[] for _ in range(plans.layers)]
        for place in plans.places():
            part = self._caches.part(place) if self._caches and not self._later else None
            self._streams[place.layer].append((place, PolicyStream(masking, place, cache=part, blind=blind, fast=fast)))
        self._first, self._fresh, self._only_prompt = 0, True, False
        self._rows = 0  # tokens of the pass, prompts included
        self._sequences, self._tally = Sequences([]), Tally(Counts.none(0, plans))
        self._prompts = Prompts([], None, plans)
        self._decided: set[tuple[int, int]] = set()  # layer and slot
        self._units: dict[Place, np.ndarray] = {}  # packed masks that shared caches serve later
        self._events: dict[Place, list[_Events]] = {}  # the same for experts, by sequence

    # ------------------------------------------------------------------ passes

    def window(self, sequences: list[Sequence], first: int) -> None:
        """Announce a pass over whole sequences; `first` is the number of the first of them."""
        self._begin_pass(sequences)
        self._first, self._fresh = first, True
        if self.takes_prompts:
            starts = self._sequences.first_rows
            parts = zip(starts, self._sequences.decoded(), strict=True)
            rows = [range(start, part.rows.start) for start, part in parts]
            self._prompts = Prompts(rows, self._chunk, self._masking.plans)

    def begin(self, number: int) -> None:
        """Begin sequence `number`, whose passes are announced piece by piece with `prompt` and `continued`."""
        if self._caches:
            self._caches.start()
        for streams in self._streams:
            for _, stream in streams:
                stream.begin(number)

    def prompt(self, tokens: int) -> None:
        """Announce a pass over the prompt of the current sequence, which is not masked."""
        self._begin_pass([])
        self._rows, self._only_prompt = tokens, True
        self._prompts = Prompts([range(tokens)], self._chunk, self._masking.plans)

    def continued(self, tokens: int) -> None:
        """Announce a pass over `tokens` more tokens of the current sequence."""
        self._begin_pass([Sequence(tokens=tokens)])
        self._fresh = False

    def _begin_pass(self, sequences: list[Sequence]) -> None:
        plans = self._masking.plans
        self.token += self._tally.counts.tokens  # tokens of the pass before
        self._sequences, self._only_prompt = Sequences(sequences), False
        self._rows = self._sequences.tokens
        self._tally = Tally(Counts.none(self._sequences.decoded_tokens, plans), self._observers, self.token)
        self._prompts = Prompts([range(0)] * len(sequences), None, plans)
        self._decided, self._units, self._events = set(), {}, {}

    def counts(self) -> Counts:
        """Return requests and hits of the pass, with those of its prompts.

        Raises:
            ModelError: the model did not run something that has groups, so its masks were not decided.
        """
        missed = next(
            (place for place in self._masking.plans.places() if (place.layer, place.slot) not in self._decided), None
        )
        if missed and self._rows:
            module = "experts" if missed.plan.routed else "MLP"
            raise ModelError(
                f"layer {missed.layer}: the model did not run its {module}, so no mask was decided there; it runs "
                "other modules than hwsim takes for its layers; please report this model"
            )
        if self._only_prompt:
            self._serve_prompt()
        elif self._caches and self._later:
            self._serve_later(self._caches)
        counts = self._tally.counts
        return replace(counts, prompt=self._prompts.counts) if self._prompts else counts

    # ------------------------------------------------------------------ masks

    def decide(
        self, layer: int, slot: int, signals: dict[str, np.ndarray], norms: dict[str, np.ndarray],
        experts: np.ndarray | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Decide the masks of a group for all tokens of the pass.

        Args:
            layer: layer of the group.
            slot: its number among the groups of the layer.
            signals: what the group needs, ``[tokens, width]`` each, read-only.
            norms: norms that it needs, float32 ``[indices]`` each.
            experts: int64 ``[tokens, used]``: the model's own choice by falling rank; only for experts and groups
                within them.

        Returns:
            Masks, bool ``[tokens, indices]``. Those of prompts are full, or the model's own choice.
        """
        place, stream = self._streams[layer][slot]
        self._decided.add((layer, slot))
        masks = np.ones((self._rows, place.plan.indices), bool) if experts is None else own_masks(experts, place)
        if self._only_prompt:
            self._events[place] = [_Events(self._prompts.demands(0, place.plan, experts), [])]
            return masks
        if self._later and not place.plan.routed:
            shape = (self._sequences.decoded_tokens, -(-place.plan.units // 8))
            self._units[place] = np.zeros(shape, np.uint8)
        for sequence in self._sequences.decoded():
            if self._fresh:
                stream.begin(self._first + sequence.number)
            rows = slice(sequence.rows.start, sequence.rows.stop)
            own = None if experts is None else experts[rows]
            block = Block({name: values[rows] for name, values in signals.items()}, norms, len(sequence.rows), own)
            demands = self._prompts.demands(sequence.number, place.plan, experts)
            if self._later:
                decoded = list(self._decide_early(place, stream, block, sequence, masks[rows]))
                self._events.setdefault(place, []).append(_Events(demands, decoded))
            else:
                served = stream.run([block], [demand.units for demand in demands])
                for step, (demand, part) in enumerate(zip(demands, served, strict=False)):
                    self._prompts.put(sequence.number, place, step, demand, part)
                self._tally.drive(place, sequence, _kept(served, masks[rows]))
        return masks

    def _decide_early(
        self, place: Place, stream: PolicyStream, block: Block, sequence: Decoded, masks: np.ndarray
    ) -> Iterator[np.ndarray]:
        """Decide masks that a shared cache serves later, and write them to `masks`, bool ``[tokens, indices]``.

        Yields:
            The experts of each token in the order of their use; nothing for other groups, whose masks are packed.
        """
        for at, (row, order) in enumerate(zip(block.rows(), block.choices(), strict=True)):
            units = stream.decide(row)
            masks[at] = stream.expand(units)
            if place.plan.routed:
                yield in_order(units, order)
            else:
                self._units[place][sequence.tokens.start + at] = np.packbits(units)

    # ------------------------------------------------------------------ caches that serve afterwards

    def _serve_prompt(self) -> None:
        """Serve a prompt that was a pass of its own, chunk by chunk."""
        events, self._events = self._events, {}
        for step in range(len(self._prompts.counts.requests)):
            for streams in self._streams:
                for place, stream in streams:
                    cache = self._caches.part(place) if self._caches else stream.cache
                    demand = events[place][0].prompt[step]
                    self._prompts.put(0, place, step, demand, serve_units(cache, place.plan, demand.units))

    def _serve_later(self, caches: SharedCaches) -> None:
        """Serve the masks of the pass from shared caches."""
        if self._masking.plans.routed:
            self._serve_events(caches)
            return
        masks, self._units = self._units, {}
        if not masks:
            return
        make = saved_streams(lambda place: masks[place], self._masking)
        for number, places in enumerate(caches.rounds):
            streams = {place: make(place, caches.part(place)) for place in places}
            for sequence in self._sequences.decoded():
                if self._fresh:
                    caches.start(number)
                served = {place: stream.serve(sequence) for place, stream in streams.items()}
                for _ in self._tally.drive_shared(served, sequence.tokens):
                    pass

    def _serve_events(self, caches: SharedCaches) -> None:
        """Serve the experts of the pass from shared caches, step by step and in each layer by layer."""
        events, self._events = self._events, {}
        for number, places in enumerate(caches.rounds):
            for sequence in self._sequences.decoded() if events else ():
                own = [events[place][sequence.number] for place in places]
                if self._fresh:
                    caches.start(number, _in_order_of_steps(own) if self._masking.eviction.needs_future else None)
                for step in range(len(own[0].prompt)):
                    for place, (prompt, _) in zip(places, own, strict=True):
                        served = serve_units(caches.part(place), place.plan, prompt[step].units)
                        self._prompts.put(sequence.number, place, step, prompt[step], served)
                for at, token in enumerate(sequence.tokens):
                    for place, (_, decoded) in zip(places, own, strict=True):
                        self._tally.put(place, token, serve_units(caches.part(place), place.plan, decoded[at]))


def _in_order_of_steps(events: list[_Events]) -> list[tuple[int, np.ndarray]]:
    """All events of a sequence: number of the place, and its units."""
    prompts = zip(*([demand.units for demand in prompt] for prompt, _ in events), strict=True)
    decoded = zip(*(units for _, units in events), strict=True)
    return [event for step in (*prompts, *decoded) for event in enumerate(step)]


def own_masks(experts: np.ndarray, place: Place) -> np.ndarray:
    """Masks of the model's own choice, whole, int64 ``[tokens, used]``: bool ``[tokens, indices]``."""
    choice, width = place.plan.choice or place.plan, place.plan.width if place.plan.choice else 1
    masks = np.zeros((len(experts), choice.units), bool)
    np.put_along_axis(masks, experts, values=True, axis=1)
    return masks if width == 1 else np.repeat(masks, width, axis=1)


def _kept(served: Iterable[Served], masks: np.ndarray) -> Iterator[Served]:
    """Yield what was served, and write its masks to `masks`, bool ``[tokens, indices]``."""
    at = 0
    for part in served:
        masks[at : at + len(part.masks)] = part.masks
        at += len(part.masks)
        yield part

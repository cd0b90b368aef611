"""Drive the steps of a run through caches, where steps have several members, prompts go through the caches, or caches
serve experts.

Each step is served layer by layer: the masks of its members are decided against the same view of the cache and united,
and the cache serves the union once. Caches that groups do not share are driven one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hwsim.cache.cache import Cache
from hwsim.cache.experts import ExpertPart
from hwsim.masking.at_once import AtOnce, ServedSteps
from hwsim.masking.choosers import Chooser, Demand
from hwsim.masking.counts import Counts, Served, serve, serve_units
from hwsim.masking.observers import Observer, listens
from hwsim.masking.scan import PHASE, SharedCaches
from hwsim.masking.streams import BLOCK_VALUES, Masking, SignalSource
from hwsim.memory.groups import Place, Plans
from hwsim.trace.sequences import Sequences
from hwsim.trace.steps import Steps

_VALUES = 2**24  # values of all signals that are held at once if groups share a cache: 64 MiB
_SHOWN = 64  # steps between two reports of progress


def scan_steps(
    source: SignalSource, sequences: Sequences, steps: Steps, masking: Masking, *, observers: Sequence[Observer] = ()
) -> Counts:
    """Decide all masks of a policy and count all hits, step by step.

    Args:
        source: gives the signals.
        sequences: windows of the trace.
        steps: what goes through the model together.
        masking: the policy and its caches.
        observers: receive the masks of decoded steps, the final content of each cache, and the progress.

    Returns:
        The counts of the steps that decode; `Counts.prompt` has those of the prompts' steps, if there are any.

    Raises:
        ContractError: the policy or the eviction broke its contract.
        PluginError: the policy reads the cache, and the eviction must know the future.
        SettingError: the rule cannot serve the caches.
        TraceError: a signal is missing or damaged.
    """
    plans = masking.plans
    tally = _Tally(steps, plans, observers)
    if masking.shared is None:
        for place in plans.places():
            cache = masking.cache(place.plan)
            serve_round(source, sequences, steps, masking, [place], [cache], tally, _start_alone(place, cache))
        return tally.counts()
    shared = SharedCaches(masking)
    for number, places in enumerate(shared.rounds):
        caches = [shared.part(place) for place in places]
        serve_round(source, sequences, steps, masking, places, caches, tally, _start_shared(shared, number))
    return tally.counts()


Start = Callable[[list[Demand] | None], None]
"""Begins the caches of a round, with all demands if the eviction rule needs the future: step by step, by place."""


def _start_alone(place: Place, cache: Cache) -> Start:
    """Begins the cache of one place."""
    units = place.plan.units

    def start(demands: list[Demand] | None) -> None:
        if demands is None:
            cache.start()
            return
        future = np.zeros((len(demands), units), bool)
        for mask, demand in zip(future, demands, strict=True):
            mask[demand.units] = True
        cache.start(future)

    return start


def _start_shared(shared: SharedCaches, number: int) -> Start:
    """Begins a shared cache."""
    count = len(shared.rounds[number])

    def start(demands: list[Demand] | None) -> None:
        events = None if demands is None else [(at % count, demand.units) for at, demand in enumerate(demands)]
        shared.start(number, events)

    return start


def serve_round(
    source: SignalSource, sequences: Sequences, steps: Steps, masking: Masking, places: Sequence[Place],
    caches: Sequence[Cache], tally: _Tally, start: Start,
) -> None:  # fmt: skip
    """Serve all steps from the caches of some places, which are one cache."""
    foresight = masking.eviction.needs_future
    values = BLOCK_VALUES if len(places) == 1 else _VALUES // len(places)
    values = max(1, values // int(steps.sizes.max()))  # each member of a step may be of another sequence
    choosers = [
        Chooser(source, sequences, steps, masking, place, None if foresight else cache.view, values)
        for place, cache in zip(places, caches, strict=True)
    ]
    at_once = None if tally.watched else AtOnce.of(choosers, caches, tally.events)
    for episode in steps.episodes():
        for chooser in choosers:
            chooser.begin()
        if at_once is not None:
            for served in at_once.serve(episode):
                tally.put(places, served)
            if at_once.knows:
                continue
            at_once = None
            for chooser in choosers:
                chooser.begin()
        demands = (chooser.demand(step) for step in episode for chooser in choosers)
        listed = list(demands) if foresight else None
        start(listed)
        ready = demands if listed is None else iter(listed)
        for step in episode:
            for place, cache in zip(places, caches, strict=True):
                tally.serve(place, cache, step, next(ready))
            if step % _SHOWN == 0:
                tally.progress(places, step / len(steps))
    tally.finish(places, caches)


class _Tally:
    """The counts of all steps, and the observers of those that decode.

    Attributes:
        watched: whether an observer receives masks.
        events: masks of all steps in all places.
    """

    def __init__(self, steps: Steps, plans: Plans, observers: Sequence[Observer]) -> None:
        shape = (len(steps), plans.layers, plans.slots)
        self._all = Counts.none(len(steps), plans)
        self._used = None if steps.single else np.zeros(shape, np.int64)
        short = self._all.last_requests is not None
        self._last_used = np.zeros(shape, np.int64) if short and self._used is not None else None
        self._prompts = steps.prompts
        self._numbers = (np.cumsum(~self._prompts) - 1).tolist()  # of the steps that decode
        self._observers = tuple(observers)
        self._listeners = [observer for observer in observers if listens(observer)]
        self._layers = plans.layers
        self.watched = bool(self._listeners)
        self.events = len(steps) * len(plans.places())

    def put(self, places: Sequence[Place], served: ServedSteps) -> None:
        """Count consecutive steps that a cache has served for some places at once."""
        steps = slice(served.steps.start, served.steps.stop)
        for column, place in enumerate(places):
            at = steps, place.layer, place.slot
            self._all.requests[at], self._all.hits[at] = served.requests[:, column], served.hits[:, column]
            if self._used is not None:
                self._used[at] = served.used[:, column]
        self.progress(places, served.steps.stop / len(self._all.requests))

    def serve(self, place: Place, cache: Cache, step: int, demand: Demand) -> None:
        """Serve a step from a cache, count it, and pass the masks of a step that decodes on to the observers."""
        at = step, place.layer, place.slot
        watched = self.watched and not self._prompts[step]
        if isinstance(cache, ExpertPart) and not watched:
            self._all.requests[at] = len(demand.units)
            self._all.hits[at] = cache.serve_units(demand.units)
        else:
            served = _served(place, cache, demand.units)
            self._all.put(place, step, served)
            for observer in self._listeners if watched else ():
                observer.masks(place, self._numbers[step], served)
        if self._used is not None:
            self._used[at] = demand.used
        if self._last_used is not None:
            self._last_used[at] = demand.last_used

    def finish(self, places: Sequence[Place], caches: Sequence[Cache]) -> None:
        """Inform the observers of the final content of caches."""
        for observer in self._observers:
            for place, cache in zip(places, caches, strict=True):
                observer.cached(place, cache.view)
            observer.progress(PHASE, places[-1].layer + 1, self._layers)

    def progress(self, places: Sequence[Place], share: float) -> None:
        """Inform the observers how far the layers of a cache are."""
        layers = len({place.layer for place in places})
        for observer in self._observers:
            observer.progress(PHASE, places[0].layer + int(layers * share), self._layers)

    def counts(self) -> Counts:
        """The counts of the steps that decode, with those of the prompts."""
        whole = Counts(
            self._all.requests, self._all.hits, self._all.last_requests, self._all.last_hits, self._used,
            self._last_used,
        )  # fmt: skip
        if not self._prompts.any():
            return whole
        decoded, prompt = whole.part(np.flatnonzero(~self._prompts)), whole.part(np.flatnonzero(self._prompts))
        return Counts(
            decoded.requests, decoded.hits, decoded.last_requests, decoded.last_hits, decoded.used, decoded.last_used,
            prompt,
        )  # fmt: skip


def _served(place: Place, cache: Cache, units: np.ndarray) -> Served:
    """Serve one step with all that observers may ask for."""
    plan = place.plan
    if not plan.routed:
        served, blocks = serve(cache, plan, units), plan.blocks()
        if blocks is None:
            return served
        indices = blocks.expand(units, np.empty(plan.indices, bool))
        return served._replace(masks=indices[None], blocks=units[None])
    return serve_units(cache, plan, units)

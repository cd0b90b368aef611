"""Drive masks through caches to counts and observers, for replays, saved masks and closed loops.

A cache of one group depends on that group's tokens only, so places are driven one after the other, or by threads. A
shared cache depends on all of its groups, so their masks are served in the order in which a device requests them:
token, layer, then the order of the layer's groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from hwsim.cache.cache import Cache
from hwsim.cache.experts import Event, ExpertCache, check_eviction
from hwsim.cache.shared import SharedCache, check_shared
from hwsim.errors import SettingError
from hwsim.evictions import Eviction
from hwsim.masking.counts import Counts, Served, serve
from hwsim.masking.observers import Observer, listens
from hwsim.masking.streams import (
    BLOCK_VALUES,
    Masking,
    PolicyStream,
    SignalSource,
    Stream,
    signal_blocks,
    worth_compiling,
)
from hwsim.memory.groups import Place, Plans
from hwsim.trace.sequences import Decoded, Sequences

_SHARED_VALUES = 2**24  # values of all signals that are held at once if groups share a cache: 64 MiB
PHASE = "masks and hits"

Streams = Callable[[Place, Cache | None], Stream]
"""Makes the stream of masks of a place, for the given shared cache, or for a cache of its own (None)."""


class Tally:
    """Counts the masks of a run and passes them to observers.

    Args:
        counts: counts of the run, to be filled.
        observers: observers of the run.
        first: number of the first token counted here, as the observers number tokens.

    Attributes:
        watched: whether an observer needs the cached units before each token.
        in_order: whether an observer needs the masks of one layer after the other.
    """

    def __init__(self, counts: Counts, observers: Iterable[Observer] = (), first: int = 0) -> None:
        self.counts, self.observers, self._first = counts, tuple(observers), first
        self._listeners = [observer for observer in self.observers if listens(observer)]
        self.watched = any(observer.sees_cache for observer in self._listeners)
        self.in_order = any(not observer.any_order for observer in self._listeners)

    def put(self, place: Place, token: int, served: Served) -> None:
        """Count and pass on what a cache has served for the decoded tokens from `token` on."""
        self.counts.put(place, token, served)
        for observer in self._listeners:
            observer.masks(place, self._first + token, served)

    def drive(self, place: Place, sequence: Decoded, served: Iterable[Served]) -> None:
        """Count the masks of a whole sequence."""
        token = sequence.tokens.start
        for part in served:
            self.put(place, token, part)
            token += len(part.masks)

    def drive_shared(self, streams: dict[Place, Iterator[Served]], tokens: range) -> Iterator[int]:
        """Count the masks of a sequence whose places share a cache, token by token; yield each token when done."""
        for token in tokens:
            for place, served in streams.items():
                self.put(place, token, next(served))
            yield token


class SharedCaches:
    """All shared caches of a model.

    Attributes:
        rounds: for each cache the places that share it.

    Args:
        masking: the caches and their eviction rule.

    Raises:
        SettingError: the rule cannot serve a shared cache.
    """

    def __init__(self, masking: Masking) -> None:
        shared, plans = masking.shared, masking.plans
        assert shared is not None
        check_shared_groups(masking.eviction, shared.scope, plans)
        members = [None] if shared.scope == "global" else [[layer] for layer in range(plans.layers) if plans[layer]]
        self.rounds = [plans.places(layers) for layers in members]
        self._caches = [
            _shared_cache([place.plan.sizes() for place in places], size, masking)
            for places, size in zip(self.rounds, shared.sizes, strict=True)
        ]
        self._parts: dict[tuple[int, int], Cache] = {}
        for places, cache in zip(self.rounds, self._caches, strict=True):
            for place, part in zip(places, cache.parts, strict=True):
                self._parts[place.layer, place.slot] = part

    def part(self, place: Place) -> Cache:
        """The part of a shared cache that serves one place."""
        return self._parts[place.layer, place.slot]

    def start(self, number: int | None = None, future: Sequence[Event] | None = None) -> None:
        """Begin a sequence with empty caches.

        Args:
            number: of the only cache to begin; None: all.
            future: all events of this cache, for a rule that needs the future; only for caches of experts.
        """
        for cache in self._caches if number is None else [self._caches[number]]:
            if isinstance(cache, ExpertCache):
                cache.start(future)
                continue
            cache.start()
            for part in cache.parts:
                part.start()


def check_shared_groups(eviction: Eviction, scope: str, plans: Plans) -> None:
    """Refuse a rule that cannot serve shared caches of some groups, and caches of experts and other groups together.

    Raises:
        SettingError: the rule or the groups.
    """
    if not plans.routed:
        check_shared(eviction, scope)
        return
    check_eviction(eviction, alone=False)
    if other := next((plan for plan in plans if not plan.routed), None):
        raise SettingError(
            f"--cache-scope {scope}: a cache of experts admits whole events and serves no other units, such as those "
            f"of group {other.name}; choose matrix"
        )


def _shared_cache(parts: list[np.ndarray], size: int, masking: Masking) -> SharedCache | ExpertCache:
    """Make the cache of some groups, which are all of experts, or none."""
    if masking.plans.routed:
        return ExpertCache(parts, size, masking.eviction, admission=masking.setup.admission)
    return SharedCache(parts, size, masking.eviction)


def policy_streams(source: SignalSource, masking: Masking, *, fast: bool, watched: bool) -> Streams:
    """Streams of the masks that a policy decides from signals.

    Args:
        source: gives the signals.
        masking: the policy and its caches.
        fast: whether to use the compiled scan if policy and cache allow it.
        watched: whether an observer needs the cached units before each token.
    """
    whole = sum(plan.indices for plan in masking.plans)
    # with one cache for all layers, blocks of all layers are held at once
    together = whole if masking.shared and masking.shared.scope == "global" else whole // masking.plans.layers

    def make(place: Place, cache: Cache | None) -> Stream:
        values = BLOCK_VALUES if cache is None else _SHARED_VALUES * place.plan.indices // max(1, together)
        blocks = partial(signal_blocks, source, place.plan, values=values)
        return PolicyStream(masking, place, blocks, cache, fast=fast and cache is None, watched=watched)

    return make


def scan(
    source: SignalSource,
    sequences: Sequences,
    masking: Masking,
    *,
    layers: Iterable[int] | None = None,
    observers: Sequence[Observer] = (),
    threads: int = 1,
) -> Counts:
    """Decide all masks of a policy and count all hits.

    Layers do not influence each other unless they share a cache, so threads may divide them; results are bit-identical.

    Args:
        source: gives the signals.
        sequences: windows of the trace; prompts are skipped.
        masking: the policy and its caches.
        layers: only these layers, if caches are not shared; None: all.
        observers: receive the masks, the final content of each cache, and the progress.
        threads: number of worker threads; used only with the compiled scan.

    Raises:
        ContractError: the policy or the eviction broke its contract.
        SettingError: the rule cannot serve a shared cache.
        TraceError: a signal is missing or damaged.
    """
    tally = Tally(Counts.none(sequences.decoded_tokens, masking.plans), observers)
    fast = worth_compiling(sequences.decoded_tokens * len(list(masking.plans)))
    streams = policy_streams(source, masking, fast=fast, watched=tally.watched)
    count(streams, sequences, masking, tally, layers=layers, threads=threads)
    return tally.counts


def count(
    streams: Streams,
    sequences: Sequences,
    masking: Masking,
    tally: Tally,
    *,
    layers: Iterable[int] | None = None,
    threads: int = 1,
) -> None:
    """Serve the masks of a run from its caches and count them.

    Args:
        streams: makes the stream of masks of each place.
        sequences: windows of the trace.
        masking: the caches.
        tally: counts the masks.
        layers: only these layers, if caches are not shared; None: all.
        threads: number of worker threads; used only if all streams are compiled.

    Raises:
        HwsimError: as `scan`.
    """
    _keep_freed_memory()
    if not masking.plans:
        return
    if masking.shared is not None:
        if layers is not None:
            raise SettingError("single layers cannot be counted where caches are shared by others, too")
        _count_shared(streams, sequences, SharedCaches(masking), masking, tally)
        return

    def one(layer: int) -> list[tuple[Place, np.ndarray]]:
        held = []
        for place in masking.plans.places([layer]):
            stream = streams(place, None)
            for sequence in sequences.decoded():
                tally.drive(place, sequence, stream.serve(sequence))
            held.append((place, stream.cached))
        return held

    numbers = list(range(masking.plans.layers) if layers is None else layers)
    alone = threads == 1 or tally.in_order or len(numbers) < 2 or not _compiled(streams, masking, numbers[0])
    with _workers(1 if alone else threads) as run:
        for layer, held in zip(numbers, run(one, numbers), strict=True):
            _finish(tally, held, layer + 1, masking.plans.layers)


def _compiled(streams: Streams, masking: Masking, layer: int) -> bool:
    """Whether threads may divide the layers, judged by the streams of one layer."""
    return all(streams(place, None).compiled for place in masking.plans.places([layer]))


def _count_shared(streams: Streams, sequences: Sequences, caches: SharedCaches, masking: Masking, tally: Tally) -> None:
    layers, decoded = masking.plans.layers, sequences.decoded_tokens
    for number, places in enumerate(caches.rounds):
        stream_of = {place: streams(place, caches.part(place)) for place in places}
        first, members = places[0].layer, len({place.layer for place in places})
        for sequence in sequences.decoded():
            caches.start(number)
            served = {place: stream.serve(sequence) for place, stream in stream_of.items()}
            for token in tally.drive_shared(served, sequence.tokens):
                done = first + members * (token + 1) // decoded
                for observer in tally.observers:
                    observer.progress(PHASE, done, layers)
        _finish(tally, [(place, caches.part(place).view) for place in places], first + members, layers)


def _finish(tally: Tally, held: list[tuple[Place, np.ndarray]], done: int, total: int) -> None:
    """Inform observers of the final content of caches, and that their layers are done."""
    for observer in tally.observers:
        for place, cached in held:
            observer.cached(place, cached)
        observer.progress(PHASE, done, total)


def saved_streams(read: Callable[[Place], np.ndarray], masking: Masking) -> Streams:
    """Streams of masks that were decided before.

    Args:
        read: returns the masks of a place for all decoded tokens: bool ``[tokens, units]``, or packed bits, uint8
            ``[tokens, ceil(units / 8)]``.
        masking: the caches.
    """
    return lambda place, cache: _SavedStream(read(place), place, cache or masking.cache(place.plan), masking)


class _SavedStream:
    compiled = False

    def __init__(self, masks: np.ndarray, place: Place, cache: Cache, masking: Masking) -> None:
        self._masks, self._plan, self._cache, self._blocks = masks, place.plan, cache, place.plan.blocks()
        self._shared, self._future = masking.shared is not None, masking.eviction.needs_future

    @property
    def cached(self) -> np.ndarray:
        return self._cache.view

    def serve(self, sequence: Decoded) -> Iterator[Served]:
        rows = self._masks[sequence.tokens.start : sequence.tokens.stop]
        if not self._shared:  # a shared cache starts together with all of its places
            self._cache.start(self._units(rows) if self._future else None)
        return (self._serve(self._units(row)) for row in rows)

    def _serve(self, units: np.ndarray) -> Served:
        served = serve(self._cache, self._plan, units)
        if self._blocks is None:
            return served
        indices = self._blocks.expand(units, np.empty(self._plan.indices, bool))
        return served._replace(masks=indices[None], blocks=units[None])

    def _units(self, masks: np.ndarray) -> np.ndarray:
        if masks.dtype == bool:
            return masks
        return np.unpackbits(masks, axis=-1, count=self._plan.units).view(bool)


def _keep_freed_memory() -> None:
    """Make the C library keep the memory of freed blocks.

    glibc returns large blocks to the system and gets new ones cleared page by page, which takes longer than the work on
    them. After a block of nearly 32 MiB was freed, it keeps smaller ones. This block is never touched, so it takes no
    memory. With other C libraries this does nothing.
    """
    np.empty(2**25 - 2**13, np.uint8)


@contextmanager
def _workers(threads: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """A `map` that runs on threads: results are in order, and the first error ends it."""
    if threads <= 1:
        yield map
        return
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)

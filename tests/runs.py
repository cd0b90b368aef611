"""Short ways to runs and to their stages, with what most tests leave out filled in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hwsim.cache.cache import CacheSetup
from hwsim.device.profile import Profile
from hwsim.evictions import Eviction
from hwsim.evictions.lru import Lru
from hwsim.masking.counts import Counts, Served
from hwsim.masking.mask_file import MaskFile
from hwsim.masking.observers import Observer
from hwsim.masking.scan import scan as count
from hwsim.masking.streams import Masking, SignalSource
from hwsim.memory.groups import Place, Plans
from hwsim.memory.placement import Placement
from hwsim.memory.planning import Units, plan_layers
from hwsim.memory.shares import Shared
from hwsim.model.shape import ModelShape
from hwsim.policy import Policy
from hwsim.simulation.metrics import Result
from hwsim.simulation.replay import replay as replay_run
from hwsim.simulation.run import Conditions, Run, Source, recorded
from hwsim.simulation.settings import Settings
from hwsim.trace import Trace
from hwsim.trace.header import Sequence as Window
from hwsim.trace.sequences import Sequences

Listener = Callable[[int, str, int, np.ndarray], None]
"""Is told (layer, group name, decoded token, mask bool [indices]) of every mask."""
Contents = Callable[[int, str, np.ndarray], None]
"""Is told (layer, group name, bool [units]) what each cache holds at the end."""


class Told(Observer):
    """Tells functions what a run does, mask by mask."""

    def __init__(
        self,
        listener: Listener | None = None,
        contents: Contents | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        self._listener, self._contents, self._progress = listener, contents, progress

    def masks(self, place: Place, token: int, served: Served) -> None:
        for number, mask in enumerate(served.masks if self._listener else (), token):
            self._listener(place.layer, place.plan.name, number, mask)  # type: ignore[misc]

    def cached(self, place: Place, cached: np.ndarray) -> None:
        if self._contents:
            self._contents(place.layer, place.plan.name, cached)

    def progress(self, phase: str, done: int, total: int) -> None:
        if self._progress:
            self._progress(phase, done, total)


def run_of(
    trace: Trace,
    profile: Profile,
    policy: Policy,
    eviction: Eviction,
    settings: Settings | None = None,
    *,
    policy_name: str = "",
    eviction_name: str = "",
) -> Run:
    """The run of an open trace."""
    conditions = Conditions(profile, eviction, settings or Settings(), eviction_name)
    return conditions.run(Source.of_trace(trace), policy, policy_name)


def replay(
    trace: Trace,
    profile: Profile,
    policy: Policy,
    eviction: Eviction,
    settings: Settings | None = None,
    *,
    policy_name: str = "",
    eviction_name: str = "",
    observers: Sequence[Observer] = (),
    threads: int | None = None,
) -> Result:
    """Replay an open trace."""
    run = run_of(
        trace, profile, policy, eviction, settings, policy_name=policy_name, eviction_name=eviction_name
    )  # fmt: skip
    return replay_run(run, observers, threads=threads)


def replay_masks(
    masks: MaskFile,
    profile: Profile,
    eviction: Eviction,
    settings: Settings | None = None,
    *,
    eviction_name: str = "",
    observers: Sequence[Observer] = (),
) -> Result:
    """Replay saved masks."""
    conditions = Conditions(profile, eviction, settings or Settings(), eviction_name)
    return replay_run(conditions.run(Source.of_masks(masks), masks.policy, masks.policy.name), observers)


def layout(
    model: ModelShape,
    profile: Profile | None,
    policy: Policy,
    longest: int,
    settings: Settings | None = None,
    name: str = "",
    eviction: Eviction | None = None,
) -> Placement:
    """Where a model lies, with sequences of at most so many tokens."""
    source = Source(recorded(model, [Window(tokens=longest)]), {})
    return Conditions(profile, eviction or Lru(), settings or Settings()).run(source, policy, name).placement


def plans_of(policy: Policy, model: ModelShape, capacity: int = 0, units: Units | None = None) -> Plans:
    """The groups of a policy in every layer, each with a cache of at most so many units."""
    plans = plan_layers([policy.groups(model)], model, units)
    return plans.with_capacities(min(capacity, plan.units) for plan in plans)


def masking_of(
    model: ModelShape, policy: Policy, longest: int, settings: Settings | None = None, name: str = ""
) -> Masking:
    """What decides the masks of a model with sequences of at most so many tokens, without a device."""
    source = Source(recorded(model, [Window(tokens=longest)]), {})
    return Conditions(None, Lru(), settings or Settings()).run(source, policy, name).masking


def scan(
    source: SignalSource,
    sequences: Iterable[Window],
    policy: Policy,
    plans: Plans,
    eviction: Eviction,
    *,
    model: ModelShape,
    setup: CacheSetup | None = None,
    shared: Shared | None = None,
    name: str = "",
    seed: int = 0,
    layers: Iterable[int] | None = None,
    observers: Sequence[Observer] = (),
    threads: int = 1,
) -> Counts:
    """Masks and hits of some plans, without a device."""
    masking = Masking(
        model, policy, plans, eviction, setup or CacheSetup(), shared, name or type(policy).__name__, seed
    )  # fmt: skip
    return count(source, Sequences(sequences), masking, layers=layers, observers=observers, threads=threads)


def evaluate(
    model: str | Path,
    text: str | Path,
    profile: Profile,
    candidates: list[Any],
    eviction: Eviction,
    reading: Any = None,
    settings: Settings | None = None,
    *,
    eviction_name: str = "",
    **others: Any,
) -> list[Any]:
    """A closed loop over a text."""
    from hwsim.closed_loop import evaluate as loop

    conditions = Conditions(profile, eviction, settings or Settings(), eviction_name)
    return loop(str(model), str(text), conditions, candidates, reading, **others)

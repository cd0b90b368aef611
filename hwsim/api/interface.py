"""Implementation of the functions of the Python interface, which pass their options as `Settings`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hwsim.device.profile import Profile, load_profile
from hwsim.errors import SettingError, did_you_mean
from hwsim.evictions import Eviction
from hwsim.policy import Policy
from hwsim.simulation.frames import Kind, frame, rows_of, to_html
from hwsim.simulation.metrics import Evaluation, Result
from hwsim.simulation.options import find_trace, make_policy, takes_density
from hwsim.simulation.plugins import EVICTIONS, POLICIES, build
from hwsim.simulation.replay import replay
from hwsim.simulation.run import Conditions, Source
from hwsim.simulation.settings import Settings
from hwsim.trace import Trace

PolicyLike = str | Path | type[Policy] | Policy
"""A policy: its name or file, its class, or an instance."""
R = TypeVar("R", bound=Result)


class Results(list[R]):
    """A list of results that a notebook shows as one table."""

    def to_frame(self, kind: Kind = "summary") -> Any:
        """All results as one DataFrame, as `Result.to_frame` returns it."""
        return frame([row for result in self for row in rows_of(result.plain(), kind)])

    def _repr_html_(self) -> str:
        return to_html([result.plain() for result in self])


def load(trace: str | Path) -> Trace:
    """Open a trace.

    Args:
        trace: a file, or ``sample`` for the recorded trace that comes with hwsim.

    Raises:
        TraceError: there is no such trace, or it is damaged.
    """
    return Trace(find_trace(trace))


@dataclass(frozen=True)
class Asked:
    """The arguments of a call: policies, device, eviction rule and settings.

    Attributes:
        hw: a profile, or the name or file of one.
        policy: a policy, or a list of policies.
        density: MLP density, or a file with a density for each layer; used by policies that take a density.
        eviction: rule that picks the units that leave a full cache.
        settings: the other options.
        parameters: parameters of the policies.
    """

    hw: str | Path | Profile
    policy: PolicyLike | Sequence[PolicyLike]
    density: float | str | Path | None
    eviction: str | Path | type[Eviction] | Eviction
    settings: Settings
    parameters: dict[str, Any]

    @property
    def several(self) -> bool:
        """Whether the call named a list of policies."""
        return _several(self.policy)

    def conditions(self) -> Conditions:
        """The device, eviction rule and settings of all runs."""
        name, rule = _rule(self.eviction)
        device = self.hw if isinstance(self.hw, Profile) else load_profile(self.hw)
        return Conditions(device, rule, self.settings, name)

    def policies(self) -> list[tuple[str, Policy]]:
        """The policies as (name, policy)."""
        return _policies(self.policy, self.density, self.parameters)


def replays(trace: Trace | str | Path, asked: Asked, threads: int | None) -> Results[Result]:
    """Replay a trace, given open or by its file, under each policy."""
    policies, conditions = asked.policies(), asked.conditions()
    opened = trace if isinstance(trace, Trace) else load(trace)
    try:
        source = Source.of_trace(opened)
        return Results(replay(conditions.run(source, policy, name), threads=threads) for name, policy in policies)
    finally:
        if opened is not trace:
            opened.close()


def closed_loops(
    model: str | Path, text: str | Path, asked: Asked, reading: tuple[int, int, int, str, str, bool]
) -> Results[Evaluation]:
    """Run a model over a text under each policy.

    `reading` holds tokens, context and prompt, the device and dtype of torch, and whether the model's own code may run.
    """
    from hwsim.closed_loop import Candidate, evaluate
    from hwsim.record import Settings as Reading

    tokens, context, prompt, device, dtype, trusted = reading
    settings = Reading(
        tokens=tokens, context=context, prompt=prompt, device=device, dtype=dtype, trust_remote_code=trusted
    )
    candidates = [Candidate(name, policy) for name, policy in asked.policies()]
    return Results(evaluate(str(model), str(text), asked.conditions(), candidates, settings))


def _several(policy: object) -> bool:
    return isinstance(policy, Iterable) and not isinstance(policy, str | Path | Policy | type)


def _policies(
    policy: PolicyLike | Sequence[PolicyLike], density: float | str | Path | None, parameters: dict[str, Any]
) -> list[tuple[str, Policy]]:
    items: list[Any] = list(policy) if _several(policy) else [policy]  # type: ignore[arg-type]
    if not items:
        raise SettingError("policy names no policy")
    candidates: list[tuple[str, type[Policy], Policy | None]] = []
    for item in items:
        if isinstance(item, Policy):
            candidates.append((type(item).__name__, type(item), item))
        elif isinstance(item, type) and issubclass(item, Policy):
            candidates.append((item.__name__, item, None))
        else:
            candidates.append((*POLICIES.find(str(item)), None))
    fields = {field for _, kind, instance in candidates if instance is None for field in kind.model_fields}
    for key in parameters:
        if key not in fields:
            known = {*fields, *Settings.model_fields}
            raise SettingError(
                f"{key}: is no option, and no policy here has such a parameter{did_you_mean(key, known)}"
            )
    policies = []
    several = len(candidates) > 1
    for name, kind, instance in candidates:
        own = {key: value for key, value in parameters.items() if key in kind.model_fields}
        takes = takes_density(kind)
        policies.append((name, instance or make_policy(name, kind, own, density if takes or not several else None)))
    return policies


def _rule(eviction: str | Path | type[Eviction] | Eviction) -> tuple[str, Eviction]:
    if isinstance(eviction, Eviction):
        return type(eviction).__name__, eviction
    if isinstance(eviction, type) and issubclass(eviction, Eviction):
        return eviction.__name__, build(eviction, f"eviction {eviction.__name__}", {})
    return EVICTIONS.make(str(eviction))

"""What the functions of the Python interface do, once their options are `Settings`."""

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
"""A policy by its name or file, its class, or an instance."""
R = TypeVar("R", bound=Result)


class Results(list[R]):
    """Several results, which a notebook shows as one table."""

    def to_frame(self, kind: Kind = "summary") -> Any:
        """All of them as one DataFrame, as `Result.to_frame`."""
        return frame([row for each in self for row in rows_of(each.plain(), kind)])

    def _repr_html_(self) -> str:
        return to_html([each.plain() for each in self])


def load(trace: str | Path) -> Trace:
    """Open a trace.

    Args:
        trace: a file, or ``sample``, the recorded one that comes with hwsim.

    Raises:
        TraceError: there is none, or it is damaged.
    """
    return Trace(find_trace(trace))


@dataclass(frozen=True)
class Asked:
    """The policies that are asked for, and what they go with.

    Attributes:
        hw: name or file of a profile, or a profile.
        policy: one, or a list of several.
        density: MLP density, or a file of one for each layer; for those policies that have one.
        eviction: what picks the units that leave a full cache.
        settings: the other options.
        parameters: of the policies.
    """

    hw: str | Path | Profile
    policy: PolicyLike | Sequence[PolicyLike]
    density: float | str | Path | None
    eviction: str | Path | type[Eviction] | Eviction
    settings: Settings
    parameters: dict[str, Any]

    @property
    def several(self) -> bool:
        """Whether a list of policies was given."""
        return _several(self.policy)

    def conditions(self) -> Conditions:
        """Device, eviction and settings."""
        name, rule = _rule(self.eviction)
        device = self.hw if isinstance(self.hw, Profile) else load_profile(self.hw)
        return Conditions(device, rule, self.settings, name)

    def policies(self) -> list[tuple[str, Policy]]:
        """The policies, by name."""
        return _policies(self.policy, self.density, self.parameters)


def replays(trace: Trace | str | Path, asked: Asked, threads: int | None) -> Results[Result]:
    """Replay a trace, open or by its file, under each policy."""
    policies, conditions = asked.policies(), asked.conditions()
    opened = trace if isinstance(trace, Trace) else load(trace)
    try:
        source = Source.of_trace(opened)
        return Results(replay(conditions.run(source, policy, name), threads=threads) for name, policy in policies)
    finally:
        if opened is not trace:
            opened.close()


def closed_loops(
    model: str | Path, text: str | Path, asked: Asked, reading: tuple[int, int, int, str, str]
) -> Results[Evaluation]:
    """Run a model over a text under each policy; `reading`: tokens, context, prompt, device and type of torch."""
    from hwsim.closed_loop import Candidate, evaluate
    from hwsim.record import Settings as Reading

    tokens, context, prompt, device, dtype = reading
    wanted = Reading(tokens=tokens, context=context, prompt=prompt, device=device, dtype=dtype)
    candidates = [Candidate(name, policy) for name, policy in asked.policies()]
    return Results(evaluate(str(model), str(text), asked.conditions(), candidates, wanted))


def _several(policy: object) -> bool:
    return isinstance(policy, Iterable) and not isinstance(policy, str | Path | Policy | type)


def _policies(
    policy: PolicyLike | Sequence[PolicyLike], density: float | str | Path | None, parameters: dict[str, Any]
) -> list[tuple[str, Policy]]:
    asked: list[Any] = list(policy) if _several(policy) else [policy]  # type: ignore[arg-type]
    if not asked:
        raise SettingError("policy names no policy")
    found: list[tuple[str, type[Policy], Policy | None]] = []
    for each in asked:
        if isinstance(each, Policy):
            found.append((type(each).__name__, type(each), each))
        elif isinstance(each, type) and issubclass(each, Policy):
            found.append((each.__name__, each, None))
        else:
            found.append((*POLICIES.find(str(each)), None))
    fields = {field for _, kind, made in found if made is None for field in kind.model_fields}
    for key in parameters:
        if key not in fields:
            known = {*fields, *Settings.model_fields}
            raise SettingError(
                f"{key}: is no option, and no policy here has such a parameter{did_you_mean(key, known)}"
            )
    made_ones = []
    several = len(found) > 1
    for name, kind, made in found:
        own = {key: value for key, value in parameters.items() if key in kind.model_fields}
        takes = takes_density(kind)
        made_ones.append((name, made or make_policy(name, kind, own, density if takes or not several else None)))
    return made_ones


def _rule(eviction: str | Path | type[Eviction] | Eviction) -> tuple[str, Eviction]:
    if isinstance(eviction, Eviction):
        return type(eviction).__name__, eviction
    if isinstance(eviction, type) and issubclass(eviction, Eviction):
        return eviction.__name__, build(eviction, f"eviction {eviction.__name__}", {})
    return EVICTIONS.make(str(eviction))

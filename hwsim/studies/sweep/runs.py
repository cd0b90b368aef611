"""One run of a sweep: what was asked for, what it comes down to, and the key that names its result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from hwsim.device.profile import Profile, load_profile
from hwsim.errors import SettingError, did_you_mean
from hwsim.evictions import Eviction
from hwsim.policy import Policy
from hwsim.simulation.options import make_policy, make_settings, takes_density
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.simulation.replay import check_caches, layout
from hwsim.simulation.result import Names, provenance
from hwsim.simulation.settings import Settings
from hwsim.studies.sweep.spec import Spec
from hwsim.trace import TraceHeader


@dataclass(frozen=True)
class Run:
    """What was asked for, in plain values, so that it can be sent to another process or machine and kept.

    Attributes:
        source: ``{"trace": FILE}``, or ``{"model": ..., "text": ..., "tokens": ..., "context": ..., "prompt": ...}``.
        hw: name or file of the profile.
        policy: name or file.
        parameters: of the policy.
        density: a number, a file or a list of one for each layer, or the policy's own.
        eviction: name or file.
        rule_parameters: of the eviction.
        settings: the other options, by name.
        per_token: keep a record of every token.
    """

    source: dict[str, Any]
    hw: str
    policy: str
    parameters: dict[str, Any]
    density: float | str | list[float] | None
    eviction: str
    rule_parameters: dict[str, Any]
    settings: dict[str, Any]
    per_token: bool = False

    @property
    def closed(self) -> bool:
        """Whether a model runs, rather than a trace is replayed."""
        return "model" in self.source

    @property
    def together(self) -> str:
        """Closed loops of which this is equal share one dense pass: they differ in the policy only."""
        shared = (self.source, self.hw, self.eviction, self.rule_parameters, self.settings, self.per_token)
        return json.dumps(shared, sort_keys=True, default=str)

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return json.loads(json.dumps(self.__dict__, default=str))


class Parts(NamedTuple):
    """What a run comes down to: the objects that a replay or a closed loop takes."""

    profile: Profile
    names: Names
    policy: Policy
    rule: Eviction
    settings: Settings


def expand(specs: list[Spec]) -> Iterator[Run]:
    """All runs of all grids, in the order of the lists; some may be the same.

    Raises:
        HwsimError: a policy is not known, or a parameter is one of none of them.
    """
    for spec in specs:
        kinds = {each: POLICIES.find(each) for each in spec.policy}
        owned = _owned(spec, {name: set(kind.model_fields) for name, kind in kinds.values()})
        rules = {each: EVICTIONS.find(each)[1].model_fields for each in spec.eviction}
        grids = {each: _grid(own) for each, own in _of_rules(spec, rules).items()}
        for source in spec.sources:
            for hw in spec.hw:
                for settings in spec.settings:
                    for eviction in spec.eviction:
                        for rule_parameters in grids[eviction]:
                            for each, (name, kind) in kinds.items():
                                for density in spec.density if takes_density(kind) else [None]:
                                    for parameters in _grid(owned[name]):
                                        yield Run(
                                            source, hw, each, parameters, density, eviction, rule_parameters, settings,
                                            spec.per_token,
                                        )  # fmt: skip


def _owned(spec: Spec, fields: dict[str, set[str]]) -> dict[str, dict[str, list[Any]]]:
    """Values of the parameters of each policy, by its name."""
    found: dict[str, dict[str, list[Any]]] = {name: {} for name in fields}
    for key, values in spec.set.items():
        owner, _, field = key.rpartition(".")
        if owner == "eviction":
            continue
        if owner and owner not in fields:
            raise SettingError(f"set: {key}: policy {owner!r} is not part of this sweep{did_you_mean(owner, fields)}")
        takers = [owner] if owner else [name for name, known in fields.items() if field in known]
        if not takers:
            known = {each for names in fields.values() for each in names}
            raise SettingError(f"set: {key}: no policy here has a parameter {field!r}{did_you_mean(field, known)}")
        for name in takers:
            found[name][field] = values
    return found


def _of_rules(spec: Spec, rules: Mapping[str, Collection[str]]) -> dict[str, dict[str, list[Any]]]:
    """Values of the parameters of each eviction rule."""
    given = {key.partition(".")[2]: values for key, values in spec.set.items() if key.startswith("eviction.")}
    for field in given:
        if not any(field in known for known in rules.values()):
            all_known = {each for known in rules.values() for each in known}
            raise SettingError(
                f"set: eviction.{field}: no rule here has a parameter {field!r}{did_you_mean(field, all_known)}"
            )
    return {each: {field: given[field] for field in given if field in known} for each, known in rules.items()}


def _grid(axes: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """All combinations of one value from each list."""
    grid: list[dict[str, Any]] = [{}]
    for name, values in axes.items():
        grid = [{**point, name: value} for point in grid for value in values]
    return grid


def resolve(run: Run) -> Parts:
    """Find and make everything that a run names.

    Raises:
        HwsimError: something is not there, or impossible.
    """
    rule_name, rule = EVICTIONS.make(run.eviction, run.rule_parameters)
    name, kind = POLICIES.find(run.policy)
    policy = make_policy(name, kind, run.parameters, run.density)
    settings = make_settings(**run.settings, per_token=run.per_token)
    return Parts(load_profile(run.hw), Names(name, rule_name), policy, rule, settings)


def key_of(run: Run, parts: Parts, header: TraceHeader, source: dict[str, Any]) -> str:
    """The name of a run's result: SHA-256 of all that decides it, known before anything is simulated.

    Args:
        run: what was asked for.
        parts: of the run.
        header: of the trace, or of what a recording of the model's tokens would be.
        source: its provenance, as the result tells it; how a trace's file is called plays no part.

    Raises:
        HwsimError: the run is impossible on this model and device.
    """
    shares = parts.settings.cache_shares
    # what shares follow from traffic is measured later; that they do is enough to know
    settings = replace(parts.settings, cache_shares=None) if shares and shares.weights is None else parts.settings
    placement = layout(header.model, parts.profile, parts.policy, header.longest, settings, parts.names.policy)
    check_caches(placement, parts.rule, settings)
    told = provenance(header, source, parts.profile, parts.policy, parts.settings, placement, parts.rule, parts.names)
    whole = {
        **told,
        "trace": {key: value for key, value in source.items() if key != "name"},
        "per_token": run.per_token,
        "shares": sorted(map(str, shares.weights.items())) if shares and shares.weights else None,
        "files": {value: _sha256(Path(value)) for value in _files(run)},
    }
    return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()


def _files(run: Run) -> list[str]:
    """Files that parameters name, such as a calibration: their content decides, too."""
    guesses = run.settings.get("prefetch_parameters") or {}
    values = (*run.parameters.values(), *run.rule_parameters.values(), *guesses.values())
    return [value for value in values if isinstance(value, str) and Path(value).is_file()]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

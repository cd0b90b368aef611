"""One run of a sweep: its request in plain values, the run made from it, and the key of its result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwsim.device.profile import load_profile
from hwsim.errors import SettingError, did_you_mean
from hwsim.simulation.options import make_policy, takes_density
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.simulation.provenance import provenance
from hwsim.simulation.run import Conditions, Run, Source
from hwsim.simulation.settings import Settings
from hwsim.studies.sweep.spec import Spec


@dataclass(frozen=True)
class Cell:
    """The request of a run in plain values, so that it can be sent to other processes and stored.

    Attributes:
        source: ``{"trace": FILE}``, or ``{"model": ..., "text": ..., "tokens": ..., "context": ..., "prompt": ...}``.
        hw: name or file of the profile.
        policy: name or file.
        parameters: parameters of the policy.
        density: a number, a file or a list with one for each layer; None: the policy's own.
        eviction: name or file.
        rule_parameters: parameters of the eviction.
        settings: the other options by name.
        per_token: whether to keep every token in the result.
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
        """Whether the run is a closed loop; otherwise it is a replay of a trace."""
        return "model" in self.source

    @property
    def together(self) -> str:
        """A key that is equal for closed loops that differ only in the policy, which can share one dense pass."""
        shared = (self.source, self.hw, self.eviction, self.rule_parameters, self.settings, self.per_token)
        return json.dumps(shared, sort_keys=True, default=str)

    def plain(self) -> dict[str, Any]:
        """The request as a dictionary for JSON."""
        return json.loads(json.dumps(self.__dict__, default=str))


def expand(specs: list[Spec]) -> Iterator[Cell]:
    """Yield all runs of all grids, in the order of the lists; some may be equal.

    Raises:
        HwsimError: a policy or rule is unknown, or a parameter belongs to none of them.
    """
    for spec in specs:
        kinds = {given: POLICIES.find(given) for given in spec.policy}
        owned = _owned(spec, {name: set(kind.model_fields) for name, kind in kinds.values()})
        rules = {given: EVICTIONS.find(given)[1].model_fields for given in spec.eviction}
        grids = {rule: _grid(own) for rule, own in _of_rules(spec, rules).items()}
        for source in spec.sources:
            for hw in spec.hw:
                for settings in spec.settings:
                    for eviction in spec.eviction:
                        for rule_parameters in grids[eviction]:
                            for given, (name, kind) in kinds.items():
                                for density in spec.density if takes_density(kind) else [None]:
                                    for parameters in _grid(owned[name]):
                                        yield Cell(
                                            source, hw, given, parameters, density, eviction, rule_parameters, settings,
                                            spec.per_token,
                                        )  # fmt: skip


def _owned(spec: Spec, fields: dict[str, set[str]]) -> dict[str, dict[str, list[Any]]]:
    """Values of the parameters of each policy, by the policy's name."""
    values_by_policy: dict[str, dict[str, list[Any]]] = {name: {} for name in fields}
    for key, values in spec.set.items():
        owner, _, field = key.rpartition(".")
        if owner == "eviction":
            continue
        if owner and owner not in fields:
            raise SettingError(f"set: {key}: policy {owner!r} is not part of this sweep{did_you_mean(owner, fields)}")
        takers = [owner] if owner else [name for name, known in fields.items() if field in known]
        if not takers:
            known = {field_name for names in fields.values() for field_name in names}
            raise SettingError(f"set: {key}: no policy here has a parameter {field!r}{did_you_mean(field, known)}")
        for name in takers:
            values_by_policy[name][field] = values
    return values_by_policy


def _of_rules(spec: Spec, rules: Mapping[str, Collection[str]]) -> dict[str, dict[str, list[Any]]]:
    """Values of the parameters of each eviction rule."""
    given = {key.partition(".")[2]: values for key, values in spec.set.items() if key.startswith("eviction.")}
    for field in given:
        if not any(field in known for known in rules.values()):
            all_known = {name for known in rules.values() for name in known}
            raise SettingError(
                f"set: eviction.{field}: no rule here has a parameter {field!r}{did_you_mean(field, all_known)}"
            )
    return {rule: {field: given[field] for field in given if field in known} for rule, known in rules.items()}


def _grid(axes: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """All combinations of one value from each list."""
    grid: list[dict[str, Any]] = [{}]
    for name, values in axes.items():
        grid = [{**point, name: value} for point in grid for value in values]
    return grid


def resolve(cell: Cell, source: Source) -> Run:
    """Make the run of a cell.

    Args:
        cell: the request.
        source: source of the run: the trace, or the tokens of a closed loop.

    Raises:
        HwsimError: something that the cell names does not exist, or the run is impossible.
    """
    rule_name, rule = EVICTIONS.make(cell.eviction, cell.rule_parameters)
    name, kind = POLICIES.find(cell.policy)
    policy = make_policy(name, kind, cell.parameters, cell.density)
    settings = Settings(**cell.settings, per_token=cell.per_token)
    return Conditions(load_profile(cell.hw), rule, settings, rule_name).run(source, policy, name)


def key_of(cell: Cell, run: Run) -> str:
    """The key of a run's result: SHA-256 of everything that decides it, known before anything is simulated.

    Args:
        cell: the request.
        run: the run made from it; the name of its trace's file is not part of the key.

    Raises:
        HwsimError: the run is impossible on this model and device.
    """
    shares, source = run.settings.cache_shares, run.source.origin
    # shares from traffic are measured later; the key only states that they are
    origin = provenance(run.but(cache_shares=None) if run.shares_are_measured else run)
    whole = {
        **origin,
        "device": None if run.device is None else run.device.model_dump(mode="json", exclude_none=True),
        "settings": origin["settings"] | {"cache_shares": shares.source if shares else "equal"},
        "trace": {key: value for key, value in source.items() if key != "name"},
        "per_token": cell.per_token,
        "shares": sorted(map(str, shares.weights.items())) if shares and shares.weights else None,
        "files": {value: _sha256(Path(value)) for value in _files(cell)},
    }
    return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()


def _files(cell: Cell) -> list[str]:
    """Files that parameters name, such as a calibration, whose content is a part of the key."""
    guesses = cell.settings.get("prefetch_parameters") or {}
    values = (*cell.parameters.values(), *cell.rule_parameters.values(), *guesses.values())
    return [value for value in values if isinstance(value, str) and Path(value).is_file()]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

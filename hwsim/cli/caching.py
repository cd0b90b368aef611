"""Options of the caches: the policy's density and parameters, the eviction rule, and saving of cache contents."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hwsim.cli import options as o
from hwsim.cli.common import key_values
from hwsim.errors import SettingError
from hwsim.util.files import check_new_file, spare

if TYPE_CHECKING:
    import numpy as np

    from hwsim.evictions import Eviction
    from hwsim.masking.observers import Observer
    from hwsim.memory.groups import Place
    from hwsim.simulation.metrics import Result


SaveCache = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write what the caches hold at the end of the last sequence; of one policy."),
]
_OWNER = "eviction"


@dataclass(frozen=True, kw_only=True)
class RuleOptions:
    """Options of the policies and of the eviction rule."""

    density: o.Density = None
    set_: o.Parameters = None
    eviction: o.EvictionRule = "lfu"


def make_rule(spec: str, pairs: list[str]) -> tuple[str, Eviction, list[str]]:
    """Make the eviction rule with the parameters of ``--set eviction.KEY=VALUE``.

    Returns:
        The name of the rule, an instance, and the other pairs of ``--set``.

    Raises:
        PluginError, SettingError: unknown rule, unknown parameter, value out of bounds.
    """
    from hwsim.simulation.plugins import EVICTIONS

    own = [pair for pair in pairs if pair.strip().startswith(f"{_OWNER}.")]
    parameters = {key.partition(".")[2]: value for key, value in key_values(own, "--set").items()}
    name, rule = EVICTIONS.make(spec, parameters)
    return name, rule, [pair for pair in pairs if pair not in own]


class Held:
    """Collects the final content of the caches to be written to `target`, if it is given.

    Raises:
        SettingError: there are several devices or policies.
        OutputError: `target` cannot be written, or would replace one of the `sources`.
    """

    def __init__(self, target: Path | None, sources: list[Path], devices: list[str], policies: list[str]) -> None:
        if target:
            if len(devices) > 1:
                raise SettingError("--save-cache: holds the caches of one device; name one --hw")
            if len(policies) > 1:
                raise SettingError("--save-cache: holds the caches of one policy; name one --policy")
            check_new_file(target)
            spare(target, sources)
        self._target = target
        self._sets: dict[str, np.ndarray] = {}

    def observer(self) -> Observer:
        """An observer that collects the final content of the caches of a run."""
        from hwsim.cache.unit_sets import member_of
        from hwsim.masking.observers import Observer

        sets = self._sets

        class Contents(Observer):
            def cached(self, place: Place, cached: np.ndarray) -> None:
                sets[member_of(place.layer, place.plan.name)] = cached.copy()

        return Contents()

    def write(self, result: Result) -> None:
        """Write the file with the provenance of the contents.

        Raises:
            SettingError: the policy has no cache.
            OutputError: the file cannot be written.
        """
        from hwsim.cache.unit_sets import write_units

        if self._target is None:
            return
        provenance = {
            key: result.provenance[key] for key in ("hwsim", "trace", "policy", "eviction", "settings", "seed")
        }
        if not self._sets:
            raise SettingError(
                f"--save-cache: policy {provenance['policy']['name']} has no groups, so nothing is cached"
            )
        write_units(self._target, provenance | {"model": result.provenance["model"]["name"]}, self._sets)

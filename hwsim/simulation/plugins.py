"""Find plug-ins (policies and rules) by the name of a built-in's file, by entry point, or by the path of a file.

Built-ins have no privileges: each is a file in a folder, like a file of the user.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import pkgutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from hwsim.errors import PluginError, SettingError, did_you_mean, one_line
from hwsim.evictions import Eviction
from hwsim.policy import ModelShape, Policy
from hwsim.prefetch import Prefetch
from hwsim.util.calls import call
from hwsim.util.explain import problem
from hwsim.util.units import printable, shorten

T = TypeVar("T", bound=BaseModel)


@dataclass(frozen=True)
class Kind(Generic[T]):
    """One kind of plug-in."""

    noun: str
    base: type[T]
    package: str  # of the built-ins
    group: str  # of the entry points

    def names(self) -> dict[str, str]:
        """All names of plug-ins of this kind, with the origin of each.

        Raises:
            PluginError: a name is defined twice.
        """
        origins = {name: f"{self.package}.{module}" for name, module in self._builtin().items()}
        for entry in _installed(self.group):
            origin = entry.value
            if entry.name in origins and origins[entry.name] != origin:
                raise PluginError(
                    f"{self.noun} {entry.name!r} is defined twice: by {origins[entry.name]} and by {origin}; rename one"
                )
            origins[entry.name] = origin
        return dict(sorted(origins.items()))

    def find(self, spec: str) -> tuple[str, type[T]]:
        """Find a plug-in by a name, a ``FILE.py`` or a ``FILE.py:Class``, and return (name in results, class).

        Raises:
            PluginError: there is no such plug-in, or it cannot be loaded.
        """
        file, wanted = _file(spec)
        if file:
            plugin = self._only(self._load_file(file), str(file), wanted)
            return wanted or printable(file.stem.replace("_", "-")), plugin
        builtin = self._builtin()
        names = self.names()
        if spec not in names:
            raise PluginError(f"no {self.noun} {spec!r}{did_you_mean(spec, names)}; or give the path of a .py file")
        if spec in builtin:
            module = f"{self.package}.{builtin[spec]}"
            return spec, self._only(self._load(module, lambda: importlib.import_module(module)), module, "")
        entry = next(entry for entry in _installed(self.group) if entry.name == spec)
        return spec, self._loaded_entry(entry)

    def make(self, spec: str, parameters: Mapping[str, Any] | None = None) -> tuple[str, T]:
        """Make an instance with parameters and return (name in results, instance); text is read as the field's type.

        Raises:
            PluginError: as `find`.
            SettingError: a parameter is unknown or out of bounds.
        """
        name, plugin = self.find(spec)
        return name, build(plugin, f"{self.noun} {name}", parameters or {})

    def _builtin(self) -> dict[str, str]:
        package = importlib.import_module(self.package)
        modules = [info.name for info in pkgutil.iter_modules(package.__path__) if not info.name.startswith("_")]
        return {module.replace("_", "-"): module for module in modules}

    def _only(self, module: ModuleType, origin: str, wanted: str) -> type[T]:
        """The one class of this kind that the module defines itself."""
        defined = self._defined(module)
        if wanted:
            chosen = [value for value in defined if value.__name__ == wanted]
            if not chosen:
                known = did_you_mean(wanted, [value.__name__ for value in defined])
                raise PluginError(f"{origin}: has no {self.noun} class {wanted!r}{known}")
            return chosen[0]
        if not defined:
            raise PluginError(
                f"{origin}: defines no {self.noun}: no subclass of {self.base.__module__}.{self.base.__name__}"
            )
        if len(defined) > 1:
            names = ", ".join(value.__name__ for value in defined)
            raise PluginError(f"{origin}: defines several: {names}; choose one with {origin}:{defined[0].__name__}")
        return defined[0]

    def _defined(self, module: ModuleType) -> list[type[T]]:
        """All classes of this kind that the module defines itself."""
        return [
            value
            for value in vars(module).values()
            if isinstance(value, type)
            and issubclass(value, self.base)
            and value is not self.base
            and value.__module__ == module.__name__
        ]

    def _stands_for(self, spec: str) -> bool:
        """Whether a name or a file stands for one or several plug-ins of this kind."""
        file, wanted = _file(spec)
        if not file:
            return spec in self.names()
        defined = self._defined(self._load_file(file))
        return any(not wanted or plugin.__name__ == wanted for plugin in defined)

    def _load_file(self, file: Path) -> ModuleType:
        if not file.is_file():
            raise PluginError(f"{self.noun} file {file} does not exist")
        # the module name contains a hash of the path, so that files of one name do not clash; sys.path is unchanged
        name = f"hwsim_plugin_{hashlib.sha256(os.fsencode(file.resolve())).hexdigest()[:12]}"
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise PluginError(f"{file}: cannot be loaded as Python")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # pydantic looks up annotations there

        def run() -> ModuleType:
            spec.loader.exec_module(module)  # type: ignore[union-attr]
            return module

        return self._load(str(file), run)

    def _loaded_entry(self, entry: EntryPoint) -> type[T]:
        plugin = self._load(entry.value, entry.load)
        if isinstance(plugin, ModuleType):
            return self._only(plugin, entry.value, "")
        if not (isinstance(plugin, type) and issubclass(plugin, self.base)):
            raise PluginError(f"entry point {entry.name} = {entry.value} is no {self.base.__name__}")
        return plugin

    def _load(self, origin: str, load: Any) -> Any:
        def loaded() -> Any:
            try:
                return load()
            except SyntaxError as error:
                at = f"line {error.lineno}: " if error.lineno else ""
                raise PluginError(f"{origin}: {at}{one_line(error) if not at else error.msg}") from error

        return call(origin, loaded, doing="cannot be loaded:", kind=PluginError, text=_without_site)


POLICIES: Kind[Policy] = Kind("policy", Policy, "hwsim_policies", "hwsim.policies")
EVICTIONS: Kind[Eviction] = Kind("eviction", Eviction, "hwsim.evictions", "hwsim.evictions")
PREFETCHES: Kind[Prefetch] = Kind("prefetch", Prefetch, "hwsim.prefetch", "hwsim.prefetches")


def _installed(group: str) -> tuple[EntryPoint, ...]:
    """The entry points of a group."""
    return _read_installed(group, tuple((folder, _state(folder)) for folder in sys.path))


@lru_cache(maxsize=16)
def _read_installed(group: str, folders: tuple[object, ...]) -> tuple[EntryPoint, ...]:
    """Read the metadata of all distributions, which takes 10 ms and more; `folders` are those that hold them."""
    return tuple(entry_points(group=group))


def _state(folder: str) -> tuple[int, int, int]:
    """What differs after a distribution was installed into a folder of ``sys.path``, or removed from it."""
    try:
        status = Path(folder).stat()
    except (OSError, ValueError):
        return 0, 0, 0
    return status.st_dev, status.st_ino, status.st_mtime_ns


def kinds_of(spec: str) -> list[Kind[Any]]:
    """The kinds of plug-in that a name or a file stands for; there may be several.

    Raises:
        PluginError: there is no such plug-in, or the file cannot be loaded.
    """
    file, wanted = _file(spec)
    if file and not file.is_file():
        raise PluginError(f"file {file} does not exist")
    kinds: list[Kind[Any]] = [kind for kind in (POLICIES, EVICTIONS) if kind._stands_for(spec)]
    if kinds:
        return kinds
    if file:
        what = f"has no policy or eviction class {wanted!r}" if wanted else "defines no policy and no eviction rule"
        raise PluginError(f"{file}: {what}; docs/howto/policy.md tells how to write either")
    known = {**POLICIES.names(), **EVICTIONS.names()}
    raise PluginError(f"no policy and no eviction {spec!r}{did_you_mean(spec, known)}; or give the path of a .py file")


def _without_site(error: BaseException) -> str:
    return one_line(error).partition(" For further information visit ")[0]  # pydantic appends its web site


def _file(spec: str) -> tuple[Path | None, str]:
    """The file and class of ``FILE.py`` or ``FILE.py:Class``; the file is None for a name."""
    path, _, wanted = spec.partition(".py:")
    if wanted:
        return Path(path + ".py"), wanted
    return (Path(spec) if spec.endswith(".py") else None), ""


def build(found: type[T], who: str, parameters: Mapping[str, Any]) -> T:
    """Make an instance of a plug-in class; text is read as the field's type, or as JSON if it begins with [ or {.

    Raises:
        SettingError: a parameter is unknown, out of bounds, or impossible together with another.
    """
    values = {name: _read(value) for name, value in parameters.items()}
    for name in values:
        if name not in found.model_fields:
            known = did_you_mean(name, found.model_fields) if found.model_fields else "; it has none"
            raise SettingError(f"{who}: unknown parameter {name!r}{known}")

    def made() -> T:
        try:
            return found.model_validate(values)
        except ValidationError as error:
            raise SettingError(f"{who}: {_explain(found, error)}") from error

    return call(who, made, doing="refused its parameters:", kind=SettingError)


def _explain(plugin: type[BaseModel], error: ValidationError) -> str:
    """The first error of the parameters, as field=value: rule (meaning)."""
    wrong = problem(error)
    field = wrong.field
    known = plugin.model_fields.get(str(wrong.loc[0])) if field else None
    meaning = f" ({known.description})" if known and known.description else ""
    if wrong.kind == "missing":
        return f"{field} must be given, with --set {field}=...{meaning}"
    return f"{field}={shorten(str(wrong.value))}: {wrong.rule}{meaning}" if field else wrong.rule


def _read(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    if isinstance(value, str) and value.lower() in ("none", "null"):
        return None
    return value


def baseline(model: ModelShape) -> tuple[str, Policy]:
    """The policy that leaves a model as it is, against which others are compared: (name, policy)."""
    return POLICIES.make("router" if model.experts else "dense")


def check_density(name: str, found: type[Policy]) -> None:
    """Refuse ``--density`` for a policy without a density.

    Raises:
        SettingError: the policy has no such parameter.
    """
    if "density" not in found.model_fields:
        raise SettingError(
            f"policy {name} takes no --density, it has no field of that name; set its own parameters with --set: "
            f"{', '.join(found.model_fields) or 'it has none'}"
        )

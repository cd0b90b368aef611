"""Specification of a sweep: a YAML file, or the options of the command, in which every value may be a list."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from hwsim.errors import SettingError, did_you_mean
from hwsim.simulation.settings import Settings
from hwsim.util.explain import problem
from hwsim.util.option import Declared, declared
from hwsim.util.yamlfile import read_yaml


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _words(value: Any) -> Any:
    return [str(entry) if isinstance(entry, int | float) and not isinstance(entry, bool) else entry for entry in value]


def _some(value: Any) -> Any:
    """Replace the text "none" by None, as on the command line."""
    return [None if entry == "none" else entry for entry in value]


Words = Annotated[list[str], BeforeValidator(_words), BeforeValidator(_listed), Field(min_length=1)]
Numbers = Annotated[list[int], BeforeValidator(_listed), Field(min_length=1)]
Densities = Annotated[
    list[float | str | list[float] | None], BeforeValidator(_some), BeforeValidator(_listed), Field(min_length=1)
]
Parameters = dict[str, Annotated[list[Any], BeforeValidator(_listed), Field(min_length=1)]]


class Spec(BaseModel):
    """A grid of runs: the product of all lists. Names and meanings are those of the options of replay and eval.

    Attributes:
        trace: files, or ``sample``, for replays.
        model: names, ids or paths, for closed loops over `text`.
        hw: profiles.
        policy: names or files.
        set: values by parameter: ``KEY``, ``POLICY.KEY`` or ``eviction.KEY``. A policy without a parameter is not
            varied by it.
        trust_remote_code: whether code that models bring along may run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    trace: Words | None = None
    model: Words | None = None
    text: Words = ["persuasion"]
    tokens: Numbers = [2048]
    context: Numbers = [512]
    prompt: Numbers = [0]
    hw: Words
    policy: Words
    density: Densities = [None]
    set: Parameters = Field(default_factory=dict)
    eviction: Words = ["lfu"]
    per_token: bool = False
    trust_remote_code: bool = False

    @property
    def sources(self) -> list[dict[str, Any]]:
        """The sources of runs, each ``{"trace": ...}`` or ``{"model": ..., "text": ..., ...}``."""
        sources: list[dict[str, Any]] = [{"trace": trace} for trace in self.trace or ()]
        axes = (self.model or [], self.text, self.tokens, self.context, self.prompt)
        trust = {"trust_remote_code": True} if self.trust_remote_code else {}
        return sources + [dict(zip(("model", *_READING), values, strict=True)) | trust for values in product(*axes)]

    @property
    def settings(self) -> list[dict[str, Any]]:
        """All combinations of the options besides source, device, policy and rule."""
        varied = [name for name in type(self).model_fields if name not in Spec.model_fields]
        return [dict(zip(varied, values, strict=True)) for values in product(*(getattr(self, name) for name in varied))]


_READING = ("text", "tokens", "context", "prompt")


def spec_of(settings: type[Settings]) -> type[Spec]:
    """Make a subclass of `Spec` with a list of values for each option of a run that a sweep supports.

    Args:
        settings: class that declares the options.
    """
    axes: dict[str, Any] = {
        name: (_values(option), [option.plain_default])
        for name, option in declared(settings).items()
        if "sweep" in option.option.commands and name not in Spec.model_fields
    }
    return create_model("Grid", __base__=Spec, **axes)


def _values(option: Declared) -> Any:
    """The type of a list of values of one option, as YAML and the command line write them."""
    given: Any = option.option.given
    kind: Any = {bool: bool, int: int, dict: dict[str, Any]}.get(given, str)
    if kind is str and "float" in (option.option.python or "").split(" | "):
        kind = float | str
    if option.option.most is not None:
        kind = Annotated[kind, Field(le=option.option.most)]
    readers = [BeforeValidator(_listed)]
    if option.optional and option.option.text is None:
        kind = kind | None
        readers.insert(0, BeforeValidator(_some))
    elif kind is str:
        readers.insert(0, BeforeValidator(_words))
    return Annotated[(list[kind], *readers, Field(min_length=1))]


Grid = spec_of(Settings)
"""The specification of a grid of runs with all options."""


def make_spec(values: dict[str, Any], where: str) -> Spec:
    """Make a specification from keys and values; `where` names their source in messages.

    Raises:
        SettingError: a key is unknown or missing, or a value is impossible.
    """
    try:
        spec = Grid.model_validate(values)
    except ValidationError as error:
        wrong = problem(error)
        key = str(wrong.loc[0]) if wrong.loc else ""
        hint = ""
        if wrong.unknown:
            hint = did_you_mean(key, Grid.model_fields)
        elif wrong.kind == "missing":
            hint = "; a sweep needs hw, policy, and trace or model"
        raise SettingError(f"{where}: {wrong._replace(loc=(key,)).text}{hint}") from error
    if not spec.trace and not spec.model:
        raise SettingError(f"{where}: names neither trace nor model; give one, or both")
    return spec


def read_spec(path: Path, options: dict[str, Any] | None = None) -> list[Spec]:
    """Read a file of keys and lists; sections under ``grids`` are separate grids with the other keys as defaults.

    Args:
        path: path of the file.
        options: keys that override those of the file.

    Raises:
        SettingError: the file cannot be read, is no YAML, or has an impossible value.
    """
    data = read_yaml(path, SettingError, "description of a sweep", "hw, policy, and trace or model")
    grids = data.pop("grids", [{}])
    if not isinstance(grids, list) or not grids or not all(isinstance(grid, dict) for grid in grids):
        raise SettingError(f"{path}: grids: must be a list of sections of keys")
    places = [f"{path}: grids.{at}" if len(grids) > 1 else str(path) for at in range(len(grids))]
    return [make_spec(data | grid | (options or {}), place) for grid, place in zip(grids, places, strict=True)]

"""What a sweep runs: a YAML file, or the options of the command, in which every value may be a list."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from hwsim.errors import SettingError, did_you_mean
from hwsim.util.explain import problem
from hwsim.util.yamlfile import read_yaml


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _words(value: Any) -> Any:
    return [str(each) if isinstance(each, int | float) and not isinstance(each, bool) else each for each in value]


def _some(value: Any) -> Any:
    """Where nothing can be chosen, it is called none, as on the command line."""
    return [None if each == "none" else each for each in value]


Words = Annotated[list[str], BeforeValidator(_words), BeforeValidator(_listed), Field(min_length=1)]
Flags = Annotated[list[bool], BeforeValidator(_listed), Field(min_length=1)]
Numbers = Annotated[list[int], BeforeValidator(_listed), Field(min_length=1)]
MaybeWords = Annotated[list[str | None], BeforeValidator(_some), BeforeValidator(_listed), Field(min_length=1)]
MaybeNumbers = Annotated[list[int | None], BeforeValidator(_some), BeforeValidator(_listed), Field(min_length=1)]
Densities = Annotated[
    list[float | str | list[float] | None], BeforeValidator(_some), BeforeValidator(_listed), Field(min_length=1)
]
Parameters = dict[str, Annotated[list[Any], BeforeValidator(_listed), Field(min_length=1)]]


class Spec(BaseModel):
    """A grid of runs: the product of all lists. Names and meanings are those of the options of replay and eval.

    Attributes:
        trace: files, or ``sample``: runs of these are replays.
        model: names, ids or paths: runs of these are closed loops, over `text`.
        hw: profiles.
        policy: names or files.
        set: values by parameter: ``KEY``, ``POLICY.KEY`` or ``eviction.KEY``. What a policy does not have is not varied
            for it.
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
    admission: MaybeWords = [None]
    pin: MaybeWords = [None]
    warm: MaybeWords = [None]
    lora: MaybeWords = [None]
    lora_merged: Flags = [False]
    cache_scope: Words = ["matrix"]
    cache_shares: Words = ["equal"]
    block: Numbers = [1]
    layout: MaybeWords = [None]
    dram: Annotated[MaybeWords, BeforeValidator(lambda value: _words(_listed(value)))] = [None]
    kv_tokens: MaybeNumbers = [None]
    bits: Words = [""]
    timing: Words = ["events"]
    overlap: Words = ["none"]
    bundle: Flags = [False]
    packed: Flags = [False]
    merge: MaybeWords = [None]
    gap: Words = ["0"]
    prefetch: MaybeWords = [None]
    prefetch_parameters: Annotated[list[dict[str, Any] | None], BeforeValidator(_some), BeforeValidator(_listed)] = [
        None
    ]
    fills: Flags = [False]
    engine: MaybeWords = [None]
    ignore: Words = [""]
    kv_window: MaybeNumbers = [None]
    prefill_chunk: MaybeNumbers = [None]
    seed: Numbers = [0]
    per_token: bool = False

    @property
    def sources(self) -> list[dict[str, Any]]:
        """What is run: ``{"trace": ...}`` or ``{"model": ..., "text": ..., ...}`` each."""
        found: list[dict[str, Any]] = [{"trace": trace} for trace in self.trace or ()]
        axes = (self.model or [], self.text, self.tokens, self.context, self.prompt)
        return found + [dict(zip(("model", *_READING), values, strict=True)) for values in product(*axes)]

    @property
    def settings(self) -> list[dict[str, Any]]:
        """All combinations of what is chosen besides source, device, policy and rule."""
        return [
            dict(zip(_SETTINGS, values, strict=True))
            for values in product(*(getattr(self, name) for name in _SETTINGS))
        ]


_READING = ("text", "tokens", "context", "prompt")
_SETTINGS = (
    "admission", "pin", "warm", "lora", "lora_merged", "cache_scope", "cache_shares", "block", "layout", "dram",
    "kv_tokens", "bits", "timing", "overlap", "seed", "bundle", "packed", "merge", "gap", "prefetch",
    "prefetch_parameters", "fills", "engine", "ignore", "kv_window", "prefill_chunk",
)  # fmt: skip


def make_spec(values: dict[str, Any], where: str) -> Spec:
    """Check what a sweep is asked for; `where` it was asked, for messages.

    Raises:
        SettingError: a key is unknown or missing, a value impossible.
    """
    try:
        found = Spec.model_validate(values)
    except ValidationError as error:
        wrong = problem(error)
        key = str(wrong.loc[0]) if wrong.loc else ""
        hint = ""
        if wrong.unknown:
            hint = did_you_mean(key, Spec.model_fields)
        elif wrong.kind == "missing":
            hint = "; a sweep needs hw, policy, and trace or model"
        raise SettingError(f"{where}: {wrong._replace(loc=(key,)).text}{hint}") from error
    if not found.trace and not found.model:
        raise SettingError(f"{where}: names neither trace nor model; give one, or both")
    return found


def read_spec(path: Path, options: dict[str, Any] | None = None) -> list[Spec]:
    """Read a file: keys and lists, and under ``grids`` more such, each with the other keys as its defaults.

    Args:
        path: of the file.
        options: keys that stand above those of the file.

    Raises:
        SettingError: it cannot be read, is no YAML, or asks for what is impossible.
    """
    data = read_yaml(path, SettingError, "description of a sweep", "hw, policy, and trace or model")
    grids = data.pop("grids", [{}])
    if not isinstance(grids, list) or not grids or not all(isinstance(each, dict) for each in grids):
        raise SettingError(f"{path}: grids: must be a list of sections of keys")
    places = [f"{path}: grids.{at}" if len(grids) > 1 else str(path) for at in range(len(grids))]
    return [make_spec(data | each | (options or {}), place) for each, place in zip(grids, places, strict=True)]

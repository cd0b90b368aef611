"""Options that several commands share: one meaning, one wording."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from hwsim.cli.declared import flat
from hwsim.errors import SettingError, did_you_mean
from hwsim.util.units import parse, shorten

if TYPE_CHECKING:
    from hwsim.simulation.settings import Settings
    from hwsim.trace import Encoding


class Timing(StrEnum):
    """How time is computed."""

    EVENTS = "events"
    CLOSED_FORM = "closed-form"


class Scope(StrEnum):
    """Who shares a cache."""

    MATRIX = "matrix"
    LAYER = "layer"
    GLOBAL = "global"


class Overlap(StrEnum):
    """What happens at the same time."""

    NONE = "none"
    GROUP = "group"
    PIPELINE = "pipeline"
    PREFETCH = "prefetch"


# --- model and text

Model = Annotated[
    str,
    typer.Option(
        metavar="NAME|ID|PATH", help="Short name such as smollm2-135m, hub id, folder with config.json, or .gguf file."
    ),
]
Text = Annotated[str, typer.Option(metavar="FILE|NAME", help="Text to read: a UTF-8 file, or the bundled one.")]
Tokens = Annotated[int, typer.Option(help="Tokens of the text to read.")]
Context = Annotated[int, typer.Option(help="Tokens of one window; each is a sequence of its own.")]
Prompt = Annotated[int, typer.Option(help="First tokens of each window that are no part of the decode.")]
Device = Annotated[str, typer.Option(help="torch's device.")]
Dtype = Annotated[
    str, typer.Option(help="auto, float32, bfloat16 or float16. auto: float32 on a CPU, else the checkpoint's own.")
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Memory that weights may take; more of them are loaded layer by layer from disk.",
        show_default="what is free",
    ),
]


@dataclass(frozen=True, kw_only=True)
class TorchOptions:
    """Where torch holds a model, and in which numbers."""

    device: Device = "cpu"
    dtype: Dtype = "auto"
    max_memory: MaxMemory = None

    @property
    def memory(self) -> int | None:
        """Bytes that weights may take.

        Raises:
            SettingError: it is no size.
        """
        return read_size(self.max_memory, "--max-memory")


class EncodingName(StrEnum):
    """How a trace stores its signals."""

    FLOAT16 = "float16"
    INT8 = "int8"
    TOP = "top"


EncodingOf = Annotated[
    EncodingName,
    typer.Option(
        "--encoding",
        help="float16: 2 bytes a value. int8: 1 byte, off by 1/254 of the row's largest or less. top: the largest.",
    ),
]
KeepShare = Annotated[
    float | None,
    typer.Option(metavar="SHARE", help="What --encoding top keeps of each row.", show_default="0.75"),
]
_KEEP_SHARE = 0.75


def read_encoding(name: EncodingName, share: float | None) -> Encoding:
    """The encoding that ``--encoding`` and ``--keep-share`` name.

    Raises:
        SettingError: the share is out of bounds, or given where all is kept.
    """
    from hwsim.trace import Encoding

    if name is not EncodingName.TOP:
        if share is not None:
            raise SettingError(f"--keep-share {share:g}: {name} keeps all; leave it out, or give --encoding top")
        return Encoding.model_validate({"name": name.value})
    share = _KEEP_SHARE if share is None else share
    if not 0 < share < 1:
        raise SettingError(f"--keep-share {share:g}: must be more than 0 and less than 1; float16 and int8 keep all")
    return Encoding(name="top", share=share)


# --- policy, cache and device

Hardware = Annotated[
    str, typer.Option("--hw", metavar="NAME|FILE", help="Hardware profile; `hwsim list devices` lists them.")
]
Policies = Annotated[
    list[str],
    typer.Option("--policy", metavar="NAME|FILE.py", help="Policy; several by commas or by repeating the option."),
]
Density = Annotated[
    str | None,
    typer.Option(
        metavar="SHARE|FILE",
        help="MLP density: share of the MLP's weights that a token reads; a YAML or JSON list: one for each layer.",
        show_default="the policy's, mostly 0.5",
    ),
]
Parameters = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A policy's parameter; POLICY.KEY=VALUE for one of several, eviction.KEY=VALUE for the rule.",
    ),
]
EvictionRule = Annotated[str, typer.Option(metavar="NAME|FILE.py", help="Who leaves a full cache.")]
Dram = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE|SHARE",
        help="DRAM for the model: a size (4GB), or a share of its weight bytes (50%), the KV cache on top.",
        show_default="the profile's budget",
    ),
]
KvTokens = Annotated[
    int | None,
    typer.Option(min=1, max=10**9, help="Tokens that the KV cache is reserved for.", show_default="longest sequence"),
]
BitsOfParts = Annotated[
    str, typer.Option(metavar="PART=BITS,...", help="Bits of a number; also predictor=4, adapter=16.")
]
DEFAULT_BITS = "mlp=4,attention=4,lm_head=4,kv_cache=8"
TimingModel = Annotated[Timing, typer.Option(help="The event engine, or the closed form of the paper.")]
OverlapOf = Annotated[
    Overlap,
    typer.Option(
        help="What may happen at once. group: Flash and DRAM within a group; pipeline: also arithmetic, and what the "
        "next layer surely needs; prefetch: also what --prefetch guesses."
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the policies' random numbers.")]
Lora = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="LoRA adapter, of `hwsim train lora` or of peft; on wherever a mask is."),
]
LoraMerged = Annotated[
    bool, typer.Option("--lora-merged", help="The adapter is merged into the weights: no bytes of its own.")
]
CacheScope = Annotated[
    Scope,
    typer.Option(help="matrix: each group of each layer has a cache; layer: one for a layer; global: one for all."),
]
CacheShares = Annotated[
    str,
    typer.Option(
        metavar="equal|traffic|A=N,B=N|FILE",
        help="Bytes of the caches: equal, in proportion to Flash traffic under equal shares, to weights of groups such "
        "as input=2,down=1, or to the traffic of a --json.",
    ),
]
Block = Annotated[
    int, typer.Option(min=1, max=10**8, help="Neighbouring rows or columns that are read and cached as one unit.")
]
NeuronLayout = Annotated[
    Path | None,
    typer.Option(
        "--layout",
        metavar="FILE",
        help="Order of the neurons in Flash, from `hwsim fit layout`.",
        show_default="the model's own",
    ),
]
PerToken = Annotated[bool, typer.Option("--per-token", help="Keep every token in the JSON.")]


SettingsFile = Annotated[
    Path | None,
    typer.Option("--settings", metavar="FILE.yaml", help="Settings that `hwsim tune` wrote; options stand above them."),
]


class Chosen(NamedTuple):
    """What a file of settings may say in place of options."""

    policy: list[str] | None
    density: str | None
    set_: list[str] | None
    eviction: str
    dram: str | None
    lora: Path | None
    lora_merged: bool
    cache_shares: str

    @classmethod
    def of(cls, options: object) -> Chosen:
        """What the options of a command say."""
        values = flat(options)
        return cls(**{name: values[name] for name in cls._fields})


def with_settings(ctx: typer.Context, path: Path | None, chosen: Chosen) -> Chosen:
    """What was chosen, with a file's word where an option was not given; ``--set`` adds to the file's.

    Raises:
        SettingError: the file cannot be read, or says something else.
    """
    from hwsim.util.yamlfile import read_yaml

    if path is None:
        return chosen
    found = {key: _only(value) for key, value in read_yaml(path, SettingError, "file of settings", "policy").items()}
    if isinstance(found.get("set"), dict):
        found["set"] = {key: _only(value) for key, value in found["set"].items()}
    known = [name.rstrip("_") for name in Chosen._fields]
    for key, value in found.items():
        if key not in known:
            raise SettingError(f"{path}: {key} is not a known key{did_you_mean(str(key), known)}")
        if not isinstance(value, {"set": dict, "lora_merged": bool, "density": float | int | list}.get(key, str)):
            raise SettingError(f"{path}: {key}: {shorten(repr(value))} is no value of this key; see docs/tune.md")
    texts: dict[str, Any] = {"set_": [f"{key}={dumps(value)}" for key, value in found.get("set", {}).items()]}
    texts["set_"] += chosen.set_ or []
    for key in known:
        if key in found and key != "set" and ctx.get_parameter_source(key).name == "DEFAULT":  # type: ignore[union-attr]
            read: Any = {"policy": lambda v: [v], "density": dumps, "lora": Path}.get(key, lambda v: v)
            texts[key] = read(found[key])
    return chosen._replace(**texts)


def settings_of(options: object, **others: Any) -> Settings:
    """The settings of a run: those options of a command that have the name of a setting.

    Args:
        options: of the command.
        others: values that stand above them.

    Raises:
        HwsimError: one is impossible, or a file is missing or something else.
    """
    from inspect import signature

    from hwsim.simulation.options import make_settings

    given = flat(options) | others
    names = signature(make_settings).parameters.keys() & given.keys()
    return make_settings(**{
        name: given[name].value if isinstance(given[name], Enum) else given[name] for name in names
    })  # fmt: skip


def _only(value: Any) -> Any:
    """The one value of a list of one, as a sweep's file may have it."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def model_files(model: str) -> list[Path]:
    """The files of ``--model``, where it is one or a folder of them; no result may overwrite them."""
    path = Path(model)
    try:
        return sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    except (OSError, ValueError):  # told by whoever reads the model
        return []


def lora_files(lora: Path | None, merged: bool) -> list[Path]:
    """The files of ``--lora``, which no result may overwrite.

    Raises:
        SettingError: ``--lora-merged`` without an adapter.
    """
    if merged and lora is None:
        raise SettingError("--lora-merged: no adapter is given; give --lora FOLDER, too")
    return sorted(lora.iterdir()) if lora is not None and lora.is_dir() else []


def check_per_token(per_token: bool, json: str | None) -> None:
    """Refuse ``--per-token`` where nothing would show it.

    Raises:
        SettingError: no JSON is written.
    """
    if per_token and json is None:
        raise SettingError("--per-token: single tokens are in the JSON only; give --json FILE, too")


def read_size(text: str | None, option: str) -> int | None:
    """Bytes of an option such as ``--max-memory 8GB``.

    Raises:
        SettingError: no size.
    """
    if text is None:
        return None
    try:
        return int(parse(text, "size"))
    except Exception as error:
        raise SettingError(f"{option} {text}: {error}") from error


def cache_files(shares: str, layout: Path | None) -> list[Path]:
    """The files that ``--cache-shares`` and ``--layout`` name."""
    from hwsim.memory.shares import shares_file

    return [path for path in (shares_file(shares), layout) if path is not None]

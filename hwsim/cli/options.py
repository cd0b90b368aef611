"""Options that several commands share: one meaning, one wording."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwsim.cli.runoptions import RunOptions
from hwsim.errors import SettingError, did_you_mean
from hwsim.util.option import declared
from hwsim.util.units import parse, shorten

if TYPE_CHECKING:
    from hwsim.trace import Encoding


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
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that the model's folder or repository brings along.")
]


@dataclass(frozen=True, kw_only=True)
class TorchOptions:
    """Options of torch and transformers: device, dtype and memory of a model, and whether its own code may run."""

    device: Device = "cpu"
    dtype: Dtype = "auto"
    max_memory: MaxMemory = None
    trust_remote_code: TrustRemoteCode = False

    @property
    def memory(self) -> int | None:
        """Bytes that weights may take, or None.

        Raises:
            SettingError: ``--max-memory`` is no size.
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
    """The encoding of ``--encoding`` and ``--keep-share``.

    Raises:
        SettingError: the share is out of bounds, or given for an encoding that keeps all values.
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
SettingsFile = Annotated[
    Path | None,
    typer.Option("--settings", metavar="FILE.yaml", help="Settings that `hwsim tune` wrote; options stand above them."),
]


@dataclass(frozen=True)
class Chosen:
    """Options that a file of settings may give instead of the command line.

    Attributes:
        policy: names, or None.
        density: a number, a list or a file, or None.
        set_: parameters, ``KEY=VALUE``.
        eviction: name or file of the rule.
        run: the options of a run.
    """

    policy: list[str] | None
    density: str | None
    set_: list[str] | None
    eviction: str
    run: RunOptions


def with_settings(ctx: typer.Context, path: Path | None, chosen: Chosen) -> Chosen:
    """Complete the chosen options from a file of settings; given options override it, and ``--set`` adds to it.

    Raises:
        SettingError: the file cannot be read, or has an unknown key or an invalid value.
    """
    from hwsim.simulation.settings import Settings
    from hwsim.util.yamlfile import read_yaml

    if path is None:
        return chosen
    kept = {key: _only(value) for key, value in read_yaml(path, SettingError, "file of settings", "policy").items()}
    if isinstance(kept.get("set"), dict):
        kept["set"] = {key: _only(value) for key, value in kept["set"].items()}
    known = {"policy": str, "density": float | int | list, "set": dict, "eviction": str} | _kinds(chosen.run)
    for key, value in kept.items():
        if key not in known and key in declared(Settings):
            takers = ", ".join(declared(Settings)[key].option.commands)
            raise SettingError(f"{path}: {key}: this command has no such option, only {takers}; leave the key out")
        if key not in known:
            raise SettingError(f"{path}: {key} is not a known key{did_you_mean(str(key), known)}")
        if not isinstance(value, known[key]) or (isinstance(value, bool) and known[key] is not bool):
            raise SettingError(f"{path}: {key}: {shorten(repr(value))} is no value of this key; see docs/howto/tune.md")
        _check_plain(path, key, value)
    pairs = [f"{key}={dumps(value)}" for key, value in kept.pop("set", {}).items()]
    own = {key: value for key, value in kept.items() if ctx.get_parameter_source(key).name == "DEFAULT"}  # type: ignore[union-attr]
    changes: dict[str, Any] = {"set_": pairs + (chosen.set_ or [])}
    if "policy" in own:
        changes["policy"] = [own.pop("policy")]
    if "density" in own:
        changes["density"] = dumps(own.pop("density"))
    if "eviction" in own:
        changes["eviction"] = own.pop("eviction")
    return replace(chosen, run=chosen.run.but(own), **changes)


def _check_plain(path: Path, key: str, value: Any) -> None:
    """Refuse a number out of bounds and an unknown word; what is to be read has messages of its own."""
    from hwsim.simulation.settings import Settings

    option = declared(Settings).get(key)
    if option is None or option.option.read is not None:
        return
    try:
        option.value(value)
    except ValueError as error:
        raise SettingError(f"{path}: {key}: {shorten(repr(value))} must be {option.rule}") from error


def _kinds(run: RunOptions) -> dict[str, Any]:
    """The type of each option of a run in a file of settings."""
    from hwsim.simulation.settings import Settings

    kinds: dict[Any, type] = {bool: bool, int: int}
    options = declared(Settings)
    return {name: kinds.get(options[name].option.given, str) for name in run.given}


def _only(value: Any) -> Any:
    """The only element of a list of one, as a sweep's file may have it; other values unchanged."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def model_files(model: str) -> list[Path]:
    """The files of ``--model``, if it is a file or a folder; no result may overwrite them."""
    path = Path(model)
    try:
        return sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    except (OSError, ValueError):  # reported when the model is read
        return []


def read_size(text: str | None, option: str) -> int | None:
    """Read an option such as ``--max-memory 8GB`` as bytes.

    Raises:
        SettingError: the text is no size.
    """
    if text is None:
        return None
    try:
        return int(parse(text, "size"))
    except Exception as error:
        raise SettingError(f"{option} {text}: {error}") from error

"""The options of a run on the command line, made from the declarations of `hwsim.simulation.settings.Settings`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, StrEnum
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwsim.cli.common import plugin_files
from hwsim.cli.declared import Derived
from hwsim.errors import SettingError
from hwsim.util.option import Declared, Option, declared

if TYPE_CHECKING:
    from hwsim.simulation.settings import Settings


@dataclass(frozen=True)
class RunOptions:
    """The given values of the options of a run.

    Attributes:
        given: values by option name, as typer read them.
    """

    given: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        """The value of one option, or its default; None for an option that the command does not take."""
        return self.given.get(name)

    def but(self, given: Mapping[str, Any]) -> RunOptions:
        """A copy with other values for some options."""
        return replace(self, given={**self.given, **given})

    def settings(self, **others: Any) -> Settings:
        """Make the settings of a run; `others` override the given values.

        Raises:
            HwsimError: an option is impossible, or a file is missing or has another content.
        """
        from hwsim.simulation.settings import Settings

        return Settings(**{**self.given, **others})

    def files(self) -> list[Path]:
        """The files that the options name, which no result may overwrite."""
        from hwsim.memory.shares import shares_file
        from hwsim.simulation.settings import Settings

        options = declared(Settings)
        named = [
            Path(value)
            for name, value in self.given.items()
            if value is not None and options[name].option.given is Path
        ]
        if (shares := self["cache_shares"]) and (file := shares_file(shares)):
            named.append(file)
        named += plugin_files([self["prefetch"]] if self["prefetch"] else [])
        return [file for path in named for file in (sorted(path.iterdir()) if path.is_dir() else [path])]


def parameters(command: str, settings: type[Settings] | None = None) -> list[Parameter]:
    """The typer parameters of all options that a command takes.

    Args:
        command: name of the command, such as ``replay`` or ``train lora``.
        settings: class that declares the options; None: `Settings`.
    """
    from hwsim.simulation.settings import Settings

    options = [option for option in declared(settings or Settings).values() if command in option.option.commands]
    return [_parameter(option) for option in options]


def _parameter(option: Declared) -> Parameter:
    declaration = option.option
    kind: Any = _choices(option.name, declaration) if isinstance(declaration.given, tuple) else declaration.given
    default = option.plain_default
    if isinstance(declaration.given, tuple) and default is not None:
        default = kind(default)
    about: Any = typer.Option(
        option.flag, metavar=declaration.metavar, help=declaration.help, min=declaration.least, max=declaration.most,
        show_default=declaration.shown or True, rich_help_panel=declaration.panel,
    )  # fmt: skip
    annotation: Any = Annotated[kind | None if option.optional and declaration.text is None else kind, about]
    return Parameter(option.name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _choices(name: str, declaration: Option) -> type[Enum]:
    """The choices of an option as an enumeration for typer."""
    words = {word.upper().replace("-", "_"): word for word in declaration.given}  # type: ignore[union-attr]
    return StrEnum(name.title().replace("_", ""), words)  # type: ignore[return-value]


def _given(values: dict[str, Any]) -> RunOptions:
    return RunOptions({name: value.value if isinstance(value, Enum) else value for name, value in values.items()})


Run = Annotated[RunOptions, Derived(parameters, _given)]
"""A field of a command's options: all options of a run that the command takes."""


def check_closed(run: RunOptions) -> None:
    """Refuse options that are only for replays.

    Raises:
        SettingError: the overlap mode needs a prefetch rule.
    """
    from hwsim.timing import overlap

    if overlap.find(run["overlap"]).guesses:
        raise SettingError(
            f"--overlap {run['overlap']}: is for replays; write the masks with hwsim eval --save-masks FILE, "
            "then hwsim replay FILE"
        )


def check_per_token(run: RunOptions, json: str | None) -> None:
    """Refuse ``--per-token`` if no JSON is written.

    Raises:
        SettingError: the option is given without ``--json``.
    """
    if run["per_token"] and json is None:
        raise SettingError("--per-token: single tokens are in the JSON only; give --json FILE, too")


def check_for_experts(run: RunOptions, others: Mapping[str, Any] | None = None) -> None:
    """Refuse options that a statistic of a trace without experts does not take into account.

    Args:
        run: the options of the run.
        others: further options that are for experts only, by their spelling; None: not given.

    Raises:
        SettingError: one is given.
    """
    given = {
        "--cache-scope": run["cache_scope"] not in (None, "matrix"),
        "--prefill": run["prefill"] == "cached",
        "--prefill-chunk": run["prefill_chunk"] is not None,
        "--keep-cache": bool(run["keep_cache"]),
    } | {name: value is not None for name, value in (others or {}).items()}
    if names := [name for name, is_given in given.items() if is_given]:
        raise SettingError(
            f"{names[0]}: is for policies that choose experts, such as router; leave it out (hwsim replay takes it)"
        )

"""Groups of commands, and commands whose modules are imported when needed; ``hwsim --help`` imports none of them."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, cast

import typer
from typer.core import TyperCommand, TyperGroup

_UsageError = cast(
    "type[Exception]", typer.BadParameter.__base__
)  # of click, or of the copy of click in newer versions of typer


def complain(text: str) -> None:
    """Print an error as one line, without control characters, even if a file name contains such."""
    from rich.console import Console

    from hwsim.util.units import printable

    line = "hwsim: " + printable(" ".join(text.splitlines()))
    Console(stderr=True, highlight=False, soft_wrap=True).print(line, style="red", markup=False)


class Entry(NamedTuple):
    """A command, which is a line of the table of commands.

    Attributes:
        name: words to type after ``hwsim``.
        where: ``module:function``, the module below `hwsim.cli`.
        summary: first paragraph of the function's docstring, so that ``--help`` need not import the module.
        panel: panel of ``hwsim --help``; None for a command in a group, because the group has a panel.
        old: an earlier spelling, which still works.
        bare: whether the command does something without arguments; otherwise it shows its help.
    """

    name: str
    where: str
    summary: str
    panel: str | None = None
    old: str | None = None
    bare: bool = False


class Later(TyperCommand):
    """A command that is known by its entry; its module is imported when anything else is needed."""

    entry: ClassVar[Entry]

    @functools.cached_property
    def loaded(self) -> Any:
        """The command that typer makes from the function."""
        from hwsim.cli.common import guarded
        from hwsim.cli.declared import declared

        module, _, function = self.entry.where.partition(":")
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
        command = getattr(importlib.import_module(f"hwsim.cli.{module}"), function)
        single.command(self.name)(guarded(declared(command, self.entry.name)))
        return typer.main.get_command(single)

    # attributes of the function; the setters ignore the values of the empty function that typer gets
    @property
    def params(self) -> Any:
        """Options and arguments."""
        return self.loaded.params

    @params.setter
    def params(self, value: Any) -> None: ...

    @property
    def help(self) -> Any:
        """The function's docstring."""
        return self.loaded.help

    @help.setter
    def help(self, value: Any) -> None: ...

    @property
    def callback(self) -> Any:
        """The callback that runs the function."""
        return self.loaded.callback

    @callback.setter
    def callback(self, value: Any) -> None: ...


def add_later(group: typer.Typer, entry: Entry, *, old: bool = False) -> None:
    """Add a command to a group; with `old` under its earlier spelling, which is not listed."""
    name = entry.old if old else entry.name.rpartition(" ")[2]
    group.command(
        name, cls=type("Later", (Later,), {"entry": entry}), short_help=entry.summary, rich_help_panel=entry.panel,
        no_args_is_help=not entry.bare, hidden=old,
    )(_nothing)  # fmt: skip


def _nothing() -> None: ...


class Group(TyperGroup):
    """A group of commands in the order of a table; earlier spellings work, but are not listed."""

    order: ClassVar[Sequence[str]] = ()
    """Names in the order of ``--help``; empty: the order in which they were added."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the commands that ``--help`` and the reference list."""
        return [name for name in self.order or self.commands if not self.commands[name].hidden]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the words name; an unknown name is refused with similar names."""
        name = args[0]
        if name not in self.commands and not name.startswith("-"):
            from difflib import get_close_matches

            known = self._spellings()
            near = dict.fromkeys(known[spelling] for spelling in get_close_matches(name, known))
            hint = f" Did you mean {', '.join(map(repr, near))}?" if near else ""
            ctx.fail(f"No such command {name!r}.{hint}")
        return super().resolve_command(ctx, args)

    def _spellings(self) -> dict[str, str]:
        """For each word of a command, also the second word of a command in a group, the words to type."""
        known: dict[str, str] = {}
        for name, command in self.commands.items():
            inner = command._spellings() if isinstance(command, Group) else {}
            known |= {word: f"{name} {words}" for word, words in inner.items()}
        for name, command in self.commands.items():
            known[name] = command.entry.name if isinstance(command, Later) and command.hidden else name
        return known


class Commands(Group):
    """All commands; errors of the command line are printed as one line, with the rule of an invalid value."""

    def main(
        self, args: Sequence[str] | None = None, prog_name: str | None = None, complete_var: str | None = None,
        standalone_mode: bool = True, windows_expand_args: bool = True, **extra: Any,
    ) -> Any:  # fmt: skip
        """Run the command line; the exit code is 2 if the command line is wrong."""
        run = functools.partial(super().main, args, prog_name, complete_var, False, windows_expand_args, **extra)
        if not standalone_mode:
            return run()
        try:
            code = run()
        except _UsageError as error:
            where = getattr(error, "ctx", None)
            if type(error).__name__ == "NoArgsIsHelpError":
                typer.echo(where.get_help() if where else "", err=True)
            else:
                message = cast("Any", error).format_message().rstrip(".")
                joint = "" if message.endswith("?") else ";"
                complain(f"{message}{joint} see {where.command_path if where else 'hwsim'} --help")
            sys.exit(2)
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; an error of pydantic becomes the message of the option."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            from pydantic import ValidationError

            from hwsim.util.explain import problem
            from hwsim.util.units import printable, shorten

            rule = str(error.message)
            if isinstance(error.__cause__, ValidationError):
                wrong = problem(error.__cause__)
                value = repr(wrong.value)
                rule = wrong.rule if value in wrong.rule else f"{wrong.rule} (got {shorten(value)})"
            error.message = printable(rule)
            raise

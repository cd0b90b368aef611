"""The commands that the program lists."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from hwsim.cli.app import app


def listed(group: Any = None, before: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command that ``--help`` lists, in this order, with its words."""
    group = group or typer.main.get_command(app)
    context = typer.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if hasattr(command, "list_commands"):
            yield from listed(command, (*before, name))
        else:
            yield " ".join((*before, name)), command

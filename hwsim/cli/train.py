"""``hwsim train``: what policies need and what repairs them."""

from __future__ import annotations

import typer

from hwsim.cli import trainlora, trainpredictor, trainprefetch
from hwsim.cli.common import guarded


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="Train what policies need, and what repairs them.")
    for command in (trainpredictor.predictor, trainlora.lora, trainprefetch.prefetch):
        group.command(no_args_is_help=True)(guarded(command))
    app.add_typer(group, name="train")

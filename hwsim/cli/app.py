"""The application and its commands, in the order in which ``hwsim --help`` lists them."""

from __future__ import annotations

from typing import Annotated

import typer

import hwsim
from hwsim.cli import (
    calibrate,
    calibratedevice,
    check,
    compare,
    evaluate,
    generate,
    layout,
    lists,
    new,
    record,
    replay,
    report,
    sweep,
    synth,
    trace,
    train,
    tune,
    validate,
)
from hwsim.cli.common import Commands

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Simulate LLM token generation on devices whose weights do not fit into DRAM.\n\n"
    "Record a model once, then replay the trace on any device under any policy:\n\n"
    "  hwsim record --model smollm2-135m --tokens 512 -o smollm2.npz\n\n"
    "  hwsim replay smollm2.npz --hw pixel8 --dram 50% --policy dip,dip-ca",
)


@app.callback(invoke_without_command=True)
def common(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --version: of Python, the system and all packages, too.")
    ] = False,
) -> None:
    """Options of the program itself."""
    if version and as_json:
        import json

        from hwsim.cli.version import versions

        typer.echo(json.dumps(versions(), indent=2))
    elif version:
        typer.echo(f"hwsim {hwsim.__version__}")
    elif as_json:
        raise typer.BadParameter("goes with --version, or after a command", param_hint="--json")
    if version:
        raise typer.Exit


record.register(app)
replay.register(app)
calibrate.register(app)
evaluate.register(app)
generate.register(app)
sweep.register(app)
report.register(app)
compare.register(app)
train.register(app)
tune.register(app)
synth.register(app)
trace.register(app)
layout.register(app)
lists.register(app)
calibratedevice.register(app)
validate.register(app)
new.register(app)
check.register(app)

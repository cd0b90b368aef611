"""The application and its commands, in the order in which ``hwsim --help`` lists them."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import typer

import hwsim
from hwsim.cli.group import Commands, add_later

_HELP = """Simulate LLM token generation on devices whose weights do not fit into DRAM.

Record a model once, then replay the trace on any device under any policy:

  hwsim record --model smollm2-135m --tokens 512 -o smollm2.npz

  hwsim replay smollm2.npz --hw pixel8 --dram 50% --policy dip,dip-ca
"""


class Entry(NamedTuple):
    """A command: a line of the table.

    Attributes:
        name: what is typed after ``hwsim``.
        where: ``module:function``, the module below `hwsim.cli`.
        summary: the first paragraph of the function's docstring; ``--help`` says it without loading the module.
        bare: the command does something without arguments; otherwise it shows its help.
    """

    name: str
    where: str
    summary: str
    bare: bool = False


GROUPS = {
    "train": "Train what policies need, and what repairs them.",
    "trace": "Look into a trace, check it, or store it anew.",
}
COMMANDS = (
    Entry("record", "record:record", "Record a model over a text: the trace that replays need.", bare=True),
    Entry("replay", "replay:replay", "Replay a trace on one or more devices under one or more policies."),
    Entry(
        "calibrate",
        "calibrate:calibrate",
        "Find thresholds and hot sets in a recorded trace, for cats, dip-threshold, teal and static, at every density.",
    ),
    Entry(
        "eval",
        "evaluate:evaluate",
        "Run a model under policies, with the cache in the loop: perplexity beside tokens/s.",
    ),
    Entry(
        "generate",
        "generate:generate",
        "Let a model write under a policy, with its caches: what it says, and how fast a device would say it.",
    ),
    Entry(
        "sweep",
        "sweep:sweep",
        "Run every combination of traces or models, devices, policies, parameters, rules and sizes of DRAM.",
    ),
    Entry(
        "runs",
        "sweep:runs",
        "Show the runs of a store, with the numbers by which `hwsim compare` finds them, or write them as one result "
        "file.",
    ),
    Entry(
        "report",
        "report:report",
        "Make one page of HTML of results: the answer first, then plots, tables and where the numbers are from.",
    ),
    Entry("compare", "compare:compare", "Explain the difference between two results in words and numbers."),
    Entry(
        "train predictor",
        "trainpredictor:predictor",
        "Train one net per layer that predicts from the MLP's input which neurons a token needs.",
    ),
    Entry("train lora", "trainlora:lora", "Train a LoRA adapter under a policy, with the dense model as teacher."),
    Entry(
        "train prefetch",
        "trainprefetch:prefetch",
        "Count on a trace how often a unit is needed after a token that needed it, or did not; for --prefetch trained.",
    ),
    Entry(
        "tune",
        "tune:tune",
        "Find the fastest DIP-CA on a device whose perplexity, with the cache in the loop, stays within a loss.",
    ),
    Entry(
        "synth",
        "synth:synth",
        "Draw a trace for a model whose weights are not at hand, with the statistics of a recorded trace.",
    ),
    Entry(
        "trace info",
        "trace:info",
        "Show what a trace holds, where it is from, and how sparse and how steady its signals are.",
    ),
    Entry(
        "trace verify",
        "trace:verify",
        "Read all of a trace and check it: checksums, shapes, no NaN. Exit code 1 if it is damaged.",
    ),
    Entry(
        "trace locality",
        "locality:locality",
        "Compare every eviction rule on a trace and on the same tokens shuffled: popularity and locality apart.",
    ),
    Entry(
        "trace curve",
        "curve:curve",
        "Show the hit rate of LRU for caches of every size at once; --json holds every size, the table ten.",
    ),
    Entry(
        "trace convert",
        "convert:convert",
        "Store a trace in another encoding, or with fewer signals; what was lost before stays lost.",
    ),
    Entry(
        "layout",
        "layout:layout",
        "Order the neurons so that those which are active together lie side by side in Flash.",
    ),
    Entry(
        "policies",
        "lists:policies",
        "List the policies, or show one with its parameters, defaults and bounds.",
        bare=True,
    ),
    Entry("evictions", "lists:evictions", "List the eviction rules, or show one.", bare=True),
    Entry(
        "prefetches", "lists:prefetches", "List the rules that guess what the next layer needs, or show one.", bare=True
    ),
    Entry(
        "devices",
        "lists:devices",
        "List the hardware profiles, or show one with units, sources and confidence.",
        bare=True,
    ),
    Entry(
        "calibrate-device",
        "calibratedevice:calibrate_device",
        "Fit Flash's queue model to measured rates, judge it by points left out, and write a profile.",
    ),
    Entry(
        "validate",
        "validate:validate",
        "Predict published measurements from their stated conditions, and show how far off the predictions are.",
        bare=True,
    ),
    Entry(
        "new-policy",
        "new:new_policy",
        "Write a policy that works, and its test, to start from. Nothing that is there is overwritten.",
    ),
    Entry(
        "new-eviction",
        "new:new_eviction",
        "Write an eviction rule that works, and its test, to start from. Nothing that is there is overwritten.",
    ),
    Entry(
        "check",
        "check:check",
        "Check a policy or an eviction rule against every rule of the contract. Exit code 1 if one is broken.",
    ),
)
app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help=_HELP,
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


def _fill() -> None:
    """Add the commands of the table, each to its group."""
    groups = {"": app}
    for name, summary in GROUPS.items():
        groups[name] = typer.Typer(no_args_is_help=True, help=summary)
        app.add_typer(groups[name], name=name)
    for entry in COMMANDS:
        group, _, name = entry.name.rpartition(" ")
        add_later(groups[group], name, entry.where, entry.summary, bare=entry.bare)


_fill()

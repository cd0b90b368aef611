"""The application and its commands, in the order in which ``hwsim --help`` lists them."""

from __future__ import annotations

from typing import Annotated

import typer

import hwsim
from hwsim.cli.group import Commands, Entry, Group, add_later

_HELP = """Simulate LLM token generation on devices whose weights do not fit into DRAM.

Record a model once, then replay the trace on any device under any policy:

  hwsim record --model smollm2-135m --tokens 512 -o smollm2.npz

  hwsim replay smollm2.npz --hw pixel8 --dram 50% --policy dip,dip-ca
"""


_ONE, _MANY, _ELSE = "Record and replay", "Compare and tune", "Traces, plug-ins and devices"

COMMANDS = (
    Entry("record", "record:record", "Record a model over a text: the trace that replays need.", _ONE, bare=True),
    Entry("replay", "replay:replay", "Replay a trace on one or more devices under one or more policies.", _ONE),
    Entry("eval", "evaluate:evaluate", "Run a model under policies: perplexity beside tokens/s.", _ONE),
    Entry("generate", "generate:generate", "Let a model write under a policy: its text, and the tokens/s.", _ONE),
    Entry("sweep", "sweep:sweep", "Run every combination of models, devices, policies and settings.", _MANY),
    Entry("runs", "sweep:runs", "Show the runs of a sweep, or write them as one result file.", _MANY),
    Entry("tune", "tune:tune", "Find the fastest settings that stay within a loss of perplexity.", _MANY),
    Entry("plan", "plan:plan", "Recommend a cache for a mixture of experts, by amounts of DRAM.", _MANY),
    Entry("report", "report:report", "Make one page of HTML of results.", _MANY),
    Entry("compare", "compare:compare", "Explain the difference between two results in words and numbers.", _MANY),
    Entry("synth", "synth:synth", "Draw a trace for a model whose weights are not at hand.", _ELSE),
    Entry(
        "trace info", "trace:info",
        "Show what a trace holds, where it is from, and how sparse and how steady its signals are.",
    ),
    Entry(
        "trace verify", "trace:verify",
        "Read all of a trace and check it: checksums, shapes, no NaN. Exit code 1 if it is damaged.",
    ),
    Entry(
        "trace locality", "locality:locality",
        "Compare every eviction rule on a trace and on the same tokens shuffled: popularity and locality apart.",
    ),
    Entry(
        "trace curve", "curve:curve",
        "Show the hit rate by the size of the caches.",
    ),
    Entry(
        "trace convert", "convert:convert",
        "Store a trace in another encoding, or with fewer signals; what was lost before stays lost.",
    ),
    Entry(
        "trace import", "importing:import_trace",
        "Make a trace of a router trace: which experts each token used, in each layer, and what they weigh.",
    ),
    Entry(
        "train predictor", "trainpredictor:predictor",
        "Train one net per layer that predicts from the MLP's input which neurons a token needs.",
    ),
    Entry("train lora", "trainlora:lora", "Train a LoRA adapter under a policy, with the dense model as teacher."),
    Entry(
        "train prefetch", "trainprefetch:prefetch",
        "Count on a trace how often a unit is needed after a token that needed it, or did not; for --prefetch trained.",
    ),
    Entry(
        "fit thresholds", "fitthresholds:thresholds",
        "Find thresholds and hot sets in a recorded trace, for cats, dip-threshold, teal and static, at every density.",
        old="calibrate",
    ),
    Entry(
        "fit device", "fitdevice:device",
        "Fit Flash's queue model to measured rates, judge it by points left out, and write a profile.",
        old="calibrate-device",
    ),
    Entry(
        "fit layout", "fitlayout:layout",
        "Order the neurons so that those which are active together lie side by side in Flash.",
        old="layout",
    ),
    Entry(
        "list policies", "lists:policies",
        "List the policies, or show one with its parameters, defaults and bounds.",
        old="policies", bare=True,
    ),
    Entry("list evictions", "lists:evictions", "List the eviction rules, or show one.", old="evictions", bare=True),
    Entry(
        "list prefetches", "lists:prefetches", "List the rules that guess what the next layer needs, or show one.",
        old="prefetches", bare=True,
    ),
    Entry(
        "list devices", "lists:devices", "List the hardware profiles, or show one with units, sources and confidence.",
        old="devices", bare=True,
    ),
    Entry(
        "plugin new-policy", "new:new_policy",
        "Write a policy that works, and its test, to start from. Nothing that is there is overwritten.",
        old="new-policy",
    ),
    Entry(
        "plugin new-eviction", "new:new_eviction",
        "Write an eviction rule that works, and its test, to start from. Nothing that is there is overwritten.",
        old="new-eviction",
    ),
    Entry(
        "plugin check", "check:check",
        "Check a policy or an eviction rule against every rule of the contract. Exit code 1 if one is broken.",
        old="check",
    ),
    Entry(
        "validate", "validate:validate", "Predict published measurements, and show how far off that is.", _ELSE,
        bare=True,
    ),
)  # fmt: skip

GROUPS = {
    "trace": "Look into a trace, check it, store it anew, or import one.",
    "train": "Train what policies need, and what repairs them.",
    "fit": "Fit thresholds, the order of neurons, or a device's Flash.",
    "list": "List policies, eviction rules, prefetch rules or devices.",
    "plugin": "Start a policy or an eviction rule of your own, and check it.",
}


class Program(Commands):
    """The program, whose commands and groups are in the order of the table."""

    order = tuple(dict.fromkeys(entry.name.partition(" ")[0] for entry in COMMANDS))


app = typer.Typer(
    cls=Program,
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
    as_json: Annotated[bool, typer.Option("--json", help="With --version: Python, system and packages, too.")] = False,
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
    """Add the commands of the table to their groups, and the earlier spellings, which ``--help`` does not list."""
    groups = {"": app}
    for name, summary in GROUPS.items():
        groups[name] = typer.Typer(cls=Group, no_args_is_help=True, help=summary, short_help=summary)
        app.add_typer(groups[name], name=name, rich_help_panel=_ELSE)
    for entry in COMMANDS:
        add_later(groups[entry.name.rpartition(" ")[0]], entry)
        if entry.old:
            add_later(app, entry, old=True)


_fill()

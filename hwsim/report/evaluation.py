"""Accuracy beside speed: what ``hwsim eval`` shows."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import ConsoleRenderable
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hwsim.model.shape import ModelShape
from hwsim.simulation.metrics import Evaluation, Result
from hwsim.simulation.plugins import baseline
from hwsim.util.units import printable, show_number, show_time


def render_accuracy(rows: list[Evaluation]) -> ConsoleRenderable:
    """Render the accuracy of each policy; the line of the unmodified model is taken from the first row."""
    name = baseline_of(rows[0])
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    heads = ["\npolicy", "\nperplexity", f"against\n{name}", f"KL to\n{name}", "top-1\nagreement", "MLP\ndensity"]
    heads += ["hit\nrate", "\ntokens/s"]
    for index, head in enumerate(heads):
        table.add_column(head, justify="right" if index else "left", no_wrap=True)
    table.add_row(Text(untouched(rows[0]), style="dim"), show_number(rows[0].dense_perplexity), *["-"] * 6)
    for row in rows:
        table.add_row(
            Text(printable(row.provenance["policy"]["name"]), style="bold"),
            show_number(row.perplexity),
            f"{row.perplexity - row.dense_perplexity:+.3g}",
            f"{row.kl:.3g}",
            f"{row.top1:.1%}",
            f"{row.mlp_density:.3f}",
            "-" if row.hit_rate is None else f"{row.hit_rate:.1%}",
            show_number(row.throughput_tok_s),
        )
    return Padding(table, (1, 0, 0, 0))


def baseline_of(result: Result) -> str:
    """Name of the policy that leaves the model of a result as it is: `dense`, or `router` if it has experts."""
    return baseline(ModelShape.model_validate(result.provenance["model"]))[0]


def untouched(result: Result) -> str:
    """What tables call the unmodified model."""
    return "(no mask)" if baseline_of(result) == "dense" else "(no change)"


def unmodified(results: Sequence[Result]) -> Result:
    """The result of the policy that leaves the model as it is; the first one without groups, or of its name."""
    name = baseline_of(results[0])
    return next(
        result for result in results if not result.groups or result.provenance["policy"]["name"] == name
    )  # fmt: skip


def speed(result: Result) -> ConsoleRenderable:
    """One line: the simulated speed of this generation on the device."""
    name, device = (printable(result.provenance[part]["name"]) for part in ("policy", "device"))
    hits = "" if result.hit_rate is None else f", hit rate {result.hit_rate:.1%}"
    first = "" if result.ttft_s is None else f", first token after at least {show_time(result.ttft_s)}"
    return Text(
        f"{name} on {device}, simulated: {show_number(result.throughput_tok_s)} tokens/s over {result.tokens} tokens"
        f"{first}{hits}, MLP density {result.mlp_density:.3f}",
        style="dim",
    )

"""Results of a training: what ``hwsim train ...`` shows."""

from __future__ import annotations

from typing import Any

from rich.console import ConsoleRenderable, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hwsim.util.units import printable, show_number


def render_lora(trained: Any) -> ConsoleRenderable:
    """Render the curve of a `hwsim.train.lora.Trained`, and the share of the gap that the adapter closes."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for head in ("step", "tokens", "perplexity", "against dense", "KL to dense", ""):
        table.add_column(head, justify="right" if head else "left", no_wrap=True)
    for look in trained.curve:
        mark = "without the adapter" if look.step == 0 else "kept" if look.step == trained.best else ""
        table.add_row(
            str(look.step), f"{look.tokens:,}", show_number(look.perplexity),
            f"{look.perplexity - trained.dense_perplexity:+.3g}", show_number(look.kl), mark,
        )  # fmt: skip
    gap = (
        "there was no gap to dense to close" if trained.closed is None else f"it closes {trained.closed:.1%} of the gap"
    )
    last = (
        f"{printable(trained.folder.name)}: rank {trained.rank}, {trained.parameters:,} parameters; on the validation "
        f"tokens, never trained on, {gap} ({show_number(trained.dense_perplexity)})"
    )
    return Group(table, Text(last, style="bold"))


def render_predictor(header: dict[str, Any]) -> ConsoleRenderable:
    """Render the recall of a predictor file's nets on the validation tokens, for each layer and in the mean.

    Args:
        header: the header of the predictor file.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for head in (
        "\nlayer",
        "recall =\nprecision",
        "best\nstatic set",
        "\nchance",
        "loss\nbefore",
        "\nafter",
        "best\nepoch",
    ):
        table.add_column(head, justify="right", no_wrap=True)
    chance = f"{header['chance']:.1%}"
    for number, layer in enumerate(header["layers"]):
        table.add_row(
            str(number),
            f"{layer['recall']:.1%}",
            f"{layer['static']:.1%}",
            chance,
            f"{layer['losses'][0]:.4f}",
            f"{layer['loss']:.4f}",
            f"{layer['epoch']} of {len(layer['losses']) - 1}",
        )
    table.add_row("mean", f"{header['recall']:.1%}", f"{header['static']:.1%}", chance, style="bold")
    units, share = header["model"]["intermediate_size"], header["share"]
    meaning = (
        f"A mask holds {header['k']} of {units} neurons: density {header['density']:g} less the nets' own {share:.3f}. "
        "Truth and guess hold equally many, so recall is precision."
    )
    return Group(Padding(table, (1, 0, 1, 0)), Text(meaning, style="dim"))

"""What a training gave: what ``hwsim train lora`` shows."""

from __future__ import annotations

from typing import Any

from rich.console import ConsoleRenderable, Group
from rich.table import Table
from rich.text import Text

from hwsim.units import printable


def render_lora(trained: Any) -> ConsoleRenderable:
    """The curve of a `hwsim.train.lora.Trained`, and the share of the gap that the adapter closed."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for head in ("step", "tokens", "perplexity", "against dense", "KL to dense", ""):
        table.add_column(head, justify="right" if head else "left", no_wrap=True)
    for look in trained.curve:
        mark = "without the adapter" if look.step == 0 else "kept" if look.step == trained.best else ""
        table.add_row(
            str(look.step), f"{look.tokens:,}", f"{look.perplexity:.4g}",
            f"{look.perplexity - trained.dense_perplexity:+.3g}", f"{look.kl:.4g}", mark,
        )  # fmt: skip
    last = (
        f"{printable(trained.folder.name)}: rank {trained.rank}, {trained.parameters:,} parameters; on the validation "
        f"tokens, never trained on, it closes {trained.closed:.1%} of the gap to dense ({trained.dense_perplexity:.4g})"
    )
    return Group(table, Text(last, style="bold"))

"""Results of a tuning study: the fastest setting within each loss, beside DIP-CA as its authors set it."""

from __future__ import annotations

from typing import Any, Protocol

from rich.console import ConsoleRenderable
from rich.table import Table

from hwsim.util.units import show_number

Best = dict[float, dict[str, Any] | None]


class Found(Protocol):
    """The attributes of a study that are shown."""

    trials: int
    dense: float
    best: Best
    base: Best
    front: list[dict[str, Any]]


def render_tuned(found: Found) -> ConsoleRenderable:
    """Render the study as a table with a row for each loss."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    dense = show_number(found.dense)
    table.title = f"{found.trials} trials, {len(found.front)} of them on the front; dense perplexity {dense}"
    for head in (
        "at most",
        "tokens/s",
        "perplexity",
        "MLP density",
        "hit rate",
        "authors' split, gamma 0.2",
        "against it",
    ):
        table.add_column(head, justify="right")
    for loss, best in found.best.items():
        base = found.base[loss]
        cells = [f"+{loss:g}"]
        cells += [*_cells(best)] if best else ["-"] * 4
        cells.append(show_number(base["throughput_tok_s"]) if base else "none so close")
        cells.append(f"{best['throughput_tok_s'] / base['throughput_tok_s']:.3f} x" if best and base else "")
        table.add_row(*cells)
    return table


def _cells(best: dict[str, Any]) -> list[str]:
    rate = best["hit_rate"]
    return [
        show_number(best["throughput_tok_s"]), show_number(best["perplexity"]), f"{best['mlp_density']:.3f}",
        "-" if rate is None else f"{rate:.1%}",
    ]  # fmt: skip

"""Describe the bytes of experts, and what a router chose of them."""

from __future__ import annotations

from rich.console import ConsoleRenderable, Group
from rich.text import Text

from hwsim.analysis.expertstats import ExpertStats
from hwsim.model.shape import ModelShape
from hwsim.report.columns import Column, table
from hwsim.report.columns import rows as rows_of
from hwsim.util.units import show_size

_RANKS = 4  # whose weights are shown


def sizes_of(model: ModelShape) -> dict[str, str]:
    """Lines about the bytes of a model of which nothing else is known, by their titles."""
    sparse = [layer.experts for layer in model.layers if layer.experts]
    counts, used = (sorted({getattr(experts, name) for experts in sparse}) for name in ("count", "used"))
    sizes = [experts.bytes or 0 for experts in sparse]
    whole = sum(experts.count * size for experts, size in zip(sparse, sizes, strict=True))
    token = sum(experts.used * size for experts, size in zip(sparse, sizes, strict=True))
    each = " to ".join(show_size(size) for size in sorted({min(sizes), max(sizes)}))
    return {
        "experts": f"{_span(counts)} in {len(sparse)} of {model.num_hidden_layers} layers, {_span(used)} used; "
        f"{each} each, {show_size(whole)} in all, {show_size(token)} a token",
        "dense": f"{show_size(sum(layer.dense_bytes or 0 for layer in model.layers))} that every token reads",
    }


def _span(values: list[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]}-{values[-1]}"


def render_experts(stats: ExpertStats, *, layers: bool = False) -> ConsoleRenderable:
    """A table of the statistics of the chosen experts; with `layers` one line for each layer, too."""
    lines = [(" experts", stats)]
    if layers:
        lines += [(f"   {layer}", part) for layer, part in stats.layers.items()]
    ranks = min(_RANKS, len(stats.weights or ()))
    columns = [
        Column("\n", [name for name, _ in lines], folds=True),
        Column("\noverlap", [_share(part.overlap) for _, part in lines]),
        Column("\npopular", [_share(part.popularity) for _, part in lines]),
        Column("\nused", [_share(part.touched) for _, part in lines]),
    ]
    for rank in range(ranks):
        cells = [f"{part.weights[rank]:.3g}" if part.weights and rank < len(part.weights) else "-" for _, part in lines]
        columns.append(Column(f"weight of\nrank {rank}", cells))
    shown = table(columns, 1)
    for (name, _), (head, *rest) in zip(lines, rows_of(columns), strict=True):
        head.stylize("bold")
        shown.add_row(head, *rest, style="dim" if name.startswith("  ") else "")
    meaning = Text(
        " overlap: share of a token's experts that the token before had, too. popular: share of all choices that\n"
        " fall on the most used tenth of a layer's experts. used: share of the experts that any token used.",
        style="dim",
    )
    return Group(shown, meaning)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"

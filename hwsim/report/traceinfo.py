"""What a trace holds, as tables: model, tokens, provenance, and the statistics of its signals."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import ConsoleRenderable, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hwsim.trace import Trace
from hwsim.tracestats import SignalStats, TraceStats
from hwsim.units import show_size

_NARROW = (0, 1)


def render_trace(trace: Trace, stats: TraceStats, *, layers: bool = False) -> ConsoleRenderable:
    """Everything that ``hwsim trace info`` shows.

    Args:
        trace: an open trace.
        stats: its statistics.
        layers: whether each layer gets a line of its own.
    """
    parts: list[ConsoleRenderable] = [_head(trace), Padding(_signals(stats, layers=layers), (1, 0, 0, 0))]
    if stats.tokens < trace.header.tokens:
        parts.append(Padding(Text(f"Statistics of the first {stats.tokens} tokens.", style="dim"), _NARROW))
    parts.append(Padding(_provenance(trace.header.provenance), (1, 0, 0, 0)))
    return Group(*parts)


def render_comparison(fitted: TraceStats, synthetic: TraceStats) -> ConsoleRenderable:
    """Statistics of a synthetic trace beside those of the trace that it was fitted to, signal by signal."""
    signals = [name for name in synthetic.signals if name in fitted.signals]
    table = Table(box=None, padding=_NARROW, collapse_padding=True, header_style="bold")
    tokens = f"{fitted.tokens} tokens" if fitted.tokens == synthetic.tokens else "statistics"
    table.add_column(f"first {tokens}\n", no_wrap=True, style="bold")
    for name in signals:
        table.add_column(f"{name}\nfitted to", justify="right", no_wrap=True)
        table.add_column("\nsynthetic", justify="right", no_wrap=True)
    rows = [dict(_statistics(stats.signals[name])) for name in signals for stats in (fitted, synthetic)]
    for label in rows[0]:
        table.add_row(label, *(row[label] for row in rows))
    return table


def _head(trace: Trace) -> ConsoleRenderable:
    header, model = trace.header, trace.model
    lengths = sorted({sequence.tokens for sequence in header.sequences})
    prompts = sorted({sequence.prompt for sequence in header.sequences})
    count = len(header.sequences)
    sequences = f"{count} sequence{'s' if count > 1 else ''} of {_span(lengths)} tokens"
    perplexity = trace.perplexity()
    rows = {
        "model": f"{model.name}: {model.num_hidden_layers} layers, hidden size {model.hidden_size}, "
        f"intermediate size {model.intermediate_size}, {model.hidden_act}{'' if model.gated else ', no gate'}",
        "tokens": f"{header.tokens} in {sequences}, prompt {_span(prompts)}; {header.decoded} are decoded",
        "signals": ", ".join(header.signals),
        "file": f"{trace.path}, {show_size(trace.size)}, {header.origin}",
        "dense model": f"perplexity {perplexity:.4g}" if perplexity is not None else "losses were not recorded",
    }
    return _grid(rows.items())


def _span(values: list[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]}-{values[-1]}"


def _grid(rows: Iterable[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2), pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(f" {name}"), Text(value))
    return table


def _provenance(found: dict[str, Any]) -> ConsoleRenderable:
    return _grid([("provenance", ""), *((f"  {name}", value) for name, value in _flat(found))])


def _flat(found: dict[str, Any], above: str = "") -> list[tuple[str, str]]:
    """Nested fields as dotted names: ``command.tokens``."""
    rows = []
    for key, value in sorted(found.items()):
        name = f"{above}{key}"
        if isinstance(value, dict):
            rows += _flat(value, f"{name}.")
        else:
            rows.append((name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return rows


def _signals(stats: TraceStats, *, layers: bool) -> ConsoleRenderable:
    table = Table(box=None, padding=_NARROW, collapse_padding=True, header_style="bold")
    table.add_column("\nsignal", style="bold", no_wrap=True)
    first = next(iter(stats.signals.values()))
    heads = ["mean\n|x|", "\nrms", "\np50", "\np99", "\nmax", "tail\np99/p50", "units with\n90 % energy"]
    heads += [f"overlap\nkeep {keep:g}" for keep in first.overlap]
    heads += [f"popular\nkeep {keep:g}" for keep in first.popularity]
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for name, found in stats.signals.items():
        table.add_row(name, *_cells(found))
        if layers:
            for layer, part in enumerate(stats.layers[name]):
                table.add_row(f"  {layer}", *_cells(part), style="dim")
    meaning = Text(
        " overlap: share of a token's top units that the token before had too. popular: share of all picks\n"
        " that fall on the most used tenth of the units. Chance alone: keep, and 10 %.",
        style="dim",
    )
    return Group(table, meaning)


def _cells(found: SignalStats) -> list[str]:
    sizes = [_short(value) for value in (found.mean, found.rms, found.p50, found.p99, found.max)]
    rest = [text for label, text in _statistics(found) if not label.startswith("mean")]
    return sizes + rest


def _short(value: float) -> str:
    """Three digits; no exponent for what is large."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _statistics(found: SignalStats) -> list[tuple[str, str]]:
    return [
        ("mean magnitude", _short(found.mean)),
        ("tail, p99 / p50", "-" if found.tail is None else f"{found.tail:.3g}"),
        ("units with 90 % of the energy", f"{found.energy_share_90:.1%}"),
        *((f"overlap at keep {k:g}", "-" if v is None else f"{v:.1%}") for k, v in found.overlap.items()),
        *((f"popularity at keep {k:g}", f"{v:.1%}") for k, v in found.popularity.items()),
    ]

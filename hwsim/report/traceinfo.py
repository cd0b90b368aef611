"""Describe a trace in tables: model, tokens, provenance, and the statistics of its signals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from rich.console import ConsoleRenderable, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hwsim.analysis.tracestats import SignalStats, TraceStats
from hwsim.model.layers import Experts
from hwsim.model.shape import ModelShape
from hwsim.model.stored import StoredBytes, count_weights
from hwsim.report.columns import Column, fit, table, widen
from hwsim.report.columns import rows as rows_of
from hwsim.report.expertinfo import render_experts, sizes_of
from hwsim.trace import Trace, TraceHeader
from hwsim.trace.header import EXACT
from hwsim.util.units import printable, show_number, show_size

_NARROW = (0, 1)


def finite_perplexity(trace: Trace) -> float | None:
    """Perplexity of the dense model; None if losses were not recorded or the perplexity is not finite."""
    with np.errstate(all="ignore"):
        perplexity = trace.perplexity()
    return perplexity if perplexity is not None and math.isfinite(perplexity) else None


def render_trace(trace: Trace, stats: TraceStats, *, layers: bool = False, width: int = 160) -> ConsoleRenderable:
    """Everything that ``hwsim trace info`` shows.

    Args:
        trace: an open trace.
        stats: its statistics.
        layers: whether each layer gets a line of its own.
        width: characters of a line.
    """
    parts: list[ConsoleRenderable] = [_head(trace)]
    dropped: list[str] = []
    if stats.signals:
        signals, dropped = _signals(stats, layers=layers, width=width)
        parts.append(Padding(signals, (1, 0, 0, 0)))
    if stats.experts:
        parts.append(Padding(render_experts(stats.experts, layers=layers), (1, 0, 0, 0)))
    if stats.tokens < trace.header.tokens:
        parts.append(Padding(Text(f"Statistics of the first {stats.tokens} tokens.", style="dim"), _NARROW))
    parts.append(Padding(_provenance(trace.header.provenance), (1, 0, 0, 0)))
    return Group(*parts, *_widen(dropped))


def render_comparison(fitted: TraceStats, synthetic: TraceStats, width: int = 160) -> ConsoleRenderable:
    """Render the statistics of a synthetic trace beside those of the trace it was fitted to, for each signal."""
    signals = [name for name in synthetic.signals if name in fitted.signals]
    tokens = f"{fitted.tokens} tokens" if fitted.tokens == synthetic.tokens else "statistics"
    labels = [label for label, _ in _statistics(fitted.signals[signals[0]])]
    columns = [Column(f"first {tokens}\n", [f" {label}" for label in labels], folds=True)]
    for rank, name in enumerate(signals):
        for head, stats in ((f"{name}\nfitted to", fitted), ("\nsynthetic", synthetic)):
            columns.append(Column(head, [cell for _, cell in _statistics(stats.signals[name])], rank, name))
    columns, dropped = fit(columns, width, 1)
    shown = table(columns, 1)
    for label, *cells in rows_of(columns):
        label.stylize("bold")
        shown.add_row(label, *cells)
    return Group(shown, *_widen(dropped))


def _head(trace: Trace) -> ConsoleRenderable:
    header, model = trace.header, trace.model
    lengths = sorted({sequence.tokens for sequence in header.sequences})
    prompts = sorted({sequence.prompt for sequence in header.sequences})
    count = len(header.sequences)
    sequences = f"{count} sequence{'s' if count > 1 else ''} of {_span(lengths)} tokens"
    perplexity = finite_perplexity(trace)
    unknown = "losses were not recorded" if trace.nll() is None else "perplexity -, the losses are no numbers"
    rows = {
        "model": f"{model.name}: {model.num_hidden_layers} layers, {_dimensions(model)}",
        **(sizes_of(model) if model.by_bytes else _layers(model)),
        **({"not counted": _uncounted(header.uncounted)} if header.uncounted else {}),
        "tokens": f"{header.tokens} in {sequences}, prompt {_span(prompts)}; {header.decoded} are decoded",
        "signals": f"{', '.join(header.signals)}; {_storage(header)}",
        **_flags(trace),
        "file": f"{trace.path}, {show_size(trace.size)}, {header.origin}",
        "dense model": f"perplexity {show_number(perplexity)}" if perplexity is not None else unknown,
    }
    if header.stored:
        rows["stored"] = _stored(header.stored, model)
    return _grid(rows.items())


def _dimensions(model: ModelShape) -> str:
    if model.by_bytes:
        return "of which only bytes are known"
    mlp = f"intermediate size {model.intermediate_size}, " if model.intermediate_size else ""
    return f"hidden size {model.hidden_size}, {mlp}{model.hidden_act}{'' if model.gated else ', no gate'}"


def _storage(header: TraceHeader) -> str:
    """How the signals are stored."""
    exact: list[str] = [signal for signal in header.signals if signal in EXACT]
    if len(exact) == len(header.signals):
        return "stored as they are"
    return f"{header.encoding}{f', {_listed(exact)} as they are' if exact else ''}"


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _flags(trace: Trace) -> dict[str, str]:
    """A row about flags that came with an imported trace; none without them."""
    flags = {
        "residency, whether the device had the expert in its cache": trace.has_residency,
        "accepted, whether a draft of the token would be right": trace.has_accepted,
    }
    names = [name for name, there in flags.items() if there]
    return {"flags": "; ".join(names)} if names else {}


def _layers(model: ModelShape) -> dict[str, str]:
    """Rows about the layers of a model whose layers differ from plain ones; none for others."""
    if not model.layers:
        return {}
    kinds = Counter(f"{layer.attention} {layer.window or ''}".strip() for layer in model.layers)
    entry = sum(layer.kv_elements for layer in model.layers)
    state = sum(layer.state_elements for layer in model.layers)
    attention = {
        "attention": ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
        + f"; {entry} numbers a token in the KV cache"
        + (f", {state} in fixed states" if state else "")
    }
    experts = Counter(_experts(layer.experts) for layer in model.layers if layer.experts)
    return attention | ({"experts": "; ".join(f"{count} x {own}" for own, count in experts.items())} if experts else {})


def _experts(experts: Experts) -> str:
    """The experts of a layer in words: ``8 of 128, width 768``."""
    shared = f", {experts.shared_parameters} weights of shared ones" if experts.shared_parameters else ""
    gate = "" if experts.gated else ", no gate"
    return f"{experts.used} of {experts.count}, width {experts.intermediate_size}{gate}{shared}"


def _uncounted(counts: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in counts.items())


def _stored(stored: StoredBytes, model: ModelShape) -> str:
    """Bytes of the weights in the model's files, mean bits of a weight, and least and most bits by part."""
    parts = []
    for part, bits in stored.bits(model).items():
        least, most = (f"{float(value):.3g}" for value in (min(bits), max(bits)))
        parts.append(f"{part} {least}" + (f"-{most}" if most != least else ""))
    mean = 8 * stored.weights / count_weights(model)
    return f"{show_size(stored.weights)}, {mean:.3g} bits a weight ({', '.join(parts)})"


def _span(values: list[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]}-{values[-1]}"


def _grid(rows: Iterable[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2), pad_edge=False)
    grid.add_column(style="bold", overflow="fold")
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(Text(printable(f" {name}")), Text(printable(value)))
    return grid


def _provenance(provenance: dict[str, Any]) -> ConsoleRenderable:
    return _grid([("provenance", ""), *((f"  {name}", value) for name, value in _flat(provenance))])


def _flat(fields: dict[str, Any], above: str = "") -> list[tuple[str, str]]:
    """Nested fields as dotted names: ``command.tokens``."""
    rows = []
    for key, value in sorted(fields.items()):
        name = f"{above}{key}"
        if isinstance(value, dict):
            rows += _flat(value, f"{name}.")
        else:
            rows.append((name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return rows


def _signals(stats: TraceStats, *, layers: bool, width: int) -> tuple[ConsoleRenderable, list[str]]:
    lines: list[tuple[str, SignalStats]] = []
    for name, signal in stats.signals.items():
        lines.append((name, signal))
        if layers:
            lines += [(f"  {layer}", part) for layer, part in enumerate(stats.layers[name])]
    first = next(iter(stats.signals.values()))
    # the value is the rank for dropping: columns that say least about sparsity are dropped first
    heads = {"mean\n|x|": 1, "\nrms": 9, "\np50": 6, "\np99": 7, "\nmax": 8, "tail\np99/p50": 3}
    heads["units with\n90 % energy"] = 2
    heads |= {f"overlap\nkeep {keep:g}": 4 if not i else 10 for i, keep in enumerate(first.overlap)}
    heads |= {f"popular\nkeep {keep:g}": 5 if not i else 11 for i, keep in enumerate(first.popularity)}
    cells = zip(*(_cells(signal) for _, signal in lines), strict=True)
    columns = [Column("\nsignal", [f" {name}" for name, _ in lines], folds=True)]
    columns += [Column(head, list(values), rank) for (head, rank), values in zip(heads.items(), cells, strict=True)]
    columns, dropped = fit(columns, width, 1)
    shown = table(columns, 1)
    for (name, _), (head, *rest) in zip(lines, rows_of(columns), strict=True):
        head.stylize("bold")
        shown.add_row(head, *rest, style="dim" if name.startswith(" ") else "")
    meaning = Text(
        " overlap: share of a token's top units that the token before had too. popular: share of all picks\n"
        " that fall on the most used tenth of the units. Chance alone: keep, and 10 %.",
        style="dim",
    )
    return Group(shown, meaning), dropped


def _widen(dropped: list[str]) -> list[ConsoleRenderable]:
    return [Padding(widen(dropped), (1, 0, 0, 1))] if dropped else []


def _cells(stats: SignalStats) -> list[str]:
    sizes = [_short(value) for value in (stats.mean, stats.rms, stats.p50, stats.p99, stats.max)]
    rest = [text for label, text in _statistics(stats) if not label.startswith("mean")]
    return sizes + rest


def _short(value: float) -> str:
    """Three digits, without an exponent for large values."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _statistics(stats: SignalStats) -> list[tuple[str, str]]:
    return [
        ("mean magnitude", _short(stats.mean)),
        ("tail, p99 / p50", "-" if stats.tail is None else f"{stats.tail:.3g}"),
        ("units with 90 % of the energy", f"{stats.energy_share_90:.1%}"),
        *((f"overlap at keep {k:g}", "-" if v is None else f"{v:.1%}") for k, v in stats.overlap.items()),
        *((f"popularity at keep {k:g}", f"{v:.1%}") for k, v in stats.popularity.items()),
    ]

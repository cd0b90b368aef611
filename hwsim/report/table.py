"""The comparison of several replays as tables for the terminal: speeds first, then where the time goes."""

from __future__ import annotations

from typing import Any, NamedTuple

from rich.console import Console, ConsoleRenderable, Group
from rich.padding import Padding
from rich.text import Text

from hwsim.report.columns import Column, fit, table, total, widen
from hwsim.report.columns import rows as cells_of
from hwsim.report.use import sentence
from hwsim.simulation.metrics import Result
from hwsim.util.units import printable, show_energy, show_number, show_rate, show_size, show_time


class _Part(NamedTuple):
    head: str
    color: str
    letter: str  # draws the bar if there are no colours


_PARTS = {
    "resident": _Part("resident", "cyan", "r"),
    "kv_cache": _Part("KV cache", "blue", "k"),
    "streamed": _Part("streamed", "red", "s"),
    "mlp": _Part("masked MLP", "yellow", "m"),
    "attention": _Part("masked attention", "magenta", "a"),
    "compute": _Part("compute", "green", "c"),
}
_BAR = range(10, 41)  # lengths that the longest bar may have, in characters; with less room there are no bars
_WIDE = 100  # columns of a terminal from which on tables are spaced wider


def render(
    results: list[Result], dense: Result, *, width: int = 160, colors: bool = False
) -> tuple[ConsoleRenderable, list[str]]:
    """Everything that ``hwsim replay`` shows of one trace on one device, except the notes.

    Args:
        results: one for each policy, at least one.
        dense: the same replay of the unmasked model, the baseline of the speed-ups.
        width: characters of a line.
        colors: whether bars are drawn in colours; otherwise letters distinguish their parts.

    Returns:
        The tables, and the names of the columns that did not fit into `width`.
    """
    rows = _rows(results, dense)
    gap = 2 if width >= _WIDE else 1
    answer, dropped = _answer(rows, dense, width, gap)
    time, more = _time(rows, width, gap, colors)
    return Group(_head(results[0]), answer, time), dropped + more


def notes(results: list[Result], dense: Result) -> list[str]:
    """Notes that a reader needs to interpret the numbers; a note that several policies share appears once."""
    names_of: dict[str, list[str]] = {}
    for result in _rows(results, dense):
        for note in result.notes:
            own = note.startswith(f"{_name(result)}: ")
            names = names_of.setdefault(note.removeprefix(f"{_name(result)}: "), [])
            if own:
                names.append(_name(result))
    return [f"{', '.join(names)}: {text}" if names else text for text, names in names_of.items()]


def _rows(results: list[Result], dense: Result) -> list[Result]:
    return results if any(_name(result) == _name(dense) for result in results) else [dense, *results]


def _name(result: Result) -> str:
    return printable(str(result.provenance["policy"]["name"]))


def _head(result: Result) -> ConsoleRenderable:
    origin = result.provenance
    model, device = origin["model"], origin["device"]
    lines = Text()
    lines.append(printable(model["name"]), style="bold")
    trace = printable(origin["trace"]["name"])
    lines.append(f", {result.tokens} tokens decoded from {trace} ({origin['trace']['origin']})\n")
    lines.append(printable(device["name"]), style="bold")
    lines.append(f": {device_line(result)}\n")
    lines.append(settings_line(result), style="dim")
    return Padding(lines, (1, 0, 0, 0))


def device_line(result: Result) -> str:
    """A device's rates with their confidence, and the DRAM budget of the model."""
    device, settings = result.provenance["device"], result.provenance["settings"]
    return (
        f"Flash {show_rate(device['flash']['read_bandwidth'])}{_confidence(device['flash'])}, "
        f"DRAM {show_rate(_dram(device, settings))}{_confidence(device['dram'])}, "
        f"budget {show_size(result.budget_bytes)}, {show_size(result.kv_cache_bytes)} of it KV cache"
        + (f", {show_size(result.state_bytes)} fixed states" if result.state_bytes else "")
    )


def settings_line(result: Result) -> str:
    """The settings of the run in one line: eviction, caches, timing, overlap and use of the device."""
    origin, settings = result.provenance, result.provenance["settings"]
    return (
        f"eviction {printable(origin['eviction']['name'])}{_caches(settings)}, timing {settings['timing']}, "
        f"overlap {settings['overlap']}{sentence(settings)}"
    )


def _dram(device: dict[str, Any], settings: dict[str, Any]) -> float:
    """DRAM rate in bytes/s: the chosen engine's, or the device's if none was chosen."""
    engine = settings.get("engine")
    return float(device["dram"]["engines"][engine] if engine else device["dram"]["bandwidth"])


def _caches(settings: dict[str, Any]) -> str:
    """Cache settings that differ from the defaults: bypass, and pinned or warm units."""
    words = [", bypass"] if settings["admission"] == "bypass" else []
    words += [
        f", {kind} from {printable(source['name'])}: {source['units']} units, {show_size(source['bytes'])}"
        for kind in ("pinned", "warm")
        if (source := settings[kind])
    ]
    return "".join(words)


def _confidence(section: dict[str, Any]) -> str:
    """The confidence of a section of a device profile in parentheses, or nothing."""
    return f" ({printable(section['confidence'])})" if section.get("confidence") else ""


def _answer(rows: list[Result], dense: Result, width: int, gap: int) -> tuple[ConsoleRenderable, list[str]]:
    columns = [
        Column("\npolicy", [_name(row) for row in rows], folds=True),
        Column("tokens/s\n", [show_number(row.throughput_tok_s) for row in rows]),
        Column(
            f"against\n{_name(dense)}", [f"{row.throughput_tok_s / dense.throughput_tok_s:.2f} x" for row in rows], 1
        ),
        Column("latency\np50", [show_time(row.latency_s.p50) for row in rows], 2),
        Column("\np95", [show_time(row.latency_s.p95) for row in rows], 7),
        Column("hit\nrate", ["-" if row.hit_rate is None else f"{row.hit_rate:.1%}" for row in rows], 3),
        Column("MLP\ndensity", [f"{row.mlp_density:.3f}" for row in rows], 5),
        Column("Flash\na token", [show_size(row.flash_bytes / row.tokens) for row in rows], 4, "Flash"),
        Column("DRAM\na token", [show_size(row.dram_bytes / row.tokens) for row in rows], 8, "DRAM"),
    ]
    if any(row.energy_j is not None for row in rows):
        energy = ["-" if row.energy_j is None else show_energy(row.energy_j / row.tokens) for row in rows]
        columns.append(Column("energy\na token", energy, 6, "energy"))
    if any(row.ttft_s is not None for row in rows):
        first = ["-" if row.ttft_s is None else show_time(row.ttft_s) for row in rows]
        columns.append(Column("first\ntoken", first, 9))
    columns, dropped = fit(columns, width, gap)
    shown = table(columns, gap)
    best = max(row.throughput_tok_s for row in rows)
    for row, (name, *cells) in zip(rows, cells_of(columns), strict=True):
        style = "green" if row.throughput_tok_s == best and len(rows) > 1 else ""
        name.stylize("bold")
        shown.add_row(name, *cells, style=style)
    return Padding(shown, (1, 0, 0, 0)), dropped


def _time(rows: list[Result], width: int, gap: int, colors: bool) -> tuple[ConsoleRenderable, list[str]]:
    """The table of where the time of a mean token goes: a bar to scale, and the share of each part."""
    per_token = [row.time_s.total / row.tokens for row in rows]
    shares = {
        part: [getattr(row.time_s, part) / row.time_s.total for row in rows]
        for part in _PARTS
        if any(getattr(row.time_s, part) > 0 for row in rows)
    }
    largest = sorted(shares, key=lambda part: sum(shares[part]), reverse=True)
    columns = [
        Column("where the time\nof a token goes", [_name(row) for row in rows], folds=True),
        Column("\nmean", [show_time(seconds) for seconds in per_token]),
        *(
            Column(
                _PARTS[part].head.replace(" ", "\n") if " " in _PARTS[part].head else "\n" + _PARTS[part].head,
                [_share(x) for x in values],
                drop=1 + largest.index(part),
                color=_PARTS[part].color,
            )
            for part, values in shares.items()
        ),
    ]
    columns, dropped = fit(columns, width, gap)
    room = min(width - total(columns, gap) - gap, _BAR[-1])
    if room in _BAR:
        columns.insert(2, Column("", [" " * room] * len(rows), folds=True))
    shown = table(columns, gap)
    for index, (name, *cells) in enumerate(cells_of(columns)):
        name.stylize("bold")
        if room in _BAR:
            length = room * per_token[index] / max(per_token)
            cells[1] = _bar({part: values[index] for part, values in shares.items()}, length, colors)
        shown.add_row(name, *cells)
    return Padding(shown, (1, 0, 0, 0)), [f"the share of {name}" for name in dropped]


def _bar(shares: dict[str, float], length: float, colors: bool) -> Text:
    bar, drawn, share = Text(), 0, 0.0
    for part, value in shares.items():
        share += value
        until = round(share * length)
        look = _PARTS[part]
        bar.append(("█" if colors else look.letter) * (until - drawn), style=look.color)
        drawn = until
    return bar


def _share(value: float) -> str:
    if 0 < value < 0.005:
        return "<1%"
    return f"{value:.0%}" if value else "-"


def print_results(console: Console, results: list[Result], dense: Result) -> None:
    """Print the comparison, then the notes."""
    shown, dropped = render(results, dense, width=console.width, colors=console.color_system is not None)
    console.print(shown)
    texts = notes(results, dense)
    if texts:
        console.print()
    for note in texts:
        # outside a terminal a note stays on one line, so that it can be searched
        style = "yellow" if "warning" in note else None
        console.print(Text(f"- {printable(note)}"), style=style, soft_wrap=not console.is_terminal)
    if dropped:
        console.print(Text("\n").append(widen(dropped)))

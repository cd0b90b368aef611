"""The comparison of several replays as a table for the terminal: the answer, then where the time goes, then why."""

from __future__ import annotations

from typing import Any, NamedTuple

from rich.console import Console, ConsoleRenderable, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hwsim.metrics import Result
from hwsim.units import show_energy, show_rate, show_size, show_time


class _Part(NamedTuple):
    head: str
    color: str
    letter: str  # draws the bar where there are no colours


_PARTS = {
    "resident": _Part("resident", "cyan", "r"),
    "kv_cache": _Part("KV cache", "blue", "k"),
    "streamed": _Part("streamed", "red", "s"),
    "mlp": _Part("masked MLP", "yellow", "m"),
    "attention": _Part("masked attention", "magenta", "a"),
    "compute": _Part("compute", "green", "c"),
}
_BAR = range(10, 41)  # characters of the longest bar; with less room there is none
_WIDE = 100  # columns of a terminal from which on tables are spaced wider


class _Column(NamedTuple):
    head: str
    cells: list[str]
    drop: int = 0  # where there is no room the highest goes first; 0 stays

    @property
    def width(self) -> int:
        return max(len(line) for cell in (self.head, *self.cells) for line in cell.split("\n"))


def render(results: list[Result], dense: Result, *, width: int = 160, colors: bool = False) -> ConsoleRenderable:
    """Everything that ``hwsim replay`` shows of one trace on one device, but for the notes.

    Args:
        results: one for each policy, at least one.
        dense: the same replay without any mask; speed-ups are against it.
        width: characters of a line.
        colors: whether the bars can be told apart by colour; without, letters draw them.
    """
    rows = _rows(results, dense)
    gap = 2 if width >= _WIDE else 1
    return Group(_head(results[0]), _answer(rows, dense, width, gap), _time(rows, width, gap, colors))


def notes(results: list[Result], dense: Result) -> list[str]:
    """What a reader must know to read the numbers right; what holds for several policies is said once."""
    said: dict[str, list[str]] = {}
    for result in _rows(results, dense):
        for note in result.notes:
            own = note.startswith(f"{_name(result)}: ")
            names = said.setdefault(note.removeprefix(f"{_name(result)}: "), [])
            if own:
                names.append(_name(result))
    return [f"{', '.join(names)}: {text}" if names else text for text, names in said.items()]


def _rows(results: list[Result], dense: Result) -> list[Result]:
    return results if any(_name(result) == "dense" for result in results) else [dense, *results]


def _name(result: Result) -> str:
    return str(result.provenance["policy"]["name"])


def _head(result: Result) -> ConsoleRenderable:
    origin = result.provenance
    model, device, settings = origin["model"], origin["device"], origin["settings"]
    lines = Text()
    lines.append(f"{model['name']}", style="bold")
    lines.append(f", {result.tokens} tokens decoded from {origin['trace']['name']} ({origin['trace']['origin']})\n")
    lines.append(f"{device['name']}", style="bold")
    lines.append(
        f": Flash {show_rate(device['flash']['read_bandwidth'])}{_confidence(device['flash'])}, "
        f"DRAM {show_rate(device['dram']['bandwidth'])}{_confidence(device['dram'])}, "
        f"budget {show_size(result.budget_bytes)}, {show_size(result.kv_cache_bytes)} of it KV cache\n"
    )
    lines.append(
        f"eviction {origin['eviction']['name']}, timing {settings['timing']}, overlap {settings['overlap']}",
        style="dim",
    )
    return Padding(lines, (1, 0, 0, 0))


def _confidence(section: dict[str, Any]) -> str:
    """How sure a device's numbers are stands beside them, not only in its profile."""
    return f" ({section['confidence']})" if section.get("confidence") else ""


def _answer(rows: list[Result], dense: Result, width: int, gap: int) -> ConsoleRenderable:
    columns = [
        _Column("\npolicy", [_name(row) for row in rows]),
        _Column("tokens/s\n", [_speed(row.throughput_tok_s) for row in rows]),
        _Column("against\ndense", [f"{row.throughput_tok_s / dense.throughput_tok_s:.2f} x" for row in rows]),
        _Column("latency\np50", [show_time(row.latency_s.p50) for row in rows]),
        _Column("\np95", [show_time(row.latency_s.p95) for row in rows], drop=3),
        _Column("hit\nrate", ["-" if row.hit_rate is None else f"{row.hit_rate:.1%}" for row in rows]),
        _Column("MLP\ndensity", [f"{row.mlp_density:.3f}" for row in rows], drop=1),
        _Column("Flash\na token", [show_size(row.flash_bytes / row.tokens) for row in rows]),
        _Column("DRAM\na token", [show_size(row.dram_bytes / row.tokens) for row in rows], drop=4),
    ]
    if any(row.energy_j is not None for row in rows):
        energy = ["-" if row.energy_j is None else show_energy(row.energy_j / row.tokens) for row in rows]
        columns.append(_Column("energy\na token", energy, drop=2))
    if any(row.ttft_s is not None for row in rows):
        first = ["-" if row.ttft_s is None else show_time(row.ttft_s) for row in rows]
        columns.append(_Column("first\ntoken", first, drop=5))
    while _width(columns, gap) > width and any(column.drop for column in columns):
        columns.remove(max(columns, key=lambda column: column.drop))
    table = _grid(gap)
    for index, column in enumerate(columns):
        table.add_column(column.head, justify="right" if index else "left", overflow="fold")
    best = max(row.throughput_tok_s for row in rows)
    for index, row in enumerate(rows):
        style = "green" if row.throughput_tok_s == best and len(rows) > 1 else ""
        name, *cells = (Text(column.cells[index]) for column in columns)
        name.stylize("bold")
        table.add_row(name, *cells, style=style)
    return Padding(table, (1, 0, 0, 0))


def _time(rows: list[Result], width: int, gap: int, colors: bool) -> ConsoleRenderable:
    """Where the time of a mean token goes: a bar to scale, and its parts."""
    per_token = [row.time_s.total / row.tokens for row in rows]
    shares = {
        part: [getattr(row.time_s, part) / row.time_s.total for row in rows]
        for part in _PARTS
        if any(getattr(row.time_s, part) > 0 for row in rows)
    }
    columns = [
        _Column("where the time\nof a token goes", [_name(row) for row in rows]),
        _Column("\nmean", [show_time(seconds) for seconds in per_token]),
        *(
            _Column(_PARTS[part].head.replace(" ", "\n"), [_share(x) for x in values])
            for part, values in shares.items()
        ),
    ]
    room = min(width - _width(columns, gap) - gap, _BAR[-1])
    table = _grid(gap)
    table.add_column(columns[0].head, overflow="fold")
    table.add_column(columns[1].head, justify="right", no_wrap=True)
    if room in _BAR:
        table.add_column("", no_wrap=True)
    for part, column in zip(shares, columns[2:], strict=True):
        head = Text(column.head if "\n" in column.head else "\n" + column.head, style=f"bold {_PARTS[part].color}")
        table.add_column(head, justify="right", no_wrap=True)
    for index, seconds in enumerate(per_token):
        name, *cells = (Text(column.cells[index]) for column in columns)
        name.stylize("bold")
        if room in _BAR:
            length = room * seconds / max(per_token)
            cells.insert(1, _bar({part: values[index] for part, values in shares.items()}, length, colors))
        table.add_row(name, *cells)
    return Padding(table, (1, 0, 0, 0))


def _bar(shares: dict[str, float], length: float, colors: bool) -> Text:
    bar, drawn, share = Text(), 0, 0.0
    for part, value in shares.items():
        share += value
        until = round(share * length)
        look = _PARTS[part]
        bar.append(("█" if colors else look.letter) * (until - drawn), style=look.color)
        drawn = until
    return bar


def _grid(gap: int) -> Table:
    return Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="bold")


def _width(columns: list[_Column], gap: int) -> int:
    return sum(column.width for column in columns) + gap * (len(columns) - 1)


def _speed(tokens_s: float) -> str:
    """Four digits, and never an exponent for what is fast."""
    return f"{tokens_s:.0f}" if tokens_s >= 1000 else f"{tokens_s:.4g}"


def _share(value: float) -> str:
    if 0 < value < 0.005:
        return "<1%"
    return f"{value:.0%}" if value else "-"


def print_results(console: Console, results: list[Result], dense: Result) -> None:
    """Print the comparison, and the notes below it."""
    console.print(render(results, dense, width=console.width, colors=console.color_system is not None))
    said = notes(results, dense)
    if said:
        console.print()
    for note in said:
        # not a terminal: one line a note, so that it can be searched
        style = "yellow" if "warning" in note else None
        console.print(Text(f"- {note}"), style=style, soft_wrap=not console.is_terminal)

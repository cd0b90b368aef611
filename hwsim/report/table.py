"""The comparison of several replays as a table for the terminal: the answer, then where the time goes, then why."""

from __future__ import annotations

from rich.console import Console, ConsoleRenderable, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hwsim.metrics import Result, Times
from hwsim.units import show_energy, show_size, show_time

_PARTS = {
    "resident": ("resident weights", "cyan"),
    "kv_cache": ("KV cache", "blue"),
    "streamed": ("streamed weights", "red"),
    "mlp": ("masked MLP", "yellow"),
    "attention": ("masked attention", "magenta"),
    "compute": ("compute", "green"),
}
_BAR = 40  # characters of the longest bar


def render(results: list[Result], dense: Result) -> ConsoleRenderable:
    """Everything that ``hwsim replay`` shows of one trace on one device.

    Args:
        results: one for each policy, at least one.
        dense: the same replay without any mask; speed-ups are against it.
    """
    rows = results if any(_name(result) == "dense" for result in results) else [dense, *results]
    parts: list[ConsoleRenderable] = [_head(results[0]), _answer(rows, dense), _time(rows)]
    notes = list(dict.fromkeys(note for result in rows for note in result.notes))
    if notes:
        parts.append(Padding(Group(*(_note(note) for note in notes)), (1, 1, 0, 1)))
    return Group(*parts)


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
        f": Flash {show_size(device['flash']['read_bandwidth'])}/s, DRAM {show_size(device['dram']['bandwidth'])}/s, "
        f"budget {show_size(result.budget_bytes)}, {show_size(result.kv_cache_bytes)} of it KV cache\n"
    )
    lines.append(
        f"eviction {origin['eviction']['name']}, timing {settings['timing']}, overlap {settings['overlap']}",
        style="dim",
    )
    return Padding(lines, (1, 1, 0, 1))


def _answer(rows: list[Result], dense: Result) -> ConsoleRenderable:
    table = Table(box=None, padding=(0, 1), collapse_padding=True, header_style="bold")
    table.add_column("\npolicy", style="bold", no_wrap=True)
    heads = ["tokens/s\n", "speed-up\nover dense", "latency\np50", "\np95", "hit\nrate", "MLP\ndensity"]
    heads += ["Flash\nper token", "DRAM\nper token"]
    energy = any(row.energy_j is not None for row in rows)
    for head in [*heads, "energy\nper token"] if energy else heads:
        table.add_column(head, justify="right", no_wrap=True)
    best = max(row.throughput_tok_s for row in rows)
    for row in rows:
        values = [
            f"{row.throughput_tok_s:.4g}",
            f"{row.throughput_tok_s / dense.throughput_tok_s:.2f} x",
            show_time(row.latency_s.p50),
            show_time(row.latency_s.p95),
            "-" if row.hit_rate is None else f"{row.hit_rate:.1%}",
            f"{row.mlp_density:.3f}",
            show_size(row.flash_bytes / row.tokens),
            show_size(row.dram_bytes / row.tokens),
        ]
        if energy:
            values.append("-" if row.energy_j is None else show_energy(row.energy_j / row.tokens))
        style = "green" if row.throughput_tok_s == best and len(rows) > 1 else ""
        table.add_row(_name(row), *values, style=style)
    return Padding(table, (1, 0, 0, 0))


def _time(rows: list[Result]) -> ConsoleRenderable:
    """Where the time of a mean token goes: a bar to scale, and its parts."""
    slowest = max(row.time_s.total / row.tokens for row in rows)
    table = Table(box=None, padding=(0, 1), collapse_padding=True, header_style="bold")
    table.add_column("where a token's time goes", no_wrap=True, style="bold")
    table.add_column("", no_wrap=True)
    table.add_column("", no_wrap=False)
    for row in rows:
        bar, words = Text(), Text()
        drawn, sum_s = 0, 0.0
        for part, (label, color) in _PARTS.items():
            seconds = _part(row.time_s, part) / row.tokens
            sum_s += seconds
            until = round(sum_s / slowest * _BAR)
            bar.append("█" * (until - drawn), style=color)
            drawn = until
            if seconds > 0:
                words.append(", " if words else "")
                words.append(f"{label} ", style=color)
                words.append(f"{seconds / (row.time_s.total / row.tokens):.0%}")
        table.add_row(_name(row), bar, words)
    return Padding(table, (1, 0, 0, 0))


def _part(times: Times, part: str) -> float:
    return float(getattr(times, part))


def _note(note: str) -> ConsoleRenderable:
    return Padding(Text("• " + note, style="yellow" if "warning" in note else ""), (0, 0, 0, 0))


def print_results(console: Console, results: list[Result], dense: Result) -> None:
    """Print the comparison."""
    console.print(render(results, dense))

"""Compare two results in words and numbers: how their settings differ, and what that changes."""

from __future__ import annotations

from typing import Any

from rich.console import ConsoleRenderable, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hwsim.report.runs import Row, settings_of
from hwsim.util.units import printable, show_energy, show_number, show_size, show_time

_PARTS = {
    "resident": "what is resident", "kv_cache": "the KV cache", "streamed": "what is streamed", "mlp": "masked MLP",
    "attention": "masked attention", "compute": "computing",
}  # fmt: skip


def differences(first: Row, second: Row) -> list[tuple[str, str, str]]:
    """Settings that differ, as (name, value in the first, value in the second)."""
    one, two = settings_of(first), settings_of(second)
    names = [key for key in dict.fromkeys((*one, *two)) if one.get(key) != two.get(key)]
    return [(key, one.get(key, ""), two.get(key, "")) for key in names]


def parts(first: Row, second: Row) -> list[tuple[str, float, float]]:
    """Time of a mean token by part, as (part, seconds in the first, in the second), the largest change first."""
    times = [(name, *(row["time_s"][part] / row["tokens"] for row in (first, second))) for part, name in _PARTS.items()]
    return sorted((part for part in times if part[1] or part[2]), key=lambda part: -abs(part[2] - part[1]))


def sentences(first: Row, second: Row) -> list[str]:
    """The comparison in words: which is faster and by how much, where the difference comes from, what it costs."""
    speeds = first["throughput_tok_s"], second["throughput_tok_s"]
    if speeds[0] == speeds[1]:
        words = [f"Both make {show_number(speeds[0])} tokens/s."]
    else:
        names = ("the first", "the second") if speeds[0] > speeds[1] else ("the second", "the first")
        words = [f"{names[0].capitalize()} is {max(speeds) / min(speeds):.3g} x as fast as {names[1]}."]
    # parameters that only one of the two policies has are in the table
    shared = [f"{key} ({one} and {two})" for key, one, two in differences(first, second) if one and two]
    words.append(f"What was asked for differs in {', '.join(shared)}." if shared else "Both were asked for the same.")
    changed = [part for part in parts(first, second) if part[1] != part[2]]
    if changed:
        name, before, after = changed[0]
        share = abs(after - before) / sum(abs(two - one) for _, one, two in changed)
        words.append(
            f"{share:.0%} of the change is in {name}: {show_time(before)} and {show_time(after)} of a mean token."
        )
    flash = [row["flash_bytes"] / row["tokens"] for row in (first, second)]
    if flash[0] != flash[1]:
        words.append(f"A mean token needs {show_size(flash[0])} and {show_size(flash[1])} from Flash.")
    if "perplexity" in first and "perplexity" in second:
        words.append(f"Perplexity is {show_number(first['perplexity'])} and {show_number(second['perplexity'])}.")
    elif "perplexity" in first or "perplexity" in second:
        words.append("Accuracy was measured of one of them only.")
    if first["provenance"]["trace"].get("hash") != second["provenance"]["trace"].get("hash"):
        words.append("They decode different tokens: only rates, not sums, can be compared.")
    return words


def plain(first: Row, second: Row) -> dict[str, Any]:
    """The comparison as a dictionary for JSON."""
    return {
        "words": sentences(first, second),
        "settings": [{"name": name, "first": one, "second": two} for name, one, two in differences(first, second)],
        "numbers": [{"name": name, "first": one, "second": two} for name, one, two, _ in _numbers(first, second)],
    }


def render_comparison(first: Row, second: Row, names: tuple[str, str]) -> ConsoleRenderable:
    """Render the comparison: sentences, then the settings that differ and the results side by side."""
    shown = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for head in ("", *names, "second / first"):
        shown.add_column(printable(head), justify="left" if not head else "right", overflow="fold")
    for key, one, two in differences(first, second):
        shown.add_row(printable(key), printable(one), printable(two), "", style="dim")
    for head, one, two, show in _numbers(first, second):
        ratio = f"{two / one:.3f}" if isinstance(one, int | float) and isinstance(two, int | float) and one else ""
        shown.add_row(head, "-" if one is None else show(one), "-" if two is None else show(two), ratio)
    words = Text(printable(" ".join(sentences(first, second))))
    return Group(Padding(words, (1, 0)), shown)


def _numbers(first: Row, second: Row) -> list[tuple[str, Any, Any, Any]]:
    both = (first, second)

    def pair(get: Any) -> tuple[Any, Any]:
        return get(first), get(second)

    rows: list[tuple[str, Any, Any, Any]] = [
        ("tokens/s", *pair(lambda row: row["throughput_tok_s"]), show_number),
        ("latency p50", *pair(lambda row: row["latency_s"]["p50"]), show_time),
        ("latency p95", *pair(lambda row: row["latency_s"]["p95"]), show_time),
        ("hit rate", *pair(lambda row: row["hit_rate"]), lambda value: f"{value:.1%}"),
        ("MLP density", *pair(lambda row: row["mlp_density"]), lambda value: f"{value:.3f}"),
        ("Flash a token", *pair(lambda row: row["flash_bytes"] / row["tokens"]), show_size),
        ("DRAM a token", *pair(lambda row: row["dram_bytes"] / row["tokens"]), show_size),
        ("energy a token", *pair(lambda row: row["energy_j"] and row["energy_j"] / row["tokens"]), show_energy),
    ]
    rows += [(name, one, two, show_time) for name, one, two in parts(first, second)]
    for key in ("perplexity", "kl") if any("perplexity" in row for row in both) else ():
        rows.append((key, first.get(key), second.get(key), show_number))
    return rows

"""Where a cache's hits come from, as a table for each group."""

from __future__ import annotations

from rich.console import ConsoleRenderable, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hwsim.analysis.locality import GroupLocality
from hwsim.util.units import printable


def render_locality(found: dict[str, GroupLocality], title: str) -> ConsoleRenderable:
    """Everything that ``hwsim trace locality`` shows.

    Args:
        found: locality of each group.
        title: heading that names the replayed trace.
    """
    parts: list[ConsoleRenderable] = [Padding(Text(printable(title), style="bold"), (1, 0, 0, 0))]
    for name, group in found.items():
        parts += [Padding(_head(name, group), (1, 0, 0, 0)), _table(group)]
    meaning = (
        "trace: recorded order. control: the tokens of each sequence shuffled. popularity: control - capacity/units.\n"
        "locality: trace - control. Caches begin empty, which costs both the same first reads; rules with foresight\n"
        "see the control's future, too."
    )
    return Group(*parts, Padding(Text(meaning, style="dim"), (1, 0, 0, 0)))


def _head(name: str, group: GroupLocality) -> Text:
    text = Text.assemble(
        (printable(name), "bold"),
        f": the cache holds {group.capacity} of {group.units} units, capacity/units {group.uniform:.1%}",
    )
    if group.crowded:
        share = group.crowded / group.requests
        text.append(
            f"\n{share:.0%} of the requests belong to masks larger than the capacity: they refill the cache, and rules "
            "that admit whatever is needed do the same there",
            style="dim",
        )
    return text


def _table(group: GroupLocality) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("eviction", style="bold")
    for head in ("trace", "control", "popularity", "locality"):
        table.add_column(head, justify="right")
    for rule in sorted(group.rules, key=lambda rule: -group.rules[rule].trace):
        trace, control = group.rates(rule)
        cells = (f"{trace:.1%}", f"{control:.1%}", f"{control - group.uniform:+.1%}", f"{trace - control:+.1%}")
        table.add_row(Text(printable(rule)), *cells)
    return table

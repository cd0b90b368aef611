"""The hit rate of LRU by cache size, as a table with a line for each group."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import ConsoleRenderable, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hwsim.analysis.curve import GroupCurve, units_of
from hwsim.util.units import printable

_MEANING = (
    "Hit rate of a cache that holds so much of a group's units, in each layer. mask: units of the largest. first:\n"
    "requests for units that were not needed before in their sequence; no cache hits them, and 100% shows the rest."
)


def render_curve(found: dict[str, GroupCurve], shares: Sequence[float], title: str) -> ConsoleRenderable:
    """Everything that ``hwsim trace curve`` shows.

    Args:
        found: the curve of each group.
        shares: cache sizes as shares of a group's units, one column each; the curves include these sizes.
        title: what was counted.
    """
    known = any(group.capacity is not None for group in found.values())
    shown = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    shown.add_column("group", style="bold")
    for head in ("units", "mask", "first", *(f"{share:.0%}" for share in shares)):
        shown.add_column(head, justify="right")
    if known:
        shown.add_column("cache now")
    for name, group in found.items():
        cells = [str(group.units), str(group.largest), f"{group.first / max(1, group.requests):.1%}"]
        cells += [f"{group.rate(units_of(share, group.units)):.1%}" for share in shares]
        if group.capacity is not None:
            now = f"{group.capacity} units, {group.capacity / group.units:.0%}: {group.rate(group.capacity):.1%}"
            cells.append(now)
        shown.add_row(Text(printable(name)), *cells)
    above = Padding(Text(printable(title), style="bold"), (1, 0, 1, 0))
    return Group(above, shown, Padding(Text(_MEANING, style="dim"), (1, 0, 0, 0)))

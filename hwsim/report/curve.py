"""The hit rate by cache size: of LRU a line for each group, of experts a line for each size."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import ConsoleRenderable, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hwsim.analysis.curve import GroupCurve, units_of
from hwsim.analysis.expert_curve import SizeHits
from hwsim.util.units import printable, show_size

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


def render_sizes(
    points: dict[int, SizeHits], whole: int, now: int | None, scope: str, title: str
) -> ConsoleRenderable:  # fmt: skip
    """What ``hwsim trace curve`` shows of caches of experts.

    Args:
        points: what the caches find, by their bytes.
        whole: bytes of all experts.
        now: bytes that the caches have now; None if that was not asked for.
        scope: which layers share a cache.
        title: what was counted.
    """
    prompts = any(point.prompt_requests for point in points.values())
    shown = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for head in ("caches", "of all", "hit rate", *(["of prompts"] if prompts else []), "missed a step"):
        shown.add_column(head, justify="right")
    for size, point in points.items():
        rate = point.prompt_rate
        cells = [show_size(size), f"{size / whole:.0%}", f"{point.rate:.1%}"]
        cells += ["-" if rate is None else f"{rate:.1%}"] if prompts else []
        cells.append(show_size(point.miss_bytes / max(1, point.steps)))
        shown.add_row(*cells, "now" if size == now else "")
    kinds = {
        "global": "one cache for all layers",
        "layer": "a cache for each layer",
        "matrix": "a cache for each group",
    }
    most = max(points.values(), key=lambda point: point.demand)
    about = f"{kinds[scope]}; experts of all layers {show_size(whole)}, "
    about += f"a step needs {show_size(most.demand / max(1, most.steps))}"
    meaning = "Hit rate of decoding, exactly as hwsim replay --cache counts it at each size."
    return Group(
        Padding(Text(printable(title), style="bold"), (1, 0, 0, 0)), Padding(Text(about), (0, 0, 1, 0)), shown,
        Padding(Text(meaning, style="dim"), (1, 0, 0, 0)),
    )  # fmt: skip

"""Live view of a replay as it runs: the speed so far, and the hit rate of the caches."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import numpy as np
from rich.console import Console, ConsoleRenderable, Group
from rich.live import Live
from rich.text import Text

from hwsim.report.columns import Column, fit, rows, table
from hwsim.timing.moments import Beginning, MomentObserver
from hwsim.util.units import printable, show_number, show_rate, show_time

_LAST = 32  # tokens that are "now"
_BAR = 24
_GAP = 2
_HEADS = (
    ("", 5), ("tokens", 1), ("tokens/s", 0), ("tokens/s\nnow", 3), ("hit\nrate", 0), ("hit rate\nnow", 3),
    ("Flash\nnow", 4), ("latency\nnow", 2),
)  # fmt: skip


class Watch(MomentObserver):
    """Shows a line for each replay and updates it with each token.

    Args:
        console: console to draw on; nothing is drawn unless it is a terminal.
    """

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, refresh_per_second=10, transient=False)
        self._shown = console.is_terminal
        self._lines: dict[str, dict[str, Any]] = {}
        self._now: dict[str, Any] = {}
        self._phase = ""

    def __enter__(self) -> Watch:
        if self._shown:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._shown:
            self._live.update(self.table())
            self._live.stop()

    def show_phase(self, phase: str, done: int, total: int) -> None:
        """Show the progress of a phase before the decode; the decode itself has its own line."""
        self._phase = "" if phase.endswith("time") or done >= total else f"{phase} {done}/{total}"
        if self._shown:
            self._live.update(self.table())

    def begin(self, beginning: Beginning) -> None:
        """Add a line for a decode that begins."""
        axes, counts, placement = (1, 2), beginning.decode.counts, beginning.decode.placement
        self._now = {
            "tokens": counts.tokens,
            "requests": counts.requests.sum(axis=axes),
            "hits": counts.hits.sum(axis=axes),
            "flash": counts.miss_bytes(placement.plans).sum(axis=axes) + placement.bytes.streamed,
            "seconds": [],
            "token": 0,
        }
        self._lines[f"{beginning.about['policy']} on {beginning.about['device']}"] = self._now

    def slice(self, track: str, what: str, at: tuple[int, int, int], start: float, seconds: float) -> None:
        """Update the line of the decode when a token is done."""
        if track == "decoder" and what == "token":
            self._now["seconds"].append(seconds)
            self._now["token"] = at[0] + 1
            if self._shown:
                self._live.update(self.table())

    def table(self) -> ConsoleRenderable:
        """All replays so far, with the columns that fit, and the phase before a decode."""
        cells = list(zip(*map(_cells, self._lines.values()), strict=True)) or [()] * len(_HEADS)
        columns = [Column("replay", [printable(name) for name in self._lines], folds=True)]
        columns += [Column(head, list(column), drop) for (head, drop), column in zip(_HEADS, cells, strict=True)]
        columns, _ = fit(columns, self._live.console.width, _GAP)
        shown = table(columns, _GAP)
        for name, *rest in rows(columns):
            name.stylize("bold")
            shown.add_row(name, *rest)
        return Group(shown, Text(printable(self._phase), style="dim")) if self._phase else shown


def _cells(line: dict[str, Any]) -> list[str]:
    done, seconds = line["token"], line["seconds"]
    filled = round(_BAR * done / line["tokens"])
    cells = ["█" * filled + "·" * (_BAR - filled), f"{done}/{line['tokens']}"]
    if not done:
        return cells + [""] * (len(_HEADS) - len(cells))
    total, recent = sum(seconds), sum(seconds[-_LAST:])
    last = slice(max(0, done - _LAST), done)
    rates = [_share(line["hits"][part], line["requests"][part]) for part in (slice(0, done), last)]
    return [
        *cells,
        show_number(done / total),
        show_number(len(seconds[-_LAST:]) / recent),
        *rates,
        show_rate(float(np.sum(line["flash"][last])) / recent),
        show_time(seconds[-1]),
    ]


def _share(hits: np.ndarray, requests: np.ndarray) -> str:
    requested = int(np.sum(requests))
    return f"{int(np.sum(hits)) / requested:.1%}" if requested else "-"

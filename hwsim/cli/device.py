"""Options that say how the device is used: reads of Flash, what is read ahead, engines, the timeline."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwsim.cli.common import key_values, note, progress_bar
from hwsim.cli.options import DEFAULT_BITS, BitsOfParts, Overlap, OverlapOf, Timing, TimingModel
from hwsim.errors import SettingError
from hwsim.util.files import check_new_file, keep_strangers, spare

if TYPE_CHECKING:
    from hwsim.masking.observers import Observer
    from hwsim.report.watch import Watch

_PANEL = "How the device is used"
_OWNER = "prefetch"

Bundle = Annotated[
    bool,
    typer.Option("--bundle", help="All slices of a unit lie in one piece of Flash: one read.", rich_help_panel=_PANEL),
]
Packed = Annotated[
    bool,
    typer.Option(
        "--packed",
        help="Units lie in Flash without gaps, rather than each on a page of its own.",
        rich_help_panel=_PANEL,
    ),
]
Merge = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="Neighbours in Flash become one read of up to this size.", rich_help_panel=_PANEL,
        show_default="each on its own",
    ),
]  # fmt: skip
Gap = Annotated[
    str,
    typer.Option(
        metavar="SIZE|auto", help="Holes that --merge reads through; auto: whichever take Flash least, batch by batch.",
        rich_help_panel=_PANEL,
    ),
]  # fmt: skip
PrefetchRule = Annotated[
    str | None,
    typer.Option(
        "--prefetch", metavar="NAME|FILE.py", rich_help_panel=_PANEL,
        help="Guesses what the next layer needs, under --overlap prefetch; `hwsim list prefetches` lists the rules.",
    ),
]  # fmt: skip
Fills = Annotated[
    bool,
    typer.Option(
        "--fills", rich_help_panel=_PANEL,
        help="What comes from Flash is written to DRAM and read again, beside all other reads.",
    ),
]  # fmt: skip
Engine = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Which of the profile's engines reads DRAM, such as cpu.", rich_help_panel=_PANEL,
        show_default="the profile's bandwidth",
    ),
]  # fmt: skip
Ignore = Annotated[
    str,
    typer.Option(
        metavar="NAME,...", rich_help_panel=_PANEL, show_default="none",
        help="Parts of the profile that are left out: pages, latency, requests, spread, thermal, compute, overhead, "
        "selection, bookkeeping.",
    ),
]  # fmt: skip
KvWindow = Annotated[
    int | None,
    typer.Option(
        min=1, help="Entries of the KV cache that a token reads and DRAM holds at most.", rich_help_panel=_PANEL,
        show_default="all",
    ),
]  # fmt: skip
PrefillChunk = Annotated[
    int | None,
    typer.Option(
        min=1, help="Tokens of a prompt that go through the model at once.", rich_help_panel=_PANEL,
        show_default="the whole prompt",
    ),
]  # fmt: skip
Timeline = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Write what each device did when, for ui.perfetto.dev; of one policy and one device.",
        rich_help_panel=_PANEL,
    ),
]  # fmt: skip
WatchIt = Annotated[
    bool,
    typer.Option(
        "--watch", help="Show tokens/s and hit rates while replays run, on a terminal.", rich_help_panel=_PANEL
    ),
]
TimelineTokens = Annotated[
    str,
    typer.Option(
        metavar="FIRST:END", help="Decoded tokens of --timeline, the end not included.", rich_help_panel=_PANEL
    ),
]


@dataclass(frozen=True, kw_only=True)
class TimeOptions:
    """What is read, and how its time is computed."""

    bits: BitsOfParts = DEFAULT_BITS
    timing: TimingModel = Timing.EVENTS
    overlap: OverlapOf = Overlap.NONE
    bundle: Bundle = False


@dataclass(frozen=True, kw_only=True)
class PartOptions:
    """The parts of the device that count."""

    fills: Fills = False
    engine: Engine = None
    ignore: Ignore = ""


SHOWN = "0:32"  # what is shown where nothing is said


class Drawing:
    """What is asked for to be seen of the engine: a timeline, replays as they run, or neither.

    Args:
        path: of the file to write.
        watch: show each replay as it runs.
        tokens: FIRST:END.
        sources: files that are read.
        devices: of the command.
        policies: of the command.
        timing: of the command.

    Raises:
        SettingError: it would be one of several runs, or of none.
        OutputError: the file cannot be written, or is one of the sources.
    """

    def __init__(
        self, path: Path | None, tokens: str, watch: bool, sources: list[Path], devices: list[str],
        policies: list[str], timing: Timing,
    ) -> None:  # fmt: skip
        from hwsim.report.timeline import Timeline, read_range

        chosen = read_range(tokens)
        self._path, self._timeline = path, Timeline(chosen) if path else None
        self._watch = watch
        self._seen: Watch | None = None
        if watch and timing is Timing.CLOSED_FORM:
            raise SettingError("--watch: the closed form knows no moments; leave out --timing")
        if path is None:
            if tokens != SHOWN:
                raise SettingError("--timeline-tokens: says which tokens --timeline shows; give that, too")
            return
        if len(devices) > 1 or len(policies) > 1:
            raise SettingError("--timeline: shows one run; name one --hw and one --policy")
        if timing is Timing.CLOSED_FORM:
            raise SettingError("--timeline: the closed form knows no moments; leave out --timing")
        check_new_file(path)
        keep_strangers(path, "{")
        spare(path, sources)

    @contextmanager
    def follow(self) -> Iterator[Callable[[str, int, int], None]]:
        """While replays run: yields f(phase, done, total)."""
        if not self._watch:
            with progress_bar() as progress:
                yield progress
            return
        from rich.console import Console

        from hwsim.report.watch import Watch

        with Watch(Console(stderr=True)) as self._seen:
            yield self._seen.show_phase

    def observers(self, *, first: bool) -> list[Observer]:
        """Observers of a replay: the timeline shows only the first of the command."""
        return [observer for observer in (self._timeline if first else None, self._seen) if observer]

    def write(self) -> None:
        """Write the timeline."""
        if self._path and self._timeline:
            self._timeline.write(self._path)
            note(f"Timeline written to {self._path}; open it in ui.perfetto.dev")


def check_closed(overlap: Overlap) -> None:
    """Refuse what is for replays.

    Raises:
        SettingError: as said.
    """
    if overlap is Overlap.PREFETCH:
        raise SettingError(
            "--overlap prefetch: is for replays; write the masks with hwsim eval --save-masks FILE, "
            "then hwsim replay FILE"
        )


def prefetch_parameters(pairs: list[str]) -> tuple[dict[str, Any], list[str]]:
    """What ``--set prefetch.KEY=VALUE`` says, and the other pairs."""
    own = [pair for pair in pairs if pair.strip().startswith(f"{_OWNER}.")]
    parameters = {key.partition(".")[2]: value for key, value in key_values(own, "--set").items()}
    return parameters, [pair for pair in pairs if pair not in own]

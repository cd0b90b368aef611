"""Options of the use of the device: prefetch parameters, the timeline, and the live view of replays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwsim.cli.common import key_values, note, progress_bar
from hwsim.errors import SettingError
from hwsim.util.files import check_new_file, keep_strangers, spare

if TYPE_CHECKING:
    from hwsim.masking.observers import Observer
    from hwsim.report.watch import Watch

_PANEL = "How the device is used"
_OWNER = "prefetch"

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


SHOWN = "0:32"  # default tokens of the timeline


class Drawing:
    """Views of the engine: a timeline, replays as they run, or neither.

    Args:
        path: file of the timeline to write, or None.
        watch: whether to show each replay as it runs.
        tokens: tokens of the timeline, FIRST:END.
        sources: files that the command reads.
        devices: devices of the command.
        policies: policies of the command.
        timing: timing of the command.

    Raises:
        SettingError: there are several runs, the timing has no moments, or an option has no effect.
        OutputError: the file cannot be written, or is one of the sources.
    """

    def __init__(
        self, path: Path | None, tokens: str, watch: bool, sources: list[Path], devices: list[str],
        policies: list[str], timing: str,
    ) -> None:  # fmt: skip
        from hwsim.report.timeline import Timeline, read_range

        chosen = read_range(tokens)
        self._path, self._timeline = path, Timeline(chosen) if path else None
        self._watch = watch
        self._seen: Watch | None = None
        if watch and timing == "closed-form":
            raise SettingError("--watch: the closed form knows no moments; leave out --timing")
        if path is None:
            if tokens != SHOWN:
                raise SettingError("--timeline-tokens: says which tokens --timeline shows; give that, too")
            return
        if len(devices) > 1 or len(policies) > 1:
            raise SettingError("--timeline: shows one run; name one --hw and one --policy")
        if timing == "closed-form":
            raise SettingError("--timeline: the closed form knows no moments; leave out --timing")
        check_new_file(path)
        keep_strangers(path, "{")
        spare(path, sources)

    @contextmanager
    def follow(self) -> Iterator[Callable[[str, int, int], None]]:
        """A context for running replays; yields a function of (phase, done, total)."""
        if not self._watch:
            with progress_bar() as progress:
                yield progress
            return
        from rich.console import Console

        from hwsim.report.watch import Watch

        with Watch(Console(stderr=True)) as self._seen:
            yield self._seen.show_phase

    def observers(self, *, first: bool) -> list[Observer]:
        """The observers of a replay; the timeline shows only the `first` replay of the command."""
        return [observer for observer in (self._timeline if first else None, self._seen) if observer]

    def write(self) -> None:
        """Write the timeline."""
        if self._path and self._timeline:
            self._timeline.write(self._path)
            note(f"Timeline written to {self._path}; open it in ui.perfetto.dev")


def prefetch_parameters(pairs: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The parameters of ``--set prefetch.KEY=VALUE``, and the other pairs."""
    own = [pair for pair in pairs if pair.strip().startswith(f"{_OWNER}.")]
    parameters = {key.partition(".")[2]: value for key, value in key_values(own, "--set").items()}
    return parameters, [pair for pair in pairs if pair not in own]

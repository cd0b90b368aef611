"""Work of a worker: do a task of one or several runs and return their results, all in plain values."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from hwsim.errors import HwsimError, TraceError, one_line
from hwsim.simulation.options import find_trace
from hwsim.simulation.replay import replay
from hwsim.simulation.run import Conditions, Source
from hwsim.studies.sweep.cells import Cell, key_of, resolve
from hwsim.trace import Trace, TraceHeader

if TYPE_CHECKING:
    from hwsim.record import Settings as Reading

_OPEN = 4  # traces that a worker keeps open


@dataclass(frozen=True)
class Task:
    """Runs that are done together: one replay, or closed loops that share a dense pass.

    Attributes:
        runs: the runs, each with the key that it was planned with.
    """

    runs: tuple[tuple[str, Cell], ...]


class Outcome(NamedTuple):
    """Outcome of one run: its result, or its error."""

    key: str
    run: Cell
    result: dict[str, Any] | None
    error: str
    seconds: float


def perform(task: Task) -> list[Outcome]:
    """Do the runs of a task and return their outcomes; an error of one run does not end the others."""
    start = time.perf_counter()
    try:
        results = _closed(task) if task.runs[0][1].closed else [_replay(*task.runs[0])]
    except (Exception, SystemExit) as error:  # for example of a plug-in; a worker continues
        if len(task.runs) > 1:  # repeat them one by one to find the one that fails
            return [outcome for run in task.runs for outcome in perform(Task((run,)))]
        key, run = task.runs[0]
        return [Outcome(key, run, None, told(error), time.perf_counter() - start)]
    share = (time.perf_counter() - start) / len(results)
    return [Outcome(key, run, result, "", share) for (key, run), result in zip(task.runs, results, strict=True)]


def told(error: BaseException) -> str:
    """An error as one line; errors that are not hwsim's own begin with their type."""
    return one_line(error) if isinstance(error, HwsimError) else f"{type(error).__name__}: {one_line(error)}"


def _replay(key: str, cell: Cell) -> dict[str, Any]:
    run = resolve(cell, Source.of_trace(open_trace(cell.source["trace"])))
    check_same(key, cell, key_of(cell, run))
    return replay(run, threads=1).plain()


def _closed(task: Task) -> list[dict[str, Any]]:
    from hwsim.closed_loop import Candidate, Loops

    source_values = task.runs[0][1].source
    with Loops(source_values["model"], source_values["text"], reading_of(source_values)) as loops:
        source = loop_source(loops.ready.header)
        runs = [resolve(cell, source) for _, cell in task.runs]
        for (key, cell), run in zip(task.runs, runs, strict=True):
            check_same(key, cell, key_of(cell, run))
        first = runs[0]
        conditions = Conditions(first.device, first.eviction, first.settings, first.names.eviction)
        results = loops.run(conditions, [Candidate(run.names.policy, run.policy) for run in runs])
    return [result.plain() for result in results]


def reading_of(source: dict[str, Any]) -> Reading:
    """How a closed loop reads its text, by the source of its cell."""
    from hwsim.record import Settings

    wanted = {name: source[name] for name in ("tokens", "context", "prompt")}
    return Settings(**wanted, trust_remote_code=source.get("trust_remote_code", False))


def loop_source(header: TraceHeader) -> Source:
    """The source of a closed loop, with its tokens and weights."""
    return Source(header, {"origin": "closed loop", "provenance": header.provenance})


def check_same(key: str, run: Cell, now: str) -> None:
    """Refuse a run whose key differs from the key that it was planned with.

    Raises:
        TraceError: a file that the run reads was changed.
    """
    if key != now:
        raise TraceError(f"{next(iter(run.source.values()))}: it, or another file of this run, changed under the sweep")


_traces: OrderedDict[tuple[str, int, int], Trace] = OrderedDict()


def open_trace(name: str) -> Trace:
    """Open a trace by its file, or ``sample``; a few are kept open.

    Raises:
        TraceError: there is no such trace, or it is damaged.
    """
    path = find_trace(name)
    try:
        status = path.stat()
    except (OSError, ValueError):
        return Trace(path)  # raises the error
    key = (str(path.resolve()), status.st_mtime_ns, status.st_size)
    if key not in _traces:
        _traces[key] = Trace(path)
        if len(_traces) > _OPEN:
            _traces.popitem(last=False)[1].close()
    _traces.move_to_end(key)
    return _traces[key]

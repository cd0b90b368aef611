"""What a worker does: a task of one or several runs -> their results. Everything goes in and out as plain values."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

from hwsim.errors import HwsimError, TraceError, one_line
from hwsim.simulation.options import find_trace
from hwsim.simulation.replay import replay
from hwsim.simulation.run import Conditions, Source
from hwsim.studies.sweep.cells import Cell, key_of, resolve
from hwsim.trace import Trace, TraceHeader

_OPEN = 4  # traces that a worker keeps open


@dataclass(frozen=True)
class Task:
    """Runs that are done together: one replay, or closed loops that share a dense pass.

    Attributes:
        runs: each with the key that it was planned under.
    """

    runs: tuple[tuple[str, Cell], ...]


class Outcome(NamedTuple):
    """Of one run: its result, or why there is none."""

    key: str
    run: Cell
    result: dict[str, Any] | None
    error: str
    seconds: float


def perform(task: Task) -> list[Outcome]:
    """Do the runs of a task. An error is an outcome: the others go on."""
    start = time.perf_counter()
    try:
        results = _closed(task) if task.runs[0][1].closed else [_replay(*task.runs[0])]
    except (Exception, SystemExit) as error:  # of a plug-in, say; a worker goes on
        if len(task.runs) > 1:  # one of them spoils it for all
            return [outcome for each in task.runs for outcome in perform(Task((each,)))]
        key, run = task.runs[0]
        return [Outcome(key, run, None, told(error), time.perf_counter() - start)]
    share = (time.perf_counter() - start) / len(results)
    return [Outcome(key, run, result, "", share) for (key, run), result in zip(task.runs, results, strict=True)]


def told(error: BaseException) -> str:
    """An error in one line; what hwsim did not foresee with its kind."""
    return one_line(error) if isinstance(error, HwsimError) else f"{type(error).__name__}: {one_line(error)}"


def _replay(key: str, cell: Cell) -> dict[str, Any]:
    run = resolve(cell, Source.of_trace(open_trace(cell.source["trace"])))
    check_same(key, cell, key_of(cell, run))
    return replay(run, threads=1).plain()


def _closed(task: Task) -> list[dict[str, Any]]:
    from hwsim.closed_loop import Candidate, Loops
    from hwsim.record import Settings as Reading

    asked = task.runs[0][1].source
    reading = Reading(tokens=asked["tokens"], context=asked["context"], prompt=asked["prompt"])
    with Loops(asked["model"], asked["text"], reading) as loops:
        source = loop_source(loops.ready.header)
        runs = [resolve(cell, source) for _, cell in task.runs]
        for (key, cell), run in zip(task.runs, runs, strict=True):
            check_same(key, cell, key_of(cell, run))
        first = runs[0]
        conditions = Conditions(first.device, first.eviction, first.settings, first.names.eviction)
        results = loops.run(conditions, [Candidate(run.names.policy, run.policy) for run in runs])
    return [result.plain() for result in results]


def loop_source(header: TraceHeader) -> Source:
    """What a closed loop brings: its tokens and weights."""
    return Source(header, {"origin": "closed loop", "provenance": header.provenance})


def check_same(key: str, run: Cell, now: str) -> None:
    """Refuse a run that comes down to something else than when it was planned.

    Raises:
        TraceError: a file that it reads was changed.
    """
    if key != now:
        raise TraceError(f"{next(iter(run.source.values()))}: it, or another file of this run, changed under the sweep")


_traces: OrderedDict[tuple[str, int, int], Trace] = OrderedDict()


def open_trace(name: str) -> Trace:
    """A trace by its file, or ``sample``; a few are kept open.

    Raises:
        TraceError: there is none, or it is damaged.
    """
    path = find_trace(name)
    try:
        status = path.stat()
    except (OSError, ValueError):
        return Trace(path)  # tells what is wrong
    key = (str(path.resolve()), status.st_mtime_ns, status.st_size)
    if key not in _traces:
        _traces[key] = Trace(path)
        if len(_traces) > _OPEN:
            _traces.popitem(last=False)[1].close()
    _traces.move_to_end(key)
    return _traces[key]

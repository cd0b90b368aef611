"""What a worker does: a task of one or several runs -> their results. Everything goes in and out as plain values."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

from hwsim.errors import HwsimError, TraceError, one_line
from hwsim.simulation.options import find_trace
from hwsim.simulation.replay import replay
from hwsim.studies.sweep.runs import Parts, Run, key_of, resolve
from hwsim.trace import Trace, TraceHeader

_OPEN = 4  # traces that a worker keeps open


@dataclass(frozen=True)
class Task:
    """Runs that are done together: one replay, or closed loops that share a dense pass.

    Attributes:
        runs: each with the key that it was planned under.
    """

    runs: tuple[tuple[str, Run], ...]


class Outcome(NamedTuple):
    """Of one run: its result, or why there is none."""

    key: str
    run: Run
    result: dict[str, Any] | None
    error: str
    seconds: float


def perform(task: Task) -> list[Outcome]:
    """Do the runs of a task. An error is an outcome: the others go on."""
    start = time.perf_counter()
    try:
        parts = [resolve(run) for _, run in task.runs]
        found = _closed(task, parts) if task.runs[0][1].closed else [_replay(*task.runs[0], parts[0])]
    except (Exception, SystemExit) as error:  # of a plug-in, say; a worker goes on
        if len(task.runs) > 1:  # one of them spoils it for all
            return [outcome for each in task.runs for outcome in perform(Task((each,)))]
        key, run = task.runs[0]
        return [Outcome(key, run, None, told(error), time.perf_counter() - start)]
    share = (time.perf_counter() - start) / len(found)
    return [Outcome(key, run, result, "", share) for (key, run), result in zip(task.runs, found, strict=True)]


def told(error: BaseException) -> str:
    """An error in one line; what hwsim did not foresee with its kind."""
    return one_line(error) if isinstance(error, HwsimError) else f"{type(error).__name__}: {one_line(error)}"


def _replay(key: str, run: Run, parts: Parts) -> dict[str, Any]:
    trace = open_trace(run.source["trace"])
    check_same(key, run, key_of(run, parts, trace.header, trace_source(trace)))
    return replay(
        trace, parts.profile, parts.policy, parts.rule, parts.settings,
        policy_name=parts.names.policy, eviction_name=parts.names.eviction, threads=1,
    ).plain()  # fmt: skip


def _closed(task: Task, parts: list[Parts]) -> list[dict[str, Any]]:
    from hwsim.closed_loop import Candidate, Loops
    from hwsim.record import Settings as Reading

    first, source = parts[0], task.runs[0][1].source
    reading = Reading(tokens=source["tokens"], context=source["context"], prompt=source["prompt"])
    candidates = [Candidate(each.names.policy, each.policy) for each in parts]
    with Loops(source["model"], source["text"], reading) as loops:
        header = loops.ready.header
        for (key, run), each in zip(task.runs, parts, strict=True):
            check_same(key, run, key_of(run, each, header, loop_source(header)))
        found = loops.run(first.profile, candidates, first.rule, first.settings, eviction_name=first.names.eviction)
    return [each.plain() for each in found]


def loop_source(header: TraceHeader) -> dict[str, Any]:
    """The provenance of a closed loop's tokens and weights."""
    return {"origin": "closed loop", "provenance": header.provenance}


def check_same(key: str, run: Run, now: str) -> None:
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


def trace_source(trace: Trace) -> dict[str, Any]:
    """The provenance of a replay's signals."""
    return {"name": trace.path.name, "hash": trace.hash, "origin": trace.header.origin}

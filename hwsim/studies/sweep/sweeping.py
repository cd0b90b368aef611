"""A sweep: plan the runs, leave out those that are stored, do the rest, keep each as soon as it is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hwsim.studies.sweep.backends import run_tasks
from hwsim.studies.sweep.runs import Run, expand, key_of, resolve
from hwsim.studies.sweep.spec import Spec
from hwsim.studies.sweep.store import Store
from hwsim.studies.sweep.work import Outcome, Task, loop_source, open_trace, told, trace_source
from hwsim.trace import TraceHeader

_TOGETHER = 4  # closed loops that share a dense pass: more would wait long for one another

Progress = Callable[[str, int, int], None]
"""Is told (phase, done, of how many)."""


@dataclass
class Swept:
    """What a sweep came to.

    Attributes:
        keys: of the stored results of all runs that were asked for, in their order.
        done: how many were run now.
        stored: how many were there before.
        failed: what could not be run, and why.
    """

    keys: list[str] = field(default_factory=list)
    done: int = 0
    stored: int = 0
    failed: list[tuple[Run, str]] = field(default_factory=list)


def sweep(
    specs: list[Spec],
    store: Store,
    *,
    jobs: int = 1,
    backend: str = "local",
    address: str | None = None,
    progress: Progress | None = None,
) -> Swept:
    """Run a sweep; what is in the store is not run again.

    Args:
        specs: grids of runs; what is asked for twice is run once.
        store: gets each result as soon as it is there, from this process only.
        jobs: processes of this machine.
        backend: ``local``, ``dask`` or ``ray``.
        address: of the scheduler.
        progress: is told how far it is.

    Raises:
        HwsimError: a grid or the backend is impossible, or the store cannot be written. What goes wrong in a single
            run does not end the sweep.
    """
    tell = progress or (lambda phase, done, total: None)
    swept = Swept()

    def fail(run: Run, error: str) -> None:
        store.fail(run, error)
        swept.failed.append((run, error))

    planned = _plan(list(expand(specs)), fail, tell)
    swept.keys, impossible = list(planned), len(swept.failed)
    new = {key: run for key, run in planned.items() if key not in store}
    swept.stored = len(planned) - len(new)
    tell("runs", swept.stored, len(planned))

    def done(outcomes: list[Outcome]) -> None:
        for each in outcomes:
            if each.result is None:
                fail(each.run, each.error)
                swept.keys.remove(each.key)
            else:
                store.put(each.key, each.run, each.result, each.seconds)
                swept.done += 1
        tell("runs", swept.stored + swept.done + len(swept.failed) - impossible, len(planned))

    run_tasks(_tasks(new), done, jobs=jobs, backend=backend, address=address)
    return swept


def _plan(runs: list[Run], fail: Callable[[Run, str], None], tell: Progress) -> dict[str, Run]:
    """The runs by their keys, each once."""
    planned: dict[str, Run] = {}
    sources: dict[str, Any] = {}
    for number, run in enumerate(runs):
        tell("planning", number, len(runs))
        try:
            name = str(sorted(run.source.items()))
            if name not in sources:
                sources[name] = _source(run)
            planned.setdefault(key_of(run, resolve(run), *sources[name]), run)
        except (Exception, SystemExit) as error:  # of a plug-in, say
            fail(run, told(error))
    tell("planning", len(runs), len(runs))
    return planned


def _source(run: Run) -> tuple[TraceHeader, dict[str, Any]]:
    """The header of a trace, or of what a recording of the model's tokens would be, and its provenance."""
    if not run.closed:
        trace = open_trace(run.source["trace"])
        return trace.header, trace_source(trace)
    from hwsim.record import Settings
    from hwsim.record.prepare import prepare

    wanted = Settings(tokens=run.source["tokens"], context=run.source["context"], prompt=run.source["prompt"])
    header = prepare(run.source["model"], run.source["text"], wanted, lambda *_: None).header
    return header, loop_source(header)


def _tasks(new: dict[str, Run]) -> list[Task]:
    """What is done together: single replays; closed loops that differ in their policy only, a few at a time."""
    tasks, together = [], {}  # type: ignore[var-annotated]
    for key, run in new.items():
        if not run.closed:
            tasks.append(Task(((key, run),)))
            continue
        group = together.setdefault(run.together, [])
        group.append((key, run))
        if len(group) == _TOGETHER:
            tasks.append(Task(tuple(together.pop(run.together))))
    return tasks + [Task(tuple(group)) for group in together.values()]

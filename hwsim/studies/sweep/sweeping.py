"""Run a sweep: plan the runs, skip those that are stored, do the rest, and store each as soon as it is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from hwsim.simulation.run import Source
from hwsim.studies.sweep.backends import run_tasks
from hwsim.studies.sweep.cells import Cell, expand, key_of, resolve
from hwsim.studies.sweep.spec import Spec
from hwsim.studies.sweep.store import Store
from hwsim.studies.sweep.work import Outcome, Task, loop_source, open_trace, reading_of, told

_TOGETHER = 4  # closed loops that share a dense pass: with more, the first results would come late

Progress = Callable[[str, int, int], None]
"""Callback: receives (phase, done, total)."""


@dataclass
class Swept:
    """Outcome of a sweep.

    Attributes:
        keys: keys of the stored results of all requested runs, in their order.
        done: number of runs done now.
        stored: number of runs that were stored before.
        failed: runs that failed, with their errors.
    """

    keys: list[str] = field(default_factory=list)
    done: int = 0
    stored: int = 0
    failed: list[tuple[Cell, str]] = field(default_factory=list)


def sweep(
    specs: list[Spec],
    store: Store,
    *,
    jobs: int = 1,
    backend: str = "local",
    address: str | None = None,
    progress: Progress | None = None,
) -> Swept:
    """Run a sweep; runs whose results are in the store are not repeated.

    Args:
        specs: grids of runs; runs that occur twice are done once.
        store: store that receives each result as soon as it is done; only this process writes it.
        jobs: processes of this machine.
        backend: ``local``, ``dask`` or ``ray``.
        address: address of the scheduler.
        progress: callback, receives the progress.

    Raises:
        HwsimError: a grid or the backend is impossible, or the store cannot be written. An error in a single run does
            not end the sweep.
    """
    tell = progress or (lambda phase, done, total: None)
    swept = Swept()

    def fail(run: Cell, error: str) -> None:
        store.fail(run, error)
        swept.failed.append((run, error))

    planned = _plan(list(expand(specs)), fail, tell)
    swept.keys, impossible = list(planned), len(swept.failed)
    new = {key: run for key, run in planned.items() if key not in store}
    swept.stored = len(planned) - len(new)
    tell("runs", swept.stored, len(planned))

    def done(outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            if outcome.result is None:
                fail(outcome.run, outcome.error)
                swept.keys.remove(outcome.key)
            else:
                store.put(outcome.key, outcome.run, outcome.result, outcome.seconds)
                swept.done += 1
        tell("runs", swept.stored + swept.done + len(swept.failed) - impossible, len(planned))

    run_tasks(_tasks(new), done, jobs=jobs, backend=backend, address=address)
    return swept


def _plan(runs: list[Cell], fail: Callable[[Cell, str], None], tell: Progress) -> dict[str, Cell]:
    """The runs by key, each once."""
    planned: dict[str, Cell] = {}
    sources: dict[str, Source] = {}
    for number, run in enumerate(runs):
        tell("planning", number, len(runs))
        try:
            name = str(sorted(run.source.items()))
            if name not in sources:
                sources[name] = _source(run)
            planned.setdefault(key_of(run, resolve(run, sources[name])), run)
        except (Exception, SystemExit) as error:  # for example of a plug-in
            fail(run, told(error))
    tell("planning", len(runs), len(runs))
    return planned


def _source(run: Cell) -> Source:
    """The source of a run: a trace, or the tokens of a closed loop."""
    if not run.closed:
        return Source.of_trace(open_trace(run.source["trace"]))
    from hwsim.record.prepare import prepare

    header = prepare(run.source["model"], run.source["text"], reading_of(run.source), lambda *_: None).header
    return loop_source(header)


def _tasks(new: dict[str, Cell]) -> list[Task]:
    """Divide runs into tasks: single replays, and groups of closed loops that differ only in their policy."""
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

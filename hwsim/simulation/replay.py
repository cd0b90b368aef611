"""Replay: take a run through its stages placement, counts, timing and result.

The command line, the Python interface and studies call this.
"""

from __future__ import annotations

from collections.abc import Sequence

from hwsim.errors import HwsimError
from hwsim.masking.checks import check_trace
from hwsim.masking.counts import Counts
from hwsim.masking.observers import Observer
from hwsim.masking.scan import scan
from hwsim.masking.step_scan import scan_steps
from hwsim.memory.shares import measured
from hwsim.simulation.metrics import Result
from hwsim.simulation.result import measure
from hwsim.simulation.run import Run
from hwsim.simulation.settings import impossible
from hwsim.util.cores import cores
from hwsim.util.option import is_whole


def replay(run: Run, observers: Sequence[Observer] = (), *, threads: int | None = None) -> Result:
    """Replay a trace, or saved masks, on a device under a policy.

    Args:
        run: the run.
        observers: receive masks, caches, progress, and moments of the event engine; the result does not depend on them.
        threads: number of worker threads; None: the number of cores. The result does not depend on it.

    Raises:
        HwsimError: the trace lacks a signal, the policy broke its contract, or a similar error.
    """
    if threads is not None and not is_whole(threads, 1):
        raise impossible("threads", threads, "a whole number from 1, or None")
    run = with_measured_shares(run)
    watched = run.watched()
    counts = count(run, [*observers, *watched.observers], threads=threads)
    return measure(run, counts, watched, observers)


def count(run: Run, observers: Sequence[Observer] = (), *, threads: int | None = None) -> Counts:
    """Count requests and hits of a run in its caches: the stage after the placement.

    Args:
        run: a run whose source is a trace or saved masks.
        observers: receive masks, caches and progress.
        threads: number of worker threads; None: the number of cores.

    Raises:
        HwsimError: as `replay`.
    """
    source = run.source
    if source.masks is not None:
        source.masks.check_adapter(run.placement.adapter)
        return source.masks.count(run.masking, observers)
    if source.trace is None:
        raise HwsimError("a run without a trace and without masks is counted by the model that runs")
    check_trace(source.trace, run.policy, run.placement.plans, run.names.policy)
    if run.together.plain and not run.placement.plans.sparse:
        return scan(source.trace, run.sequences, run.masking, observers=observers, threads=threads or cores())
    return scan_steps(source.trace, run.sequences, run.steps, run.masking, observers=observers)


def with_measured_shares(run: Run) -> Run:
    """Replace shares that are to be measured by the Flash traffic of a run with equal shares, which is done here."""
    if not run.shares_are_measured:
        return run
    equal = run.but(cache_shares=None)
    if not equal.placement.plans:
        return equal
    missed = count(equal).miss_bytes(equal.placement.plans).sum(axis=0)
    traffic = {(place.layer, place.plan.name): int(missed[place[:2]]) for place in equal.placement.plans.places()}
    return run.but(cache_shares=measured(traffic))

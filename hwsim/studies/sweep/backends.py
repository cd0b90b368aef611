"""Backends that do tasks: processes of this machine, a Dask cluster through joblib, or a Ray cluster."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hwsim.errors import SettingError, one_line
from hwsim.studies.sweep.work import Outcome, Task, perform
from hwsim.util.cores import cores

TRIES = 3  # tries of a task whose worker dies; then the task is considered the cause
CONNECT_S = 20  # seconds that a scheduler may take to answer
BACKENDS = ("local", "dask", "ray")

Done = Callable[[list[Outcome]], None]


def run_tasks(tasks: list[Task], done: Done, *, jobs: int, backend: str = "local", address: str | None = None) -> None:
    """Do all tasks, and pass the outcomes of each to a callback as soon as it is done.

    Args:
        tasks: the tasks, in the order in which they begin.
        done: callback, receives the outcomes of each task.
        jobs: processes of this machine; other backends have their own workers.
        backend: one of `BACKENDS`.
        address: address of Dask's scheduler or Ray's head; None: the one that the library finds or starts.

    Raises:
        SettingError: the backend is unknown, not installed, or cannot be reached.
    """
    if backend not in BACKENDS:
        raise SettingError(f"--backend {backend}: must be one of {', '.join(BACKENDS)}")
    if backend == "local" and address is not None:
        raise SettingError(f"--address {address}: is for --backend dask or ray; processes of this machine have none")
    if not tasks:
        return
    results = {
        "local": lambda: _in_processes(tasks, jobs),
        "dask": lambda: _with_dask(tasks, address),
        "ray": lambda: _with_ray(tasks, address),
    }[backend]()
    for outcomes in results:
        done(outcomes)


def _in_processes(tasks: list[Task], jobs: int) -> Iterator[list[Outcome]]:
    """Do tasks in processes of this machine.

    If a worker dies, its task is tried again and the others continue. (joblib's own pool would end all workers.)
    """
    if jobs == 1:
        yield from map(perform, tasks)
        return
    from concurrent.futures import FIRST_COMPLETED, Future, wait
    from multiprocessing import get_context

    from pebble import ProcessExpired, ProcessPool

    waiting = [(task, 1) for task in reversed(tasks)]
    # spawn: a fork would share torch's threads and open files
    pool = ProcessPool(max_workers=jobs, context=get_context("spawn"), initializer=_begin, initargs=(jobs,))
    running: dict[Future[Any], tuple[Task, int]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < 2 * jobs:  # one running and one waiting for each process
                task, attempt = waiting.pop()
                running[pool.schedule(perform, args=[task])] = (task, attempt)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task, attempt = running.pop(future)
                try:
                    yield future.result()
                except ProcessExpired as error:
                    if attempt < TRIES:
                        waiting.append((task, attempt + 1))
                    else:
                        why = f"the process died {TRIES} times ({_cause(error.exitcode)})"
                        yield [Outcome(key, run, None, why, 0.0) for key, run in task.runs]
        pool.close()
    finally:
        pool.stop()  # does nothing after a successful close
        pool.join()


def _begin(jobs: int) -> None:
    """Initialise a worker: it ignores Ctrl-C, which the parent handles, and has its share of threads."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    share = str(max(1, cores() // jobs))
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(name, share)


def _cause(code: int) -> str:
    if code == -9:  # SIGKILL, a name that Windows lacks
        return "killed; out of memory?"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _with_dask(tasks: list[Task], address: str | None) -> Iterator[list[Outcome]]:
    """Do tasks on Dask through joblib; the scheduler repeats the tasks of a dead worker."""
    with _told("dask", address):
        from dask.distributed import Client
        from joblib import Parallel, delayed, parallel_config

        client = Client(address, set_as_default=False, timeout=CONNECT_S) if address else Client(set_as_default=False)
    try:
        with parallel_config(backend="dask", client=client):
            yield from Parallel(n_jobs=-1, return_as="generator_unordered", batch_size=1)(
                delayed(perform)(task) for task in tasks
            )
    finally:
        client.close()


def _with_ray(tasks: list[Task], address: str | None) -> Iterator[list[Outcome]]:
    """Do tasks on Ray, which repeats the tasks of a dead worker.

    joblib's backend for Ray cannot return results as they are completed (Ray 2.60), so Ray is used directly.
    """
    with _told("ray", address):
        import ray
        from ray.exceptions import RayError

        if address:
            _answers(address)
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, logging_level="ERROR")
    try:
        remote = ray.remote(max_retries=TRIES - 1)(perform)
        waiting = {remote.remote(task): task for task in tasks}
        while waiting:
            (ready, *_), _ = ray.wait(list(waiting), num_returns=1)
            task = waiting.pop(ready)
            try:
                yield ray.get(ready)
            except RayError as error:
                why = f"the process died {TRIES} times ({one_line(error)})"
                yield [Outcome(key, run, None, why, 0.0) for key, run in task.runs]
    finally:
        ray.shutdown()


def _answers(address: str) -> None:
    """Check that something listens at an address, because Ray itself tries forever.

    Raises:
        OSError: nothing listens there.
        ValueError: the address has no host and port.
    """
    host, colon, port = address.rpartition("//")[2].rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError("write HOST:PORT, or ray://HOST:PORT")
    socket.create_connection((host, int(port)), CONNECT_S).close()


@contextmanager
def _told(backend: str, address: str | None) -> Iterator[None]:
    """A context in which errors of reaching a cluster become one line."""
    try:
        yield
    except ImportError as error:
        raise SettingError(f"--backend {backend}: {one_line(error)}; pip install 'hwsim[{backend}]'") from error
    except (OSError, TimeoutError, ValueError, RuntimeError) as error:
        raise SettingError(
            f"--backend {backend}: {address or 'a scheduler'} cannot be reached: {one_line(error)}"
        ) from error

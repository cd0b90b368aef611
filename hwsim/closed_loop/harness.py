"""Interface to lm-eval: find and load tasks, and ask a model all of their questions, without lm-eval's output."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import logging
import math
import os
import random
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, nullcontext, redirect_stdout
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hwsim.errors import SettingError, one_line
from hwsim.record.extras import Libraries, no_bars, told_as

_LEAVES = frozenset({"TASK", "PY_TASK", "TAG"})  # kinds whose parts are in the same folder; a group may name any task
_SEED = 1234  # lm-eval's default for everything that a task draws
_BOOTSTRAPS = 1000  # draws for the standard error of a metric that has no formula
_PARTS = ("versions", "n-shot", "n-samples", "higher_is_better")  # parts of lm-eval's results without times and paths


class Tasks(NamedTuple):
    """Loaded tasks with their data."""

    loaded: dict[str, Any]  # for lm-eval's `evaluate`
    notes: list[str]


def require_harness() -> None:
    """Check that lm-eval is installed, without importing it.

    Raises:
        SettingError: lm-eval is not installed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise SettingError(
            "--tasks: needs lm-eval, which is not installed; install it with: pip install 'hwsim[tasks]'"
        )


def load_tasks(
    names: list[str], folder: Path | None, num_fewshot: int | None, tell: Callable[[int, int], None]
) -> Tasks:
    """Load tasks and their data.

    Args:
        names: names of tasks, groups or tags.
        folder: folder of task files, which precede lm-eval's own; paths of data files are relative to it.
        num_fewshot: examples before each question; None: the task's own number.
        tell: callback, receives the number of names done and their total.

    Raises:
        SettingError: there is no such task, or its data cannot be loaded.
        ModelError: lm-eval refuses the task.
    """
    if folder and not folder.is_dir():
        raise SettingError(f"--tasks-path {folder}: is no folder; give one with lm-eval's task files, *.yaml")
    folder = folder.resolve() if folder else None
    with told_as("--tasks"), _quiet():
        manager = _manager(names, folder)
        loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
        for done, name in enumerate(names):
            tell(done, len(names))
            with told_as(f"--tasks {name}: cannot be loaded"), chdir(folder) if folder else nullcontext():
                for part, content in _load(manager, name).items():
                    loaded[part].update(content)
        tell(len(names), len(names))
        notes = [note for name, task in loaded["tasks"].items() for note in _few_shot(name, task, num_fewshot)]
    return Tasks(loaded, notes)


def build_requests(tasks: Tasks, limit: int | None) -> tuple[dict[str, list[Any]], dict[str, str]]:
    """Build the requests that `ask` will send to a model.

    Args:
        tasks: loaded tasks.
        limit: most questions of each task; None: all.

    Returns:
        lm-eval's instances by the method that serves them, and the hash of each task's requests.
    """
    requests: dict[str, list[Any]] = {}
    hashes = {}
    with told_as("--tasks: cannot be asked"), _quiet():
        for name, task in tasks.loaded["tasks"].items():
            task.set_fewshot_seed(_SEED)
            task.build_all_requests(limit=limit)
            digest = hashlib.sha256()
            for instance in task.instances:
                requests.setdefault(instance.request_type, []).append(instance)
                digest.update(json.dumps([instance.request_type, instance.args], sort_keys=True, default=str).encode())
            hashes[name] = digest.hexdigest()
    return requests, hashes


def ask(model: Any, tasks: Tasks, limit: int | None, libraries: Libraries) -> dict[str, Any]:
    """Ask a model all questions.

    Args:
        model: a model of lm-eval.
        tasks: loaded tasks.
        limit: most questions of each task; None: all.
        libraries: torch, which draws if a task samples.

    Returns:
        lm-eval's `results` and the parts `_PARTS`, as plain values for JSON, without times and paths.
    """
    from lm_eval.evaluator import evaluate

    random.seed(0)
    np.random.seed(_SEED)  # noqa: NPY002  what lm-eval's tasks draw from
    libraries.torch.manual_seed(_SEED)
    for task in tasks.loaded["tasks"].values():
        task.set_fewshot_seed(_SEED)
    with told_as("--tasks: cannot be asked"), _quiet():
        results = evaluate(
            lm=model, task_dict=tasks.loaded, limit=limit, bootstrap_iters=_BOOTSTRAPS, log_samples=False
        )  # fmt: skip
    return _plain({part: results.get(part, {}) for part in ("results", *_PARTS)})


@contextmanager
def quiet_model() -> Iterator[None]:
    """A context in which lm-eval's models are made without warnings."""
    with _quiet():
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """A context without logging, bars and prints of lm-eval and datasets, and without processes for standard errors."""
    import datasets
    import huggingface_hub

    os.environ.setdefault("DISABLE_MULTIPROC", "1")  # lm-eval forks otherwise, beside torch's threads
    datasets.utils.logging.set_verbosity_error()
    huggingface_hub.utils.logging.set_verbosity_error()
    logging.getLogger("lm_eval").setLevel(logging.CRITICAL)
    with no_bars(), redirect_stdout(io.StringIO()):
        yield


def _manager(names: list[str], folder: Path | None) -> Any:
    """lm-eval's index of tasks; only of the folder if it has all names, because lm-eval's own takes seconds to read."""
    from lm_eval.tasks import TaskManager

    if not hasattr(TaskManager, "load"):
        raise SettingError("--tasks: this lm-eval is too old; update it with: pip install -U 'hwsim[tasks]'")
    local: dict[str, Any] = {}
    if folder:
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        local = manager.task_index
        if all(name in local and local[name].kind.name in _LEAVES for name in names):
            return manager
    manager = TaskManager(include_path=str(folder) if folder else None)
    for name in names:
        if name not in manager.task_index:
            raise _unknown(name, manager.all_tasks, folder, sorted(local))
    return manager


def _unknown(name: str, known: list[str], folder: Path | None, local: list[str]) -> SettingError:
    near = get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    if folder is None:
        return SettingError(f"--tasks {name}: lm-eval has no such task{hint or '; name a folder with --tasks-path'}")
    for path in sorted(folder.rglob("*.yaml")):
        if broken := _broken(path):
            return SettingError(f"--tasks {name}: no such task; {path.name} cannot be read: {broken}")
    has = f"{folder.name} has {', '.join(local)}" if local else f"{folder.name} has no task files, *.yaml"
    return SettingError(f"--tasks {name}: neither {folder.name} nor lm-eval has such a task{hint or '; ' + has}")


def _broken(path: Path) -> str:
    """Reason why a task file cannot be read, or an empty text; lm-eval silently skips such files."""
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        load_yaml(path, resolve_func=False)
    except Exception as error:
        return one_line(error)
    return ""


def _load(manager: Any, name: str) -> dict[str, Any]:
    try:
        return manager.load([name])
    except ConnectionError as error:
        raise SettingError(
            f"--tasks {name}: its data set is not on this machine and the hub cannot be reached "
            f"({one_line(error)}); run it online, or a task with local data from --tasks-path"
        ) from error


def _few_shot(name: str, task: Any, wanted: int | None) -> list[str]:
    """Set the number of examples and return notes; a number that a task sets to 0 stays 0, as in lm-eval."""
    own = task.get_config("num_fewshot")
    if own == 0 and wanted:
        return [f"Task {name} sets num_fewshot to 0, and stays without examples."]
    task.set_config(key="num_fewshot", value=(own or 0) if wanted is None else wanted)
    return []


def _plain(value: Any) -> Any:
    """Convert a value for JSON: numbers of numpy become Python's, NaN and infinity become None."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)

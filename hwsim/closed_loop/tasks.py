"""Tasks of lm-eval in the closed loop: accuracy of policies and the dense model, and the speed of the same run."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import hwsim
from hwsim.closed_loop.carried import Carried, carry, require_peft
from hwsim.closed_loop.evaluation import Candidate, with_baseline
from hwsim.closed_loop.harness import Tasks, ask, build_requests, load_tasks, quiet_model, require_harness
from hwsim.closed_loop.masking import ClosedLoop
from hwsim.closed_loop.requests import Passes, Plan, masked_model, plan_requests
from hwsim.closed_loop.routing import find_rules
from hwsim.errors import ModelError, SettingError
from hwsim.evictions import Eviction
from hwsim.memory.groups import Plans
from hwsim.record import Settings as Reading
from hwsim.record.custom import code_provenance
from hwsim.record.extras import Libraries, libraries, require_extra, told_as
from hwsim.record.loading import Loaded, Structure, find_device, find_dtype, load_model, load_tokenizer, read_structure
from hwsim.record.prepare import Progress
from hwsim.record.runner import check_causal
from hwsim.record.sources import Source as ModelSource
from hwsim.record.sources import find_source, weights_hash
from hwsim.record.stored import Found, find_stored
from hwsim.simulation.metrics import TaskEvaluation
from hwsim.simulation.result import measure
from hwsim.simulation.run import Conditions, Source, check_closed, recorded
from hwsim.simulation.settings import Settings
from hwsim.trace import Sequence


@dataclass(frozen=True)
class TaskSettings:
    """The tasks, and how their questions are asked.

    Attributes:
        names: tasks, groups or tags, which are searched in `folder` first, then in lm-eval.
        folder: folder of task files; paths of data files are relative to it.
        limit: most questions of each task; None: all.
        num_fewshot: examples before each question; None: the task's own number.
        dense_prompt: whether prompts of generations are read densely, as no part of the decode, as in `generate`;
            otherwise every token is masked.
    """

    names: tuple[str, ...]
    folder: Path | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    dense_prompt: bool = False


class _Model(NamedTuple):
    """A model that is ready to run."""

    source: ModelSource
    used: Libraries
    structure: Structure
    tokenizer: Any
    loaded: Loaded
    carried: Carried | None  # an adapter, which is on while tokens are masked
    found: Found  # stored bytes of the weights, if the run needs them


class _Answered(NamedTuple):
    """The outcome of one run over all tasks."""

    passes: Passes
    answers: dict[str, Any]


def evaluate_tasks(
    model: str,
    tasks: TaskSettings,
    conditions: Conditions,
    candidates: list[Candidate],
    reading: Reading | None = None,
    *,
    compare: bool = False,
    progress: Progress | None = None,
) -> list[TaskEvaluation]:
    """Ask a model the questions of lm-eval's tasks, densely and under each policy, with the cache in the loop.

    Each request is a separate sequence that begins with empty caches. Requests that read the same tokens are served
    once, as in lm-eval.

    Args:
        model: the model, as for `hwsim.record.record`.
        tasks: the tasks, and how their questions are asked.
        conditions: as for `hwsim.closed_loop.evaluate`. The dense run is without the adapter.
        candidates: the policies; policies without masks share the dense run.
        reading: device, dtype and memory for the model; its other fields are not used.
        compare: whether to add the model as it is, as `hwsim.closed_loop.evaluate` does.
        progress: callback, receives the progress.

    Raises:
        HwsimError: the model or a task cannot be loaded, a setting is impossible, or a similar error.
    """
    reading, settings = reading or Reading(), conditions.settings
    check_closed(settings)
    tell = progress or (lambda phase, done, total: None)
    _check(tasks)
    require_harness()
    require_extra()
    if settings.lora:
        require_peft()
    used, source = libraries(), find_source(model, reading.trust_remote_code)
    loaded_tasks = load_tasks(list(tasks.names), tasks.folder, tasks.num_fewshot, partial(tell, "loading tasks"))
    requests, hashes = build_requests(loaded_tasks, tasks.limit)
    ready = _load(source, used, reading, settings, tell)
    if compare:
        candidates = with_baseline(candidates, ready.structure.shape)
    with told_as("--tasks: cannot be asked"), quiet_model():
        plan = plan_requests(ready.loaded.model, ready.tokenizer, requests)
    _check_plan(plan, tasks, conditions.eviction, ready)
    # the placement is for the longest possible sequence
    expected = [
        conditions.run(_source(ready, [Sequence(tokens=plan.longest)], {}), candidate.policy, candidate.name)
        for candidate in candidates
    ]
    for run in expected:
        run.check()
    done, total = 0, plan.passes * (1 + sum(bool(run.placement.plans) for run in expected))

    def step() -> None:
        nonlocal done
        done += 1
        tell("asking", done, total)

    layers = ready.carried.layers if ready.carried else ready.loaded.layers
    rules = None
    if any(run.placement.plans.sparse for run in expected):
        with told_as(f"--model {ready.source.name}: cannot be run"):
            rules = find_rules(ready.loaded.model, layers, used.torch)
    loops = [ClosedLoop(layers, run.masking, together=run.together, rules=rules) for run in expected]
    none = Plans(((),) * len(layers))
    unmasked = ClosedLoop(layers, replace(expected[0].masking, plans=none, shared=None, name="dense"))
    dense = _ask_all(ready, unmasked, None, loaded_tasks, tasks, step)
    answered_runs = [
        _ask_all(ready, loop, ready.carried, loaded_tasks, tasks, step) if run.placement.plans else dense
        for loop, run in zip(loops, expected, strict=True)
    ]
    origin = {
        "name": ", ".join(tasks.names),
        "origin": "closed loop",
        "provenance": _provenance(ready, tasks, hashes),
    }
    notes = _notes(loaded_tasks, plan, tasks, ready)
    results = []
    for run, loop, answered in zip(expected, loops, answered_runs, strict=True):
        # the KV cache stays reserved for the longest sequence that was possible
        reserved = run.settings.but(kv_tokens=run.placement.bytes.kv_tokens)
        decoded = replace(run, source=_source(ready, answered.passes.sequences, origin), settings=reserved)
        result = measure(decoded, answered.passes.counts())
        about = {"results": answered.answers["results"], "dense_results": dense.answers["results"]}
        about |= {part: value for part, value in answered.answers.items() if part != "results"}
        every = [*notes, *result.notes, *loop.notes]
        results.append(TaskEvaluation(**{**dict(result), "notes": every}, lm_eval=about))
    return results


def _source(ready: _Model, sequences: list[Sequence], origin: dict[str, Any]) -> Source:
    return Source(recorded(ready.structure.shape, sequences, *ready.found), origin)


def _check(tasks: TaskSettings) -> None:
    if not tasks.names:
        raise SettingError("--tasks names no task")
    for option, value, least in (("limit", tasks.limit, 1), ("num-fewshot", tasks.num_fewshot, 0)):
        if value is not None and value < least:
            raise SettingError(f"--{option} {value}: must be at least {least}")


def _check_plan(plan: Plan, tasks: TaskSettings, eviction: Eviction, ready: _Model) -> None:
    if plan.highest >= ready.structure.shape.vocab_size:
        raise ModelError(
            f"--model {ready.source.name}: its tokenizer made token {plan.highest}, the model knows "
            f"{ready.structure.shape.vocab_size}; they do not belong together"
        )
    if plan.generates and eviction.needs_future:
        raise SettingError(
            f"--eviction: a rule that must know the future cannot serve {', '.join(sorted(plan.generates))}, "
            "which generates; choose another"
        )
    if tasks.dense_prompt and not plan.generates:
        raise SettingError("--dense-prompt: is for tasks that generate, and none of these does; leave it out")


def _load(source: ModelSource, used: Libraries, reading: Reading, settings: Settings, tell: Progress) -> _Model:
    tell("loading the model", 0, 1)
    structure = read_structure(source, used)
    if settings.lora:
        structure.shape.check_dense("--lora")
    found = find_stored(source, structure, used) if settings.bits.stored else Found(None)
    device = find_device(reading.device, used.torch)
    dtype = find_dtype(reading.dtype, device, structure)
    tokenizer = load_tokenizer(source, used)
    loaded = load_model(source, structure, used, device, dtype, reading.max_memory)
    with told_as(f"--model {source.name}: cannot be run"):
        check_causal(loaded.model, used)
    carried = carry(loaded, settings.lora, source.name)
    tell("loading the model", 1, 1)
    return _Model(source, used, structure, tokenizer, loaded, carried, found)


def _ask_all(
    ready: _Model,
    loop: ClosedLoop,
    carried: Carried | None,
    loaded_tasks: Tasks,
    tasks: TaskSettings,
    step: Callable[[], None],
) -> _Answered:
    """Ask all questions under one policy, or densely."""
    passes = Passes(loop, dense_prompt=tasks.dense_prompt, tell=step, carried=carried)
    with told_as(f"--model {ready.source.name}: cannot be run"), quiet_model():
        masked = masked_model(ready.loaded.model, ready.tokenizer, passes)
    answers = ask(masked, loaded_tasks, tasks.limit, ready.used)
    if not passes.sequences:
        raise SettingError(
            "--dense-prompt: every text ended with its first token, so nothing was decoded; leave it out"
        )
    return _Answered(passes, answers)


def _notes(loaded_tasks: Tasks, plan: Plan, tasks: TaskSettings, ready: _Model) -> list[str]:
    notes = list(loaded_tasks.notes)
    if tasks.limit is not None:
        notes.append(f"Of each task the first {tasks.limit} questions were asked, at most; say so beside its figures.")
    if plan.cut:
        notes.append(
            f"{plan.cut} requests are longer than {ready.source.name} can read; lm-eval cut their beginnings off."
        )
    return notes


def _provenance(ready: _Model, tasks: TaskSettings, hashes: dict[str, str]) -> dict[str, Any]:
    """Everything that decides the answers, without times and paths of this machine."""
    import lm_eval

    weight = ready.loaded.model.get_input_embeddings().weight
    return {
        "hwsim": hwsim.__version__,
        "python": platform.python_version(),
        "torch": str(ready.used.torch.__version__),
        "transformers": str(ready.used.transformers.__version__),
        "lm_eval": lm_eval.__version__,
        "weights": {"origin": ready.source.origin, "sha256": weights_hash(ready.source)},
        **code_provenance(ready.source),
        "requests_sha256": hashes,
        "command": {
            "model": ready.source.name,
            "tasks": list(tasks.names),
            "limit": tasks.limit,
            "num_fewshot": tasks.num_fewshot,
            "dense_prompt": tasks.dense_prompt,
            "device": str(weight.device),
            "dtype": str(weight.dtype).removeprefix("torch."),
        },
    }

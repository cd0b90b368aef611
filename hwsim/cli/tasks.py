"""``hwsim eval --tasks``: the tasks of lm-eval instead of a text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hwsim.cli.common import note, output, progress_bar, write_results
from hwsim.errors import SettingError

if TYPE_CHECKING:
    from hwsim.closed_loop import Candidate, TaskSettings
    from hwsim.record import Settings as Reading
    from hwsim.simulation.metrics import TaskEvaluation
    from hwsim.simulation.run import Conditions

Tasks = Annotated[
    list[str] | None,
    typer.Option("--tasks", metavar="NAME", help="Tasks of lm-eval instead of a text; several by commas."),
]
TasksPath = Annotated[
    Path | None,
    typer.Option("--tasks-path", metavar="FOLDER", help="Task files, *.yaml; data files are named from there."),
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Questions of each task.", show_default="all")]
NumFewshot = Annotated[
    int | None,
    typer.Option("--num-fewshot", min=0, help="Examples in front of a question.", show_default="the task's"),
]
DensePrompt = Annotated[
    bool,
    typer.Option("--dense-prompt", help="Tasks that generate read their prompts densely, as `hwsim generate` does."),
]
_OF_TASKS = ("tasks_path", "limit", "num_fewshot", "dense_prompt")
_OF_TEXTS = ("text", "tokens", "context", "prompt", "batch", "save_masks")


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """Tasks in place of a text."""

    tasks: Tasks = None
    tasks_path: TasksPath = None
    limit: Limit = None
    num_fewshot: NumFewshot = None
    dense_prompt: DensePrompt = False


def read_tasks(ctx: typer.Context, options: TaskOptions) -> TaskSettings | None:
    """The tasks of the options; None if a text is read instead.

    Raises:
        SettingError: options of a text and of tasks are mixed.
    """
    tasks = options.tasks
    wrong = [name for name in (_OF_TASKS if tasks is None else _OF_TEXTS) if _given(ctx, name)]
    if wrong:
        rule = "is for --tasks" if tasks is None else "does not go with --tasks"
        raise SettingError(f"--{wrong[0].replace('_', '-')}: {rule}; leave it out")
    if tasks is None:
        return None
    from hwsim.closed_loop import TaskSettings

    names = dict.fromkeys(name.strip() for option in tasks for name in option.split(",") if name.strip())
    return TaskSettings(
        tuple(names), options.tasks_path, options.limit, options.num_fewshot, options.dense_prompt
    )  # fmt: skip


def _given(ctx: typer.Context, name: str) -> bool:
    """Whether an option was given on the command line."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def task_files(folder: Path | None) -> list[Path]:
    """All files in a folder of tasks, which the command may read."""
    return [path for path in folder.rglob("*") if path.is_file()] if folder and folder.is_dir() else []


def run_tasks(
    model: str,
    tasks: TaskSettings,
    conditions: Conditions,
    candidates: list[Candidate],
    reading: Reading,
) -> list[TaskEvaluation]:
    """Evaluate candidates on tasks, and return a result for each and for the model as it is."""
    from hwsim.closed_loop import evaluate_tasks

    with progress_bar(rate="texts") as progress:
        results = evaluate_tasks(
            model, tasks, conditions, candidates, reading, compare=True, progress=progress
        )  # fmt: skip
    return list(results)


def show_tasks(results: list[TaskEvaluation], asked: int, json: str | None) -> None:
    """Write and print the results of the first `asked` candidates; the others are only for the comparison."""
    from hwsim.report.evaluation import unmodified
    from hwsim.report.table import print_results
    from hwsim.report.tasks import render_tasks

    write_results(json, list(results[:asked]))
    if json != "-":
        console = output()
        console.print(render_tasks(results[:asked], console.width))
        print_results(console, list(results[:asked]), unmodified(results))
    if json and json != "-":
        note(f"Result written to {json}")

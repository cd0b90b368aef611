"""``hwsim eval --tasks``: the tasks of lm-eval instead of a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hwsim.cli.common import note, output, progress_bar, write_results
from hwsim.errors import SettingError

if TYPE_CHECKING:
    from hwsim.closed_loop import Candidate, TaskSettings
    from hwsim.device.profile import Profile
    from hwsim.evictions import Eviction
    from hwsim.record import Settings as Reading
    from hwsim.simulation.replay import Settings

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


def read_tasks(
    ctx: typer.Context,
    tasks: list[str] | None,
    folder: Path | None,
    limit: int | None,
    num_fewshot: int | None,
    dense_prompt: bool,
) -> TaskSettings | None:
    """What the options ask for; None: a text.

    Raises:
        SettingError: options of a text and of tasks are mixed.
    """
    wrong = [name for name in (_OF_TASKS if tasks is None else _OF_TEXTS) if _given(ctx, name)]
    if wrong:
        rule = "is for --tasks" if tasks is None else "does not go with --tasks"
        raise SettingError(f"--{wrong[0].replace('_', '-')}: {rule}; leave it out")
    if tasks is None:
        return None
    from hwsim.closed_loop import TaskSettings

    names = dict.fromkeys(name.strip() for option in tasks for name in option.split(",") if name.strip())
    return TaskSettings(tuple(names), folder, limit, num_fewshot, dense_prompt)


def _given(ctx: typer.Context, name: str) -> bool:
    """Whether an option was given, rather than left at its default."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def task_files(folder: Path | None) -> list[Path]:
    """What a folder of tasks holds: files that the command may read."""
    return [path for path in folder.rglob("*") if path.is_file()] if folder and folder.is_dir() else []


def run_tasks(
    model: str,
    tasks: TaskSettings,
    profile: Profile,
    candidates: list[Candidate],
    rule: tuple[str, Eviction],
    reading: Reading,
    settings: Settings,
    json: str | None,
    shown: int,
) -> None:
    """Evaluate on tasks and show it; the first `shown` candidates were asked for."""
    from hwsim.closed_loop import evaluate_tasks
    from hwsim.report.table import print_results
    from hwsim.report.tasks import render_tasks

    with progress_bar(rate="texts") as progress:
        results = evaluate_tasks(
            model, tasks, profile, candidates, rule[1], reading, settings, eviction_name=rule[0], progress=progress
        )  # fmt: skip
    write_results(json, list(results[:shown]))
    if json != "-":
        console = output()
        console.print(render_tasks(results[:shown], console.width))
        print_results(console, list(results[:shown]), next(each for each in results if not each.groups))
    if json and json != "-":
        note(f"Result written to {json}")

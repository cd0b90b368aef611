"""``hwsim eval``: run a model under policies with the cache in the loop, for accuracy beside speed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from hwsim.cli import caching as c
from hwsim.cli import options as o
from hwsim.cli import tasks as t
from hwsim.cli.common import (
    JsonOption,
    check_target,
    listed,
    note,
    output,
    plugin_files,
    progress_bar,
    setting_files,
    write_results,
)
from hwsim.cli.replay import density_files, make_policies
from hwsim.cli.runoptions import Run, check_closed, check_per_token
from hwsim.util.files import spare


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Options of ``hwsim eval``."""

    model: o.Model
    hw: o.Hardware
    policy: Annotated[
        list[str] | None,
        typer.Option("--policy", metavar="NAME|FILE.py", help="Policy; several by commas or by repeating the option."),
    ] = None
    text: o.Text = "persuasion"
    tokens: o.Tokens = 2048
    context: o.Context = 512
    prompt: o.Prompt = 0
    rule: c.RuleOptions
    run: Run
    torch: o.TorchOptions
    batch: Annotated[
        int | None,
        typer.Option(help="Windows that go through the model together.", show_default="1 on a CPU, else 8"),
    ] = None
    save_masks: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the masks; `hwsim replay FILE` replays them exactly.")
    ] = None
    tasks: t.TaskOptions
    settings_file: o.SettingsFile = None
    json: JsonOption = None


def evaluate(ctx: typer.Context, options: EvaluateOptions) -> None:
    """Run a model under policies: perplexity beside tokens/s.

    The cache is in the loop: the model sees the masks, so later activations feel earlier ones. Several policies share
    one dense pass.
    With --tasks it answers the questions of lm-eval's tasks instead of reading a text: accuracy beside tokens/s.

    Example: hwsim eval --model smollm2-135m --hw pixel8 --dram 50% --policy dip,dip-ca --density 0.7
    """
    from hwsim.closed_loop import Candidate
    from hwsim.closed_loop import evaluate as run
    from hwsim.device.profile import find_profile, load_profile
    from hwsim.masking.mask_file import MaskWriter
    from hwsim.record import Settings as Reading
    from hwsim.report.evaluation import render_accuracy, unmodified
    from hwsim.report.table import print_results
    from hwsim.simulation.run import Conditions

    model, hw, text, json, save_masks = options.model, options.hw, options.text, options.json, options.save_masks
    torch, rule = options.torch, options.rule
    given = o.Chosen(options.policy, rule.density, rule.set_, rule.eviction, options.run)
    chosen = o.with_settings(ctx, options.settings_file, given)
    check_per_token(chosen.run, json)
    policy, pairs = chosen.policy, chosen.set_ or []
    if not policy:
        raise typer.BadParameter("is missing; name one or several, such as dip,dip-ca", param_hint="--policy")
    task_settings = t.read_tasks(ctx, options.tasks)
    sources = [find_profile(hw), *plugin_files([chosen.eviction, *policy]), *setting_files(pairs)]
    sources += [*chosen.run.files(), *density_files(chosen.density), *t.task_files(options.tasks.tasks_path)]
    sources += [options.settings_file] if options.settings_file else []
    sources += [*([Path(text)] if Path(text).is_file() else []), *o.model_files(model)]
    check_target(json, *sources, *([save_masks] if save_masks else []))
    if save_masks:
        spare(save_masks, sources)
    check_closed(chosen.run)
    settings = chosen.run.settings()
    reading = Reading(
        options.tokens, options.context, options.prompt, None, torch.device, torch.dtype, torch.memory,
        trust_remote_code=torch.trust_remote_code,
    )  # fmt: skip
    rule_name, eviction, pairs = c.make_rule(chosen.eviction, pairs)
    conditions = Conditions(load_profile(hw), eviction, settings, rule_name)
    names = [name for option in policy for name in listed(option)]
    candidates = [Candidate(name, instance) for name, instance in make_policies(names, chosen.density, pairs)]
    shown = len(candidates)
    if task_settings:
        answered = t.run_tasks(model, task_settings, conditions, candidates, reading)
        t.show_tasks(answered, shown, json)
        return
    masks = MaskWriter(save_masks) if save_masks else None
    with progress_bar(rate="tokens") as progress:
        results = run(
            model, text, conditions, candidates, reading, masks=masks, batch=options.batch, compare=masks is None,
            progress=progress,
        )  # fmt: skip
    write_results(json, list(results[:shown]))
    if json != "-":
        console = output()
        console.print(render_accuracy(results[:shown]))
        if save_masks is None:
            print_results(console, list(results[:shown]), unmodified(results))
    if json and json != "-":
        note(f"Result written to {json}")

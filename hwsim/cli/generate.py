"""``hwsim generate``: let a model write under a policy, token by token, and show its text and simulated tokens/s."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated

import typer

from hwsim.cli import caching as c
from hwsim.cli import options as o
from hwsim.cli.common import (
    JsonOption,
    check_target,
    note,
    output,
    plugin_files,
    progress_bar,
    setting_files,
    write_json,
    write_text,
)
from hwsim.cli.replay import density_files, make_policies
from hwsim.cli.runoptions import Run, check_closed
from hwsim.errors import SettingError


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """Options of ``hwsim generate``."""

    model: o.Model
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="What the model goes on from; read without masks.")]
    hw: o.Hardware
    policy: Annotated[str, typer.Option("--policy", metavar="NAME|FILE.py", help="Policy.")]
    tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 64
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the model's chat template.")] = False
    temperature: Annotated[float, typer.Option(min=0.0, help="0: the most likely token; above: drawn.")] = 0.0
    rule: c.RuleOptions
    run: Run
    torch: o.TorchOptions
    json: JsonOption = None


def generate(options: GenerateOptions) -> None:
    """Let a model write under a policy: its text, and the tokens/s.

    The policy's caches are in the loop. Shown is what the model says, and how fast a device would say it.

    Example: hwsim generate --model smollm2-135m --prompt "The sea was" --hw pixel8 --dram 60% --policy dip
    """
    from hwsim.closed_loop import Candidate, Writing
    from hwsim.closed_loop import generate as run
    from hwsim.device.profile import find_profile, load_profile
    from hwsim.record import Settings as Reading
    from hwsim.report.evaluation import speed
    from hwsim.simulation.run import Conditions

    caching, torch, json = options.rule, options.torch, options.json
    pairs = caching.set_ or []
    read = [find_profile(options.hw), *plugin_files([caching.eviction, options.policy]), *setting_files(pairs)]
    read += [*density_files(caching.density), *options.run.files()]
    check_target(json, *read, *o.model_files(options.model))
    check_closed(options.run)
    settings = options.run.settings()
    reading = Reading(
        device=torch.device, dtype=torch.dtype, max_memory=torch.memory, trust_remote_code=torch.trust_remote_code
    )
    rule_name, rule, pairs = c.make_rule(caching.eviction, pairs)
    policies = make_policies([options.policy], caching.density, pairs)
    if len(policies) != 1:
        raise SettingError("--policy: one policy writes at a time")
    conditions = Conditions(load_profile(options.hw), rule, settings, rule_name)
    writing = Writing(options.tokens, options.chat, options.temperature)

    def show(text: str) -> None:
        bar.close()  # the text has the terminal to itself
        if json != "-":
            write_text(text)

    with ExitStack() as bar:
        progress = bar.enter_context(progress_bar())
        written = run(
            options.model, options.prompt, conditions, Candidate(*policies[0]), writing, reading,
            on_text=show, progress=progress,
        )  # fmt: skip
    if json and written.result:
        write_json(json, written.result.to_json())
    if json != "-":
        output().print("\n")
        output().print(speed(written.result) if written.result else "The first token was the end.")
    if json and json != "-":
        note(f"Result written to {json}")

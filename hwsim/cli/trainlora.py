"""``hwsim train lora``: train an adapter on a text that recovers the accuracy that a policy's masks cost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from hwsim.cli import options as o
from hwsim.cli.caching import make_rule
from hwsim.cli.common import (
    JsonOption,
    check_target,
    note,
    output,
    plugin_files,
    progress_bar,
    setting_files,
    to_json,
    write_json,
)
from hwsim.cli.replay import density_files, make_policies
from hwsim.cli.runoptions import Run
from hwsim.errors import OutputError, SettingError


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """Options of ``hwsim train lora``."""

    model: o.Model
    text: o.Text
    hw: o.Hardware
    policy: Annotated[str, typer.Option("--policy", metavar="NAME|FILE.py", help="Policy that is in place.")]
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder to write.")]
    tokens: Annotated[int, typer.Option(help="Tokens of the text to train on.")] = 131_072
    validation: Annotated[int, typer.Option(help="Tokens after those to look at, never trained on.")] = 4_096
    context: o.Context = 512
    batch: Annotated[int, typer.Option(help="Windows of one step.")] = 2
    epochs: Annotated[int, typer.Option(help="How often the tokens are gone through.")] = 1
    rank: Annotated[int, typer.Option(help="Rank of the adapter.")] = 16
    learning_rate: Annotated[float, typer.Option(help="The largest; it rises first and falls to zero.")] = 1e-3
    every: Annotated[int, typer.Option(help="Steps between two looks at the validation tokens.")] = 32
    density: o.Density = None
    set_: o.Parameters = None
    eviction: o.EvictionRule = "lfu"
    run: Run
    torch: o.TorchOptions
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another adapter that is there.")] = False
    json: JsonOption = None


def lora(options: LoraOptions) -> None:
    """Train a LoRA adapter under a policy, with the dense model as teacher.

    The policy's masks and caches are in place while it trains. After a kill the same command goes on where it was.

    Example: hwsim train lora --model smollm2-135m --text book.txt --hw pixel8 --policy dip --density 0.5 -o dip50
    """
    from hwsim.closed_loop import Candidate
    from hwsim.device.profile import find_profile, load_profile
    from hwsim.record import Settings as Reading
    from hwsim.report.training import render_lora
    from hwsim.simulation.run import Conditions
    from hwsim.train.adapterfile import partial_of
    from hwsim.train.lora import Target, train_lora
    from hwsim.train.trainer import Training

    model, text, out, json, torch = options.model, options.text, options.out, options.json, options.torch
    pairs = options.set_ or []
    read = [find_profile(options.hw), *plugin_files([options.eviction, options.policy]), *setting_files(pairs)]
    read += density_files(options.density)
    check_target(json, *read, *([Path(text)] if Path(text).is_file() else []), *o.model_files(model))
    outputs = {out.resolve(), partial_of(out)}
    if json and json != "-" and outputs & {Path(json).resolve(), *Path(json).resolve().parents}:
        raise OutputError(f"--json {json}: lies in the folder of the adapter, {out}; name a file elsewhere")
    training = Training(
        options.tokens, options.validation, options.context, options.batch, options.epochs, options.rank,
        options.learning_rate, options.every,
    )  # fmt: skip
    reading = Reading(
        device=torch.device, dtype=torch.dtype, max_memory=torch.memory, trust_remote_code=torch.trust_remote_code
    )
    _, rule, pairs = make_rule(options.eviction, pairs)
    policies = make_policies([options.policy], options.density, pairs)
    if len(policies) != 1:
        raise SettingError("--policy: an adapter is trained under one policy")
    conditions = Conditions(load_profile(options.hw), rule, options.run.settings())
    target = Target(out, options.overwrite, (Path(json),) if json and json != "-" else ())
    with progress_bar() as progress:
        trained = train_lora(
            target, model, text, conditions, Candidate(*policies[0]), training, reading, progress=progress
        )  # fmt: skip
    if json:
        write_json(json, to_json(trained.plain()))
    if json != "-":
        output().print(render_lora(trained))
    if trained.resumed:
        whole = trained.resumed == training.steps
        note("Nothing was left to do: it was trained before." if whole else f"Went on from step {trained.resumed}.")

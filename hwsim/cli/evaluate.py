"""``hwsim eval``: a model runs under policies, with the cache in the loop -> accuracy beside speed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hwsim.cli import caching as c
from hwsim.cli import device as d
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
from hwsim.util.files import spare


def evaluate(
    ctx: typer.Context,
    model: o.Model,
    hw: o.Hardware,
    policy: Annotated[
        list[str] | None,
        typer.Option("--policy", metavar="NAME|FILE.py", help="Policy; several by commas or by repeating the option."),
    ] = None,
    text: o.Text = "persuasion",
    tokens: o.Tokens = 2048,
    context: o.Context = 512,
    prompt: o.Prompt = 0,
    density: o.Density = None,
    set_: o.Parameters = None,
    eviction: o.EvictionRule = "lfu",
    admission: c.AdmissionOf = None,
    pin: c.Pin = None,
    warm: c.Warm = None,
    lora: o.Lora = None,
    lora_merged: o.LoraMerged = False,
    cache_scope: o.CacheScope = o.Scope.MATRIX,
    cache_shares: o.CacheShares = "equal",
    block: o.Block = 1,
    layout: o.NeuronLayout = None,
    dram: o.Dram = None,
    kv_tokens: o.KvTokens = None,
    bits: o.BitsOfParts = o.DEFAULT_BITS,
    timing: o.TimingModel = o.Timing.EVENTS,
    overlap: o.OverlapOf = o.Overlap.NONE,
    bundle: d.Bundle = False,
    fills: d.Fills = False,
    engine: d.Engine = None,
    ignore: d.Ignore = "",
    prefill_chunk: d.PrefillChunk = None,
    seed: o.Seed = 0,
    device: o.Device = "cpu",
    dtype: o.Dtype = "auto",
    max_memory: o.MaxMemory = None,
    batch: Annotated[
        int | None,
        typer.Option(help="Windows that go through the model together.", show_default="1 on a CPU, else 8"),
    ] = None,
    save_masks: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the masks; `hwsim replay FILE` replays them exactly.")
    ] = None,
    tasks: t.Tasks = None,
    tasks_path: t.TasksPath = None,
    limit: t.Limit = None,
    num_fewshot: t.NumFewshot = None,
    dense_prompt: t.DensePrompt = False,
    settings_file: o.SettingsFile = None,
    json: JsonOption = None,
    per_token: o.PerToken = False,
) -> None:
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
    from hwsim.report.evaluation import render_accuracy
    from hwsim.report.table import print_results
    from hwsim.simulation.options import make_settings
    from hwsim.simulation.plugins import POLICIES

    o.check_per_token(per_token, json)
    given = o.Chosen(policy, density, set_, eviction, dram, lora, lora_merged, cache_shares)
    chosen = o.with_settings(ctx, settings_file, given)
    policy, density, set_, eviction, dram, lora, lora_merged, cache_shares = chosen
    if not policy:
        raise typer.BadParameter("is missing; name one or several, such as dip,dip-ca", param_hint="--policy")
    asked = t.read_tasks(ctx, tasks, tasks_path, limit, num_fewshot, dense_prompt)
    sources = [find_profile(hw), *plugin_files([eviction, *policy]), *setting_files(set_ or [])]
    sources += [*o.lora_files(lora, lora_merged), *density_files(density), *t.task_files(tasks_path)]
    sources += [*o.cache_files(cache_shares, layout), *(path for path in (pin, warm, settings_file) if path)]
    sources += [*([Path(text)] if Path(text).is_file() else []), *o.model_files(model)]
    check_target(json, *sources, *([save_masks] if save_masks else []))
    if save_masks:
        spare(save_masks, sources)
    d.check_closed(overlap)
    settings = make_settings(
        dram=dram, kv_tokens=kv_tokens, bits=bits, timing=timing.value, overlap=overlap.value, seed=seed,
        per_token=per_token, lora=lora, lora_merged=lora_merged, cache_scope=cache_scope.value,
        cache_shares=cache_shares, block=block, layout=layout, admission=admission and admission.value,
        pin=pin, warm=warm, bundle=bundle, fills=fills, engine=engine, ignore=ignore, prefill_chunk=prefill_chunk,
    )  # fmt: skip
    reading = Reading(tokens, context, prompt, None, device, dtype, o.read_size(max_memory, "--max-memory"))
    profile = load_profile(hw)
    rule_name, rule, pairs = c.make_rule(eviction, set_ or [])
    names = [name for option in policy for name in listed(option)]
    candidates = [Candidate(name, made) for name, made in make_policies(names, density, pairs)]
    shown = len(candidates)
    if all(each.name != "dense" for each in candidates) and save_masks is None:
        candidates.append(Candidate("dense", POLICIES.make("dense")[1]))  # costs no pass of its own
    if asked:
        t.run_tasks(model, asked, profile, candidates, (rule_name, rule), reading, settings, json, shown)
        return
    masks = MaskWriter(save_masks) if save_masks else None
    with progress_bar(rate="tokens") as progress:
        results = run(
            model, text, profile, candidates, rule, reading, settings,
            eviction_name=rule_name, masks=masks, batch=batch, progress=progress,
        )  # fmt: skip
    write_results(json, list(results[:shown]))
    if json != "-":
        console = output()
        console.print(render_accuracy(results[:shown]))
        if save_masks is None:
            print_results(console, list(results[:shown]), next(each for each in results if not each.groups))
    if json and json != "-":
        note(f"Result written to {json}")

"""``hwsim generate``: a model writes under a policy, token by token -> its text and the simulated tokens/s."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated

import typer

from hwsim.cli import caching as c
from hwsim.cli import device as d
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
from hwsim.errors import SettingError


def generate(
    model: o.Model,
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="What the model goes on from; read densely.")],
    hw: o.Hardware,
    policy: Annotated[str, typer.Option("--policy", metavar="NAME|FILE.py", help="Policy.")],
    tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 64,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the model's chat template.")] = False,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: the most likely token; above: drawn.")] = 0.0,
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
    json: JsonOption = None,
) -> None:
    """Let a model write under a policy: its text, and the tokens/s.

    The policy's caches are in the loop. Shown is what the model says, and how fast a device would say it.

    Example: hwsim generate --model smollm2-135m --prompt "The sea was" --hw pixel8 --dram 60% --policy dip
    """
    from hwsim.closed_loop import Candidate
    from hwsim.closed_loop import generate as run
    from hwsim.device.profile import find_profile, load_profile
    from hwsim.record import Settings as Reading
    from hwsim.report.evaluation import speed
    from hwsim.simulation.options import make_settings

    read = [find_profile(hw), *plugin_files([eviction, policy]), *setting_files(set_ or []), *density_files(density)]
    read += [*o.lora_files(lora, lora_merged), *o.cache_files(cache_shares, layout), *(f for f in (pin, warm) if f)]
    check_target(json, *read, *o.model_files(model))
    d.check_closed(overlap)
    settings = make_settings(
        dram=dram, bits=bits, timing=timing.value, overlap=overlap.value, seed=seed, lora=lora, lora_merged=lora_merged,
        cache_scope=cache_scope.value, cache_shares=cache_shares, block=block, layout=layout,
        admission=admission and admission.value, pin=pin, warm=warm, bundle=bundle, fills=fills, engine=engine,
        ignore=ignore, prefill_chunk=prefill_chunk,
    )  # fmt: skip
    reading = Reading(device=device, dtype=dtype, max_memory=o.read_size(max_memory, "--max-memory"))
    rule_name, rule, pairs = c.make_rule(eviction, set_ or [])
    made = make_policies([policy], density, pairs)
    if len(made) != 1:
        raise SettingError("--policy: one policy writes at a time")
    profile = load_profile(hw)

    def show(text: str) -> None:
        bar.close()  # the text has the terminal to itself
        if json != "-":
            write_text(text)

    with ExitStack() as bar:
        progress = bar.enter_context(progress_bar())
        written = run(
            model, prompt, profile, Candidate(*made[0]), rule, tokens, reading, settings,
            chat=chat, temperature=temperature, eviction_name=rule_name, on_text=show, progress=progress,
        )  # fmt: skip
    if json and written.result:
        write_json(json, written.result.to_json())
    if json != "-":
        output().print("\n")
        output().print(speed(written.result) if written.result else "The first token was the end.")
    if json and json != "-":
        note(f"Result written to {json}")

"""Written by `python -m hwsim.api.generate` from the options that `Settings` declares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from hwsim.api.interface import Asked, PolicyLike, Results, closed_loops, replays
from hwsim.cache.unit_sets import UnitSets
from hwsim.device.profile import Profile
from hwsim.evictions import Eviction
from hwsim.memory.neuron_order import Layout
from hwsim.memory.shares import Shares
from hwsim.model.shape import Bits
from hwsim.prefetch import Prefetch
from hwsim.simulation.metrics import Evaluation, Result
from hwsim.simulation.settings import Settings
from hwsim.trace import Trace


@overload
def replay(
    trace: Trace | str | Path, hw: str | Path | Profile, policy: PolicyLike, *,
    density: float | str | Path | None = ..., eviction: str | Path | type[Eviction] | Eviction = ...,
    threads: int | None = ..., admission: str | None = ..., pin: str | Path | UnitSets | None = ...,
    warm: str | Path | UnitSets | None = ..., lora: str | Path | None = ..., lora_merged: bool = ...,
    cache_scope: str = ..., cache_shares: str | Path | Shares | None = ..., block: int = ...,
    layout: str | Path | Layout | None = ..., dram: str | int | None = ..., cache: str | int | None = ...,
    kv_tokens: int | None = ..., bits: str | Bits = ..., timing: str = ..., overlap: str = ..., seed: int = ...,
    bundle: bool = ..., packed: bool = ..., merge: str | int | None = ..., gap: str | int | None = ...,
    prefetch: str | Path | Prefetch | None = ..., prefetch_parameters: Mapping[str, Any] | None = ...,
    fills: bool = ..., engine: str | None = ..., ignore: str | Sequence[str] = ..., kv_window: int | None = ...,
    prefill_chunk: int | None = ..., prefill: str | None = ..., keep_cache: bool = ..., lockstep: int = ...,
    speculate: int = ..., accept: str | float | None = ..., per_token: bool = ..., **parameters: Any,
) -> Result: ...  # fmt: skip


@overload
def replay(
    trace: Trace | str | Path, hw: str | Path | Profile, policy: Sequence[PolicyLike], *,
    density: float | str | Path | None = ..., eviction: str | Path | type[Eviction] | Eviction = ...,
    threads: int | None = ..., admission: str | None = ..., pin: str | Path | UnitSets | None = ...,
    warm: str | Path | UnitSets | None = ..., lora: str | Path | None = ..., lora_merged: bool = ...,
    cache_scope: str = ..., cache_shares: str | Path | Shares | None = ..., block: int = ...,
    layout: str | Path | Layout | None = ..., dram: str | int | None = ..., cache: str | int | None = ...,
    kv_tokens: int | None = ..., bits: str | Bits = ..., timing: str = ..., overlap: str = ..., seed: int = ...,
    bundle: bool = ..., packed: bool = ..., merge: str | int | None = ..., gap: str | int | None = ...,
    prefetch: str | Path | Prefetch | None = ..., prefetch_parameters: Mapping[str, Any] | None = ...,
    fills: bool = ..., engine: str | None = ..., ignore: str | Sequence[str] = ..., kv_window: int | None = ...,
    prefill_chunk: int | None = ..., prefill: str | None = ..., keep_cache: bool = ..., lockstep: int = ...,
    speculate: int = ..., accept: str | float | None = ..., per_token: bool = ..., **parameters: Any,
) -> Results[Result]: ...  # fmt: skip


def replay(
    trace: Trace | str | Path, hw: str | Path | Profile, policy: PolicyLike | Sequence[PolicyLike], *,
    density: float | str | Path | None = None, eviction: str | Path | type[Eviction] | Eviction = "lfu",
    threads: int | None = None, admission: str | None = None, pin: str | Path | UnitSets | None = None,
    warm: str | Path | UnitSets | None = None, lora: str | Path | None = None, lora_merged: bool = False,
    cache_scope: str = "matrix", cache_shares: str | Path | Shares | None = "equal", block: int = 1,
    layout: str | Path | Layout | None = None, dram: str | int | None = None, cache: str | int | None = None,
    kv_tokens: int | None = None, bits: str | Bits = "mlp=4,attention=4,lm_head=4,kv_cache=8",
    timing: str = "events", overlap: str = "none", seed: int = 0, bundle: bool = False, packed: bool = False,
    merge: str | int | None = None, gap: str | int | None = "0", prefetch: str | Path | Prefetch | None = None,
    prefetch_parameters: Mapping[str, Any] | None = None, fills: bool = False, engine: str | None = None,
    ignore: str | Sequence[str] = "", kv_window: int | None = None, prefill_chunk: int | None = None,
    prefill: str | None = None, keep_cache: bool = False, lockstep: int = 1, speculate: int = 0,
    accept: str | float | None = None, per_token: bool = False, **parameters: Any,
) -> Result | Results[Result]:  # fmt: skip
    """Replay a trace on a device under a policy, as ``hwsim replay`` does.

    Args:
        trace: open, or its file.
        hw: name or file of a profile, or a profile.
        policy: one, or a list of several.
        density: MLP density, or a file of one for each layer; for those policies that have one.
        eviction: what picks the units that leave a full cache.
        threads: number of worker threads; None: all cores. The result does not depend on it.
        admission: always: what a token needs enters the cache first. bypass: only if the eviction ranks it above
            what is there.
        pin: Units that are in the caches from the start and never leave, as --save-cache.
        warm: What the caches hold when a sequence begins, as --save-cache wrote it.
        lora: LoRA adapter, of `hwsim train lora` or of peft; on wherever a mask is.
        lora_merged: The adapter is merged into the weights: no bytes of its own.
        cache_scope: matrix: each group of each layer has a cache; layer: one for a layer; global: one for all.
        cache_shares: Bytes of the caches: equal, in proportion to Flash traffic under equal shares, to weights of
            groups such as input=2,down=1, or to the traffic of a --json.
        block: Neighbouring rows or columns that are read and cached as one unit.
        layout: Order of the neurons in Flash, from `hwsim fit layout`.
        dram: DRAM for the model: a size (4GB), or a share of its weight bytes (50%), the KV cache on top.
        cache: DRAM for the caches alone; what is pinned lies beside it. Not together with --dram.
        kv_tokens: Tokens that the KV cache is reserved for.
        bits: Bits of a number; also predictor=4, adapter=16, state=16. stored: weights as the files store them.
        timing: The event engine, or the closed form of the paper.
        overlap: What may happen at once. none: nothing; group: Flash and DRAM within a group; pipeline: also
            arithmetic, and what the next layer surely needs; prefetch: also what --prefetch guesses.
        seed: Seed of the policies' random numbers.
        bundle: All slices of a unit lie in one piece of Flash: one read.
        packed: Units lie in Flash without gaps, rather than each on a page of its own.
        merge: Neighbours in Flash become one read of up to this size.
        gap: Holes that --merge reads through; auto: whichever take Flash least, batch by batch.
        prefetch: Guesses what the next layer needs, under --overlap prefetch; `hwsim list prefetches` lists the
            rules.
        prefetch_parameters: Parameters of --prefetch; on the command line --set prefetch.KEY=VALUE.
        fills: What comes from Flash is written to DRAM and read again, beside all other reads.
        engine: Which of the profile's engines reads DRAM, such as cpu.
        ignore: Parts of the profile that are left out: pages, latency, requests, spread, thermal, compute,
            overhead, selection, bookkeeping.
        kv_window: Entries of the KV cache that a token reads and DRAM holds at most.
        prefill_chunk: Tokens of a prompt that go through the model at once.
        prefill: dense: a prompt reads all weights and leaves the caches empty. cached: it goes through the caches.
        keep_cache: Caches keep their content from one sequence to the next, as in a conversation.
        lockstep: Sequences that are decoded together; one that ends leaves, no other joins.
        speculate: Drafted tokens that each step verifies; making them costs nothing here.
        accept: Probability that a draft is accepted, given the ones before it, drawn with --seed; trace: as the
            trace says.
        per_token: Keep every token in the JSON.
        parameters: of the policies, as with ``--set``.

    Returns:
        A result; of a list of policies a list of results.

    Raises:
        HwsimError: something is missing, unknown or impossible; the text is that of the command line.
    """
    settings = Settings(
        admission=admission, pin=pin, warm=warm, lora=lora, lora_merged=lora_merged, cache_scope=cache_scope,
        cache_shares=cache_shares, block=block, layout=layout, dram=dram, cache=cache, kv_tokens=kv_tokens, bits=bits,
        timing=timing, overlap=overlap, seed=seed, bundle=bundle, packed=packed, merge=merge, gap=gap,
        prefetch=prefetch, prefetch_parameters=prefetch_parameters, fills=fills, engine=engine, ignore=ignore,
        kv_window=kv_window, prefill_chunk=prefill_chunk, prefill=prefill, keep_cache=keep_cache, lockstep=lockstep,
        speculate=speculate, accept=accept, per_token=per_token,
    )  # fmt: skip
    asked = Asked(hw, policy, density, eviction, settings, parameters)
    results = replays(trace, asked, threads)
    return results if asked.several else results[0]


@overload
def closed_loop(
    model: str | Path, hw: str | Path | Profile, policy: PolicyLike, *, text: str | Path = ..., tokens: int = ...,
    context: int = ..., prompt: int = ..., density: float | str | Path | None = ...,
    eviction: str | Path | type[Eviction] | Eviction = ..., device: str = ..., dtype: str = ...,
    trust_remote_code: bool = ..., admission: str | None = ..., pin: str | Path | UnitSets | None = ...,
    warm: str | Path | UnitSets | None = ..., lora: str | Path | None = ..., lora_merged: bool = ...,
    cache_scope: str = ..., cache_shares: str | Path | Shares | None = ..., block: int = ...,
    layout: str | Path | Layout | None = ..., dram: str | int | None = ..., cache: str | int | None = ...,
    kv_tokens: int | None = ..., bits: str | Bits = ..., timing: str = ..., overlap: str = ..., seed: int = ...,
    bundle: bool = ..., packed: bool = ..., merge: str | int | None = ..., gap: str | int | None = ...,
    prefetch: str | Path | Prefetch | None = ..., prefetch_parameters: Mapping[str, Any] | None = ...,
    fills: bool = ..., engine: str | None = ..., ignore: str | Sequence[str] = ..., kv_window: int | None = ...,
    prefill_chunk: int | None = ..., prefill: str | None = ..., keep_cache: bool = ..., lockstep: int = ...,
    speculate: int = ..., accept: str | float | None = ..., per_token: bool = ..., **parameters: Any,
) -> Evaluation: ...  # fmt: skip


@overload
def closed_loop(
    model: str | Path, hw: str | Path | Profile, policy: Sequence[PolicyLike], *, text: str | Path = ...,
    tokens: int = ..., context: int = ..., prompt: int = ..., density: float | str | Path | None = ...,
    eviction: str | Path | type[Eviction] | Eviction = ..., device: str = ..., dtype: str = ...,
    trust_remote_code: bool = ..., admission: str | None = ..., pin: str | Path | UnitSets | None = ...,
    warm: str | Path | UnitSets | None = ..., lora: str | Path | None = ..., lora_merged: bool = ...,
    cache_scope: str = ..., cache_shares: str | Path | Shares | None = ..., block: int = ...,
    layout: str | Path | Layout | None = ..., dram: str | int | None = ..., cache: str | int | None = ...,
    kv_tokens: int | None = ..., bits: str | Bits = ..., timing: str = ..., overlap: str = ..., seed: int = ...,
    bundle: bool = ..., packed: bool = ..., merge: str | int | None = ..., gap: str | int | None = ...,
    prefetch: str | Path | Prefetch | None = ..., prefetch_parameters: Mapping[str, Any] | None = ...,
    fills: bool = ..., engine: str | None = ..., ignore: str | Sequence[str] = ..., kv_window: int | None = ...,
    prefill_chunk: int | None = ..., prefill: str | None = ..., keep_cache: bool = ..., lockstep: int = ...,
    speculate: int = ..., accept: str | float | None = ..., per_token: bool = ..., **parameters: Any,
) -> Results[Evaluation]: ...  # fmt: skip


def closed_loop(
    model: str | Path, hw: str | Path | Profile, policy: PolicyLike | Sequence[PolicyLike], *,
    text: str | Path = "persuasion", tokens: int = 2048, context: int = 512, prompt: int = 0,
    density: float | str | Path | None = None, eviction: str | Path | type[Eviction] | Eviction = "lfu",
    device: str = "cpu", dtype: str = "auto", trust_remote_code: bool = False, admission: str | None = None,
    pin: str | Path | UnitSets | None = None, warm: str | Path | UnitSets | None = None,
    lora: str | Path | None = None, lora_merged: bool = False, cache_scope: str = "matrix",
    cache_shares: str | Path | Shares | None = "equal", block: int = 1, layout: str | Path | Layout | None = None,
    dram: str | int | None = None, cache: str | int | None = None, kv_tokens: int | None = None,
    bits: str | Bits = "mlp=4,attention=4,lm_head=4,kv_cache=8", timing: str = "events", overlap: str = "none",
    seed: int = 0, bundle: bool = False, packed: bool = False, merge: str | int | None = None,
    gap: str | int | None = "0", prefetch: str | Path | Prefetch | None = None,
    prefetch_parameters: Mapping[str, Any] | None = None, fills: bool = False, engine: str | None = None,
    ignore: str | Sequence[str] = "", kv_window: int | None = None, prefill_chunk: int | None = None,
    prefill: str | None = None, keep_cache: bool = False, lockstep: int = 1, speculate: int = 0,
    accept: str | float | None = None, per_token: bool = False, **parameters: Any,
) -> Evaluation | Results[Evaluation]:  # fmt: skip
    """Run a model under a policy with the cache in the loop, as ``hwsim eval`` does.

    Args:
        model: a short name, hub id, folder or GGUF file.
        hw: name or file of a profile, or a profile.
        policy: one, or a list of several.
        text: a file, or the name of a bundled text.
        tokens: of the text.
        context: tokens of a window.
        prompt: first tokens of each window that are no part of the decode.
        density: MLP density, or a file of one for each layer; for those policies that have one.
        eviction: what picks the units that leave a full cache.
        device: of torch.
        dtype: of torch, or auto.
        trust_remote_code: whether code that the model brings along may run.
        admission: always: what a token needs enters the cache first. bypass: only if the eviction ranks it above
            what is there.
        pin: Units that are in the caches from the start and never leave, as --save-cache.
        warm: What the caches hold when a sequence begins, as --save-cache wrote it.
        lora: LoRA adapter, of `hwsim train lora` or of peft; on wherever a mask is.
        lora_merged: The adapter is merged into the weights: no bytes of its own.
        cache_scope: matrix: each group of each layer has a cache; layer: one for a layer; global: one for all.
        cache_shares: Bytes of the caches: equal, in proportion to Flash traffic under equal shares, to weights of
            groups such as input=2,down=1, or to the traffic of a --json.
        block: Neighbouring rows or columns that are read and cached as one unit.
        layout: Order of the neurons in Flash, from `hwsim fit layout`.
        dram: DRAM for the model: a size (4GB), or a share of its weight bytes (50%), the KV cache on top.
        cache: DRAM for the caches alone; what is pinned lies beside it. Not together with --dram.
        kv_tokens: Tokens that the KV cache is reserved for.
        bits: Bits of a number; also predictor=4, adapter=16, state=16. stored: weights as the files store them.
        timing: The event engine, or the closed form of the paper.
        overlap: What may happen at once. none: nothing; group: Flash and DRAM within a group; pipeline: also
            arithmetic, and what the next layer surely needs; prefetch: also what --prefetch guesses.
        seed: Seed of the policies' random numbers.
        bundle: All slices of a unit lie in one piece of Flash: one read.
        packed: Units lie in Flash without gaps, rather than each on a page of its own.
        merge: Neighbours in Flash become one read of up to this size.
        gap: Holes that --merge reads through; auto: whichever take Flash least, batch by batch.
        prefetch: Guesses what the next layer needs, under --overlap prefetch; `hwsim list prefetches` lists the
            rules.
        prefetch_parameters: Parameters of --prefetch; on the command line --set prefetch.KEY=VALUE.
        fills: What comes from Flash is written to DRAM and read again, beside all other reads.
        engine: Which of the profile's engines reads DRAM, such as cpu.
        ignore: Parts of the profile that are left out: pages, latency, requests, spread, thermal, compute,
            overhead, selection, bookkeeping.
        kv_window: Entries of the KV cache that a token reads and DRAM holds at most.
        prefill_chunk: Tokens of a prompt that go through the model at once.
        prefill: dense: a prompt reads all weights and leaves the caches empty. cached: it goes through the caches.
        keep_cache: Caches keep their content from one sequence to the next, as in a conversation.
        lockstep: Sequences that are decoded together; one that ends leaves, no other joins.
        speculate: Drafted tokens that each step verifies; making them costs nothing here.
        accept: Probability that a draft is accepted, given the ones before it, drawn with --seed; trace: as the
            trace says.
        per_token: Keep every token in the JSON.
        parameters: of the policies, as with ``--set``.

    Returns:
        A result; of a list of policies a list of results.

    Raises:
        HwsimError: as `replay`; torch and transformers are missing, or the model cannot be had.
    """
    settings = Settings(
        admission=admission, pin=pin, warm=warm, lora=lora, lora_merged=lora_merged, cache_scope=cache_scope,
        cache_shares=cache_shares, block=block, layout=layout, dram=dram, cache=cache, kv_tokens=kv_tokens, bits=bits,
        timing=timing, overlap=overlap, seed=seed, bundle=bundle, packed=packed, merge=merge, gap=gap,
        prefetch=prefetch, prefetch_parameters=prefetch_parameters, fills=fills, engine=engine, ignore=ignore,
        kv_window=kv_window, prefill_chunk=prefill_chunk, prefill=prefill, keep_cache=keep_cache, lockstep=lockstep,
        speculate=speculate, accept=accept, per_token=per_token,
    )  # fmt: skip
    asked = Asked(hw, policy, density, eviction, settings, parameters)
    results = closed_loops(model, text, asked, (tokens, context, prompt, device, dtype, trust_remote_code))
    return results if asked.several else results[0]

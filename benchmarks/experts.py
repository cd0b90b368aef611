"""Caches of experts: whole replays of a router trace as a user runs them, and the cache alone beside plain LRU caches.

    python benchmarks/experts.py WORK

The trace is made up, once, in the folder WORK: 1,000 tokens of Qwen3-30B-A3B's shape (48 layers, 128 experts, 8 used)
whose choice keeps to popular and recent experts.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import OrderedDict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from bench import command, paired
from selection import peer

from hwsim.cache.compiled_events import CompiledEvents
from hwsim.cache.experts import ExpertCache
from hwsim.model.layers import Experts, LayerShape
from hwsim.model.shape import ModelShape
from hwsim.simulation.plugins import EVICTIONS
from hwsim.trace import Sequence, TraceHeader, TraceWriter

LAYERS, EXPERTS, USED, TOKENS = 48, 128, 8, 1000
HIDDEN, WIDTH, HEADS, KV_HEADS, HEAD = 2048, 768, 32, 4, 128
CACHE = 4000 * 2**20
EXPERT = 3 * HIDDEN * WIDTH // 2  # bytes, at 4 bits
RULES = ("lru", "lfu", "belady")


def shape() -> ModelShape:
    """Qwen3-30B-A3B."""
    layer = LayerShape(
        attention="full", kv_elements=2 * KV_HEADS * HEAD, macs_per_entry=2 * HEADS * HEAD, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, head_dim=HEAD, other_parameters=HIDDEN * EXPERTS,
        experts=Experts(count=EXPERTS, used=USED, intermediate_size=WIDTH),
    )  # fmt: skip
    return ModelShape(
        name="Qwen3-30B-A3B", num_hidden_layers=LAYERS, hidden_size=HIDDEN, intermediate_size=0,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=HEAD, vocab_size=151_936,
        layers=(layer,) * LAYERS,
    )  # fmt: skip


def chosen(tokens: int = TOKENS, seed: int = 0) -> np.ndarray:
    """Experts by layer and token, int64 ``[layers, tokens, used]``: popular ones, and those of the token before."""
    rng = np.random.default_rng(seed)
    choice = np.empty((LAYERS, tokens, USED), np.int64)
    for layer in range(LAYERS):
        popularity = rng.permutation(np.log(1 / np.arange(4, EXPERTS + 4)))
        before = np.zeros(EXPERTS)
        for token in range(tokens):
            scores = popularity + before + rng.gumbel(size=EXPERTS)
            choice[layer, token] = np.argsort(-scores)[:USED]
            before *= 0.5
            before[choice[layer, token]] += 1
    return choice


def made(work: Path, tokens: int = TOKENS) -> Path:
    """The trace, as a file."""
    path = work / f"experts-{tokens}.npz"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        header = TraceHeader(
            origin="synthetic", model=shape(), signals=["experts"], sequences=[Sequence(tokens=tokens, prompt=0)]
        )
        with TraceWriter(path, header) as writer:
            for layer, experts in enumerate(chosen(tokens)):
                writer.write(layer, "experts", 0, experts)
            writer.commit(tokens)
            writer.finish()
    return path


def events(choice: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same as events for the compiled loop: units int32, and offsets."""
    layers, tokens, used = choice.shape
    units = choice + np.arange(layers)[:, None, None] * EXPERTS
    units = units.transpose(1, 0, 2).reshape(-1)
    return units.astype(np.int32), np.arange(0, layers * tokens * used + 1, used).astype(np.int64)


def dict_lru(units: list[int], offsets: list[int], room: int) -> int:
    """Hits of an LRU in a dict that admits whole events; all experts have the same size."""
    held: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for start, stop in pairwise(offsets):
        for unit in units[start:stop]:
            if unit in held:
                hits += 1
                held.move_to_end(unit)
            else:
                held[unit] = None
        while len(held) > max(room, stop - start):
            held.popitem(last=False)
    return hits


def alone(work: Path, rounds: int) -> list[dict[str, Any]]:
    """The cache without a replay around it: seconds for all events, by rule."""
    units, offsets = events(chosen())
    size, requests = EXPERT * (CACHE // EXPERT), len(units)
    path = work / "experts.oracleGeneral"
    request_file(units, EXPERT).tofile(path)
    listed, cuts = units.tolist(), offsets.tolist()
    parts = [np.full(EXPERTS, EXPERT, np.int64)] * LAYERS
    plain_events = [(at % LAYERS, units[a:b].astype(np.int64) % EXPERTS) for at, (a, b) in enumerate(pairwise(cuts))]
    rows = []
    for rule in RULES:
        eviction = EVICTIONS.make(rule)[1]
        cache = ExpertCache(parts, size, eviction)
        loop = CompiledEvents(cache)

        def compiled(loop: CompiledEvents = loop) -> int:
            loop.start()
            return int(loop.serve(units, offsets).sum())

        def plain(cache: ExpertCache = cache) -> int:
            cache.start(plain_events if cache.eviction.needs_future else None)
            return sum(cache.serve(cache.parts[part], needed) for part, needed in plain_events)

        works: dict[str, Any] = {"compiled": compiled, "plain": plain, "libCacheSim": peer(path, size, rule)}
        if rule == "lru":
            works["dict"] = lambda: dict_lru(listed, cuts, CACHE // EXPERT)
        answers = {name: works[name]() for name in ("compiled", "plain", "dict") if name in works}
        if len(set(answers.values())) > 1:
            raise SystemExit(f"{rule}: hits differ: {answers}")
        seconds = paired(works, rounds)
        rows.append({"rule": rule, "requests": requests, "hits": answers["compiled"], "s": seconds})
    return rows


def request_file(units: np.ndarray, size: int) -> np.ndarray:
    """Requests in libCacheSim's oracleGeneral format."""
    kind = np.dtype([("time", "<u4"), ("id", "<u8"), ("size", "<u4"), ("next", "<i8")])
    requests = np.zeros(len(units), kind)
    requests["time"], requests["id"], requests["size"] = np.arange(len(units)), units + 1, size
    following: dict[int, int] = {}
    for at in range(len(units) - 1, -1, -1):
        requests["next"][at] = following.get(int(units[at]), -1)
        following[int(units[at])] = at
    return requests


def whole(path: Path, work: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of `hwsim replay` as a process, by rule and scope, with numba and without."""
    blocked = work / "without" / "numba.py"
    blocked.parent.mkdir(exist_ok=True)
    blocked.write_text('raise ImportError("left out for a benchmark")\n')
    found_by_run = {}
    for rule, scope in ((rule, scope) for rule in RULES for scope in ("global", "layer")):
        words = (
            "replay",
            path,
            "--hw",
            "oneplus15r",
            "--policy",
            "router",
            "--cache",
            f"{CACHE}B",
            "--cache-scope",
            scope,
        )
        works = {
            "numba": lambda words=words, rule=rule: command(*words, "--eviction", rule),
            "plain": lambda words=words, rule=rule: command(
                *words, "--eviction", rule, PYTHONPATH=os.pathsep.join([str(blocked.parent), *sys.path])
            ),
        }
        found_by_run[f"{rule}, {scope}"] = paired(works, rounds)
    return found_by_run


def run(work: Path, *, rounds: int = 3) -> dict[str, Any]:
    """Everything of this file."""
    path = made(work)
    return {"alone": alone(work, rounds), "whole": whole(path, work, rounds)}


def show(found: dict[str, Any]) -> str:
    """As tables in Markdown."""
    lines = ["| | compiled | plain Python | dict | libCacheSim |", "| --- | ---: | ---: | ---: | ---: |"]
    for row in found["alone"]:
        seconds, first = row["s"], row["s"]["compiled"]
        cells = [
            f"{seconds[name] / first:.1f} x" if name in seconds else "" for name in ("plain", "dict", "libCacheSim")
        ]
        lines.append(f"| {row['rule']} | {1e9 * first / row['requests']:.0f} ns a request | {' | '.join(cells)} |")
    lines += ["", "`hwsim replay`, whole process:", "", "| | with numba | without |", "| --- | ---: | ---: |"]
    lines += [f"| {name} | {each['numba']:.2f} s | {each['plain']:.2f} s |" for name, each in found["whole"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    result = run(given.work, rounds=given.rounds)
    print(json.dumps(result, indent=2) if given.json else show(result))

"""Masks and caches, decided: hwsim's compiled scan beside its plain one, torch, and libCacheSim, on the same decisions.

    python benchmarks/selection.py

One core. The work is what DIP-CA asks of one layer: score, re-weight by what is cached, take the k best, count hits,
update the cache. `compiled` gets magnitudes as a trace stores them, float16, as hwsim's own policies hand them on;
`float32` is the same scan of a policy's own numbers. `torch` are the rules of the published simulator, written as well
as they can be for a whole model: all layers of a step in one tensor, torch.topk, nothing that waits for a number.
libCacheSim is given the requests that follow, unit after unit, and decides nothing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bench import bandwidth, paired

from hwsim.cache import compiled
from hwsim.cache.cache import Cache
from hwsim.simulation.plugins import EVICTIONS
from hwsim.util import kernels

SHAPES = {"Phi-3-Medium input": 5120, "Phi-3-Medium down": 17920, "SmolLM2 input": 576, "SmolLM2 down": 1536}
KEEP, ROOM, GAMMA = 0.5, 0.6, 0.2  # of the units: a mask, the cache; weight of what is not cached
TOGETHER = 8  # layers that torch decides in one tensor: alone, the cost of a call would count
RULES = {"lru": "last", "lfu": "count"}


def signals(units: int, tokens: int, seed: int = 0) -> np.ndarray:
    """Magnitudes with a heavy tail, float16 as a trace has them; some units are large at most tokens."""
    rng = np.random.default_rng(seed)
    values = np.abs(0.5 * rng.standard_t(3, units) + rng.standard_t(3, (tokens, units)))
    return values.astype(np.float16)


def ours(
    values: np.ndarray, k: int, capacity: int, rule: str, space: compiled.Workspace | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The compiled scan."""
    units, rank = values.shape[1], -1 if rule == "lru" else 0
    cached, ranks = np.zeros(units, bool), np.full(units, rank, np.int32)
    factors = np.full(len(values), GAMMA, np.float32)
    return compiled.serve(values, factors, k, capacity, RULES[rule], cached, ranks, 0, space)  # type: ignore[arg-type]


def plain(values: np.ndarray, k: int, capacity: int, rule: str) -> tuple[np.ndarray, np.ndarray]:
    """Token by token with numpy: what the compiled scan must equal."""
    cache = Cache(values.shape[1], capacity, EVICTIONS.make(rule)[1])
    cache.start()
    masks, hits, gamma = np.empty(values.shape, bool), np.empty(len(values), np.int32), np.float32(GAMMA)
    for token, value in enumerate(values):
        kernels.top_k(np.where(cache.view, value, gamma * value), k, masks[token])
        hits[token] = cache.step(masks[token])[1]
    return masks, hits


def with_torch(values: Any, k: int, capacity: int, rule: str) -> tuple[Any, Any]:
    """The published rules in torch, for layers that are decided together: values ``[tokens, layers, units]``."""
    import torch

    tokens, layers, units = values.shape
    cached = torch.zeros(layers, units, dtype=torch.bool)
    rank = torch.full((layers, units), -1 if rule == "lru" else 0, dtype=torch.int64)
    lower_first = torch.arange(units - 1, -1, -1)  # among equals the lower index stays
    masks, hits = torch.empty(values.shape, dtype=torch.bool), torch.empty(tokens, layers, dtype=torch.int64)
    far = torch.tensor(2**40)
    for token in range(tokens):
        value = values[token]
        best = torch.topk(torch.where(cached, value, GAMMA * value), k, sorted=False).indices
        mask = torch.zeros_like(cached).scatter_(1, best, True)
        masks[token], hits[token] = mask, (mask & cached).sum(1)
        rank = torch.where(mask, token, rank) if rule == "lru" else rank + mask
        worth = rank * units + lower_first
        worth = torch.where(mask, worth + far, torch.where(cached, worth, -1))
        stay = torch.topk(worth, capacity, sorted=False)
        cached = torch.zeros_like(cached).scatter_(1, stay.indices, stay.values >= 0)
    return masks, hits


def check(units: int, k: int, capacity: int, rule: str) -> None:
    """That all decide the same, on scores without ties, which torch breaks as it likes."""
    import torch

    rng = np.random.default_rng(1)
    halves = np.array([rng.choice(np.arange(1, 0x7C00, dtype=np.uint16), units, False) for _ in range(12)])
    values = halves.view(np.float16).astype(np.float32)
    found = ours(halves.view(np.float16), k, capacity, rule)
    twins = [each[:, 0].numpy() for each in with_torch(torch.from_numpy(values)[:, None], k, capacity, rule)]
    others = {"plain": plain(values, k, capacity, rule), "torch": twins, "float32": ours(values, k, capacity, rule)}
    for name, twin in others.items():
        if not all(np.array_equal(a, b) for a, b in zip(found, twin, strict=True)):
            raise SystemExit(f"{name} decides otherwise: {units} units, {rule}")


def stream_file(masks: np.ndarray, path: Path) -> int:
    """The requests of masks as libCacheSim's oracleGeneral file; how many."""
    units = np.nonzero(masks)[1]
    kind = np.dtype([("time", "<u4"), ("id", "<u8"), ("size", "<u4"), ("next", "<i8")])
    requests = np.zeros(len(units), kind)
    requests["time"], requests["id"], requests["size"] = np.arange(len(units)), units + 1, 1
    following = np.full(masks.shape[1], -1, np.int64)
    later = requests["next"]
    for at in range(len(units) - 1, -1, -1):
        later[at] = following[units[at]]
        following[units[at]] = at
    requests.tofile(path)
    return len(units)


def peer(path: Path, capacity: int, rule: str) -> Callable[[], object]:
    """libCacheSim over a file of requests."""
    import libcachesim

    kind = {"lru": libcachesim.LRU, "lfu": libcachesim.LFU, "belady": libcachesim.Belady}[rule]

    def run() -> object:
        reader = libcachesim.TraceReader(str(path), libcachesim.TraceType.ORACLE_GENERAL_TRACE)
        return kind(capacity).process_trace(reader)

    return run


def measure(units: int, tokens: int, rounds: int) -> list[dict[str, Any]]:
    """All rules at one size."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    k, capacity = int(KEEP * units), int(ROOM * units)
    halves = signals(units, tokens)
    values = halves.astype(np.float32)
    tensor = torch.from_numpy(values)[:, None].expand(-1, TOGETHER, -1).contiguous()
    rows = []
    for rule in RULES:
        check(units, k, capacity, rule)
        masks, _ = ours(halves, k, capacity, rule)
        space, other = compiled.Workspace(units), compiled.Workspace(units)  # as the replay keeps one for each cache
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "requests.oracleGeneral"
            requests = stream_file(masks, path)
            works: dict[str, Callable[[], object]] = {
                "compiled": lambda rule=rule, space=space: ours(halves, k, capacity, rule, space),
                "float32": lambda rule=rule, space=other: ours(values, k, capacity, rule, space),
                "plain": lambda rule=rule: plain(values, k, capacity, rule),
                "torch": lambda rule=rule: with_torch(tensor, k, capacity, rule),
                "libCacheSim": peer(path, capacity, rule),
            }
            found = paired(works, rounds, least=0.1)
            found["torch"] /= TOGETHER
        rows.append({
            "units": units, "rule": rule, "tokens": tokens, "requests": requests,
            "us_per_token": {name: each / tokens * 1e6 for name, each in found.items()},
            "accesses_per_s": {name: requests / each for name, each in found.items()},
            "bytes_per_s": halves.nbytes / found["compiled"],
        })  # fmt: skip
    torch.set_num_threads(before)
    return rows


def belady(units: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Belady on fixed masks: hwsim's rule, a mask at a time, beside libCacheSim's."""
    k, capacity = int(KEEP * units), int(ROOM * units)
    masks = compiled.top_k(signals(units, tokens), k)

    def own() -> None:
        cache = Cache(units, capacity, EVICTIONS.make("belady")[1])
        cache.start(masks)
        for mask in masks:
            cache.step(mask)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "requests.oracleGeneral"
        requests = stream_file(masks, path)
        found = paired({"hwsim": own, "libCacheSim": peer(path, capacity, "belady")}, rounds)
    return {
        "units": units,
        "requests": requests,
        "accesses_per_s": {name: requests / each for name, each in found.items()},
    }


def run(rounds: int = 5) -> dict[str, Any]:
    """Everything of this file."""
    block = 2**20  # values that a replay holds at once
    rows = [row for units in SHAPES.values() for row in measure(units, block // units, rounds)]
    return {"bandwidth_bytes_per_s": bandwidth(), "rows": rows, "belady": belady(5120, 100, rounds)}


def show(found: dict[str, Any]) -> str:
    """As a table in Markdown."""
    names = {units: name for name, units in SHAPES.items()}
    lines = [
        "| | rule | compiled, us | float32 | plain numpy | torch | libCacheSim, M/s | compiled | of bandwidth |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in found["rows"]:
        us, rate = row["us_per_token"], row["accesses_per_s"]
        lines.append(
            f"| {names[row['units']]}, {row['units']:,} units | {row['rule']} | {us['compiled']:.2f} "
            f"| {us['float32']:.2f} us "
            f"| {us['plain']:.0f} us, {us['plain'] / us['compiled']:.0f} x | {us['torch']:.0f} us, "
            f"{us['torch'] / us['compiled']:.0f} x | {rate['libCacheSim'] / 1e6:.1f} "
            f"| {rate['compiled'] / 1e6:,.0f}, {rate['compiled'] / rate['libCacheSim']:.0f} x "
            f"| {row['bytes_per_s'] / found['bandwidth_bytes_per_s']:.0%} |"
        )
    rate = found["belady"]["accesses_per_s"]
    lines += ["", (
        f"Belady on fixed masks of {found['belady']['units']:,} units: hwsim {rate['hwsim'] / 1e6:.1f}, libCacheSim "
        f"{rate['libCacheSim'] / 1e6:.1f} million accesses/s, {rate['hwsim'] / rate['libCacheSim']:.1f} x. "
        f"One core reads {found['bandwidth_bytes_per_s'] / 1e9:.1f} GB/s (numpy's sum of 256 MiB)."
    )]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    result = run(given.rounds)
    print(json.dumps(result, indent=2) if given.json else show(result))

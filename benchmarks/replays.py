"""Whole replays as a user runs them: time and memory of the process, and how both grow.

    python benchmarks/replays.py WORK [--large]

Traces are synthetic, made once in the folder WORK: 1,000 tokens of Phi-3-Medium's shape take 1.8 GB, and --large adds
10,000 tokens, 18 GB. A replay runs once before it is measured, so that the trace lies in the system's file cache.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from bench import bandwidth, command, slope

REPLAY = ("--hw", "pixel8", "--dram", "50%")


def made(work: Path, model: str, tokens: int) -> Path:
    """A synthetic trace."""
    path = work / f"{model}-{tokens}.npz"
    if not path.exists():
        print(f"making {path}", file=sys.stderr, flush=True)
        command("synth", "--model", model, "--tokens", tokens, "--signals", "input,glu", "-o", path)
    return path


def replay(path: Path, *more: object, policy: str = "dip-ca", rounds: int = 3, threads: int = 1) -> dict[str, float]:
    """Median time and largest memory of some runs."""
    runs = [
        command("replay", path, *REPLAY, "--policy", policy, "--threads", threads, *more) for _ in range(rounds + 1)
    ][1:]
    return {"s": statistics.median(run[0] for run in runs), "bytes": max(run[1] for run in runs)}


def run(work: Path, *, large: bool = False, rounds: int = 3) -> dict[str, Any]:
    """Everything of this file."""
    work.mkdir(parents=True, exist_ok=True)
    phi = made(work, "phi3-medium", 1000)
    found: dict[str, Any] = {"size": phi.stat().st_size, "bandwidth": bandwidth()}
    found["phi3-medium"] = {
        f"{policy}, {threads} thread{'s' * (threads > 1)}": replay(phi, policy=policy, threads=threads, rounds=rounds)
        for policy in ("dip-ca", "dip")
        for threads in (1, 2)
    }
    sizes = [125, 250, 500, 1000, *([10_000] if large else [])]
    tokens = {each: replay(made(work, "phi3-medium", each), rounds=rounds if each <= 1000 else 1) for each in sizes}
    # a process takes a while to begin; what a token costs is seen beside the smallest run
    least = tokens[sizes[0]]["s"]
    found["tokens"] = {
        "runs": tokens,
        "slope": slope(sizes[1:], [tokens[each]["s"] - least * 0.5 for each in sizes[1:]]),
    }
    found["models"] = {
        name: replay(made(work, name, 250), rounds=rounds) for name in ("phi3-mini", "llama3-8b", "phi3-medium")
    }
    path = made(work, "phi3-medium", 250)
    found["dram"] = {
        share: replay(path, "--dram", share, rounds=rounds) for share in ("40%", "50%", "60%", "80%", "95%")
    }
    names = ["dip-ca", "dip", "magnitude", "oracle"]
    found["policies"] = {
        number: replay(path, policy=",".join(names[:number]), rounds=rounds) for number in range(1, len(names) + 1)
    }
    found["evictions"] = {
        rule: replay(path, "--eviction", rule, policy="dip", rounds=1)
        for rule in ("lru", "lfu", "fifo", "clock", "s3fifo", "sieve", "arc", "random", "belady")
    }
    return found


def show(found: dict[str, Any]) -> str:
    """As tables in Markdown."""

    def row(name: object, each: dict[str, float]) -> str:
        return f"| {name} | {each['s']:.2f} s | {each['bytes'] / 1e6:,.0f} MB |"

    head = ["| | time | peak memory |", "| --- | ---: | ---: |"]
    lines = [
        f"`hwsim replay` of 1,000 tokens of Phi-3-Medium's shape, {found['size'] / 1e9:.2f} GB, whole process:",
        "",
        *head,
    ]
    lines += [row(name, each) for name, each in found["phi3-medium"].items()]
    for title, part in (
        ("DIP-CA, one thread, by tokens", found["tokens"]["runs"]),
        ("by model, 250 tokens", found["models"]),
        ("by `--dram`, 250 tokens", found["dram"]),
        ("by number of policies in one call, 250 tokens", found["policies"]),
        ("DIP by eviction rule, 250 tokens", found["evictions"]),
    ):
        lines += ["", f"{title}:", "", *head, *(row(name, each) for name, each in part.items())]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--large", action="store_true", help="10,000 tokens, too")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    result = run(given.work, large=given.large, rounds=given.rounds)
    print(json.dumps(result, indent=2) if given.json else show(result))

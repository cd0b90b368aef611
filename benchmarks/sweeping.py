"""A sweep of 200 runs of the bundled sample, in one process and in as many as there are cores.

    python benchmarks/sweeping.py

Efficiency is the time of one process / (processes x their time): what starting them, planning and keeping results cost.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from bench import command

GRID = (
    "--trace", "sample", "--hw", "pixel8,iphone16-a18", "--policy", "dip-ca", "--set", "gamma=0.2,0.5",
    "--density", ",".join(f"{0.4 + number / 100:.2f}" for number in range(25)), "--dram", "50%,70%",
)  # fmt: skip


def run() -> dict[str, Any]:
    """The whole command, each time into a store of its own; then once more, with nothing left to run."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    times: dict[str, list[float]] = {"1": [], str(cores): []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(2):
            for jobs, each in times.items():
                store = Path(folder) / f"{jobs}-{number}.db"
                each.append(command("sweep", *GRID, "--jobs", jobs, "--store", store)[0])
        again = command("sweep", *GRID, "--store", Path(folder) / "1-0.db")[0]
    best = {jobs: min(each) for jobs, each in times.items()}
    return {
        "runs": 200, "cores": cores, "s": best, "again_s": again,
        "efficiency": best["1"] / (cores * best[str(cores)]),
    }  # fmt: skip


def show(found: dict[str, Any]) -> str:
    """As a sentence."""
    one, many = found["s"]["1"], found["s"][str(found["cores"])]
    return (
        f"{found['runs']} runs: {one:.1f} s in one process, {many:.1f} s in {found['cores']}, efficiency "
        f"{100 * found['efficiency']:.0f} %; the same command again, with all of them stored: {found['again_s']:.2f} s."
    )


if __name__ == "__main__":
    print(show(run()))

"""What all benchmarks share: paired timing, the machine, the peak of memory."""

from __future__ import annotations

import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent


def paired(works: dict[str, Callable[[], object]], rounds: int, *, least: float = 0) -> dict[str, float]:
    """Median wall time of each work in seconds; they alternate, so that a machine that slows down meets all of them.

    Args:
        works: by name.
        rounds: how often each is timed.
        least: seconds: what takes less is done so often in a row, and each counts as the mean. What is short is timed
            as a part of much of the same, as it is in use, and not while the processor turns to it.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():  # the first time is another thing: code is loaded, memory is got
        work()
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(mean_seconds(work, least))
    return {name: statistics.median(each) for name, each in times.items()}


def seconds(work: Callable[[], object]) -> float:
    """Wall time of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def mean_seconds(work: Callable[[], object], least: float) -> float:
    """Wall time of a call, the mean of as many as take `least` seconds."""
    count, start = 0, time.perf_counter()
    while True:
        work()
        count += 1
        if (passed := time.perf_counter() - start) >= least:
            return passed / count


_LAUNCH = """
import os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(time.perf_counter() - start, usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def command(*arguments: object, **environment: str) -> tuple[float, int]:
    """Run `hwsim` as a process: wall time in seconds, peak resident memory in bytes.

    A small process of its own starts it: Linux counts the memory of whoever starts a process in that process's peak.
    """
    words = [sys.executable, "-c", "from hwsim.cli import main; main()", *map(str, arguments)]
    done = subprocess.run(
        [sys.executable, "-S", "-c", _LAUNCH, *words], capture_output=True, text=True, env=os.environ | environment,
        cwd=ROOT, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"hwsim {' '.join(map(str, arguments))}: {done.stderr}")
    wall, peak = done.stdout.split()
    return float(wall), int(peak) * (1 if sys.platform == "darwin" else 1024)


def slope(sizes: list[float], times: list[float]) -> float:
    """Of log time against log size: 1 is linear."""
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def bandwidth(rounds: int = 5) -> float:
    """Bytes a second that one core reads from memory: numpy's sum of 256 MiB of float32, the best of some rounds."""
    values = np.ones(2**26, np.float32)
    return values.nbytes / min(seconds(values.sum) for _ in range(rounds))


def machine() -> dict[str, Any]:
    """What the figures are of."""
    import numba

    processor = platform.processor() or platform.machine()
    described = Path("/proc/cpuinfo")
    if described.exists():
        names = [line.partition(":")[2].strip() for line in described.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "numba": numba.__version__,
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
    }


def peak_memory() -> int:
    """Peak resident memory of this process, bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)

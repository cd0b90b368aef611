"""What a policy's pass of the closed loop costs beside a dense forward pass of the same tokens, in one run.

    python benchmarks/closed_loop.py --model smollm2-135m --tokens 4096

Loading and scoring are apart. Windows alternate between the dense pass and those of the policies, so that a machine
that gets slower or faster meets all of them; figures are medians over the windows, ratios are to the dense median.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from hwsim.cache import compiled
from hwsim.closed_loop.masking import ClosedLoop
from hwsim.device.profile import load_profile
from hwsim.masking.streams import worth_compiling
from hwsim.record import Settings as TextSettings
from hwsim.record.prepare import prepare
from hwsim.record.runner import Runner
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.simulation.run import Conditions, Source
from hwsim.simulation.settings import Settings


def seconds(work: Callable[[], object]) -> float:
    """Wall time of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Time every window under every policy."""
    reading = TextSettings(given.tokens, given.context, 0, None, given.device, given.dtype)
    ready = prepare(given.model, given.text, reading, lambda *_: None)
    header, loaded = ready.header, ready.load(lambda *_: None)
    conditions = Conditions(load_profile(given.hw), EVICTIONS.make(given.eviction)[1], Settings(dram=given.dram))
    loops: dict[str, ClosedLoop | None] = {"dense": None}
    for name in given.policy.split(","):
        policy = POLICIES.make(name, {"density": given.density})[1]
        masking = conditions.run(Source(header, {}), policy, name).masking
        fast = worth_compiling(given.tokens * len(list(masking.plans)))  # as `hwsim eval` decides it
        loops[name] = ClosedLoop(loaded.layers, masking, fast=fast)
    runner = Runner(loaded.model, ready.libraries)
    windows = ready.ids[: len(ready.ids) // given.context * given.context].reshape(-1, given.context)
    times: dict[str, list[float]] = {name: [] for name in loops}
    runner.hidden(windows[:1])  # the first pass sets things up
    for number in range(len(windows)):
        for name, loop in loops.items():
            if loop is not None:
                loop.window([header.sequences[number]], number)

            def work(loop: ClosedLoop | None = loop, number: int = number) -> None:
                with loop or nullcontext():
                    runner.hidden(windows[number : number + 1])

            times[name].append(seconds(work))
    median = {name: statistics.median(each) for name, each in times.items()}
    return {
        "model": given.model, "windows": len(windows), "context": given.context, "density": given.density,
        "eviction": given.eviction, "dram": given.dram, "cores": os.cpu_count(),
        "threads": ready.libraries.torch.get_num_threads(), "machine": platform.machine(),
        "torch": str(ready.libraries.torch.__version__), "compiled": compiled.available(),
        "passes": {
            name: {"median_s": each, "tokens_per_s": given.context / each, "ratio": each / median["dense"]}
            for name, each in median.items()
        },
    }  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--model", default="smollm2-135m")
    options.add_argument("--text", default="persuasion")
    options.add_argument("--tokens", type=int, default=4096)
    options.add_argument("--context", type=int, default=512)
    options.add_argument("--policy", default="dip,dip-ca")
    options.add_argument("--density", type=float, default=0.5)
    options.add_argument("--eviction", default="lfu")
    options.add_argument("--hw", default="iphone16-a18")
    options.add_argument("--dram", default="50%")
    options.add_argument("--device", default="cpu")
    options.add_argument("--dtype", default="auto")
    options.add_argument("--json", action="store_true")
    return options


def main() -> None:
    """Measure and print."""
    given = parser().parse_args()
    found = measure(given)
    if given.json:
        print(json.dumps(found, indent=2))
        return
    print(f"{found['model']}, {found['windows']} windows of {found['context']} tokens, density {found['density']},")
    print(f"{found['eviction']}, DRAM {found['dram']}; {found['threads']} threads on {found['cores']} cores")
    print(f"{'pass':<12}{'median':>10}{'tokens/s':>12}{'to dense':>12}")
    for name, each in found["passes"].items():
        print(f"{name:<12}{each['median_s']:>8.2f} s{each['tokens_per_s']:>12.0f}{each['ratio']:>10.2f} x")


if __name__ == "__main__":
    main()

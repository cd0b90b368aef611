"""How far do closed loops agree whose weights differ by rounding? SmolLM2, each weight changed by some 1e-6 of itself.

    python experiments/results/rounding.py [TOKENS]

That changes sums of some thousand float32 products about as much as another order of their terms does: another
processor, a GPU, another library. Prints a table of Markdown: perplexity of dense and masked models, unchanged, and the
mean and the standard deviation (n - 1) of three changed ones.
"""

from __future__ import annotations

import statistics
import sys
from typing import Any

import torch

from hwsim.closed_loop import Candidate
from hwsim.closed_loop.evaluation import Loops
from hwsim.device.profile import load_profile
from hwsim.record import Settings as Reading
from hwsim.record import prepare
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.simulation.run import Conditions
from hwsim.simulation.settings import Settings

CHANGE, SEEDS = 1e-6, (1, 2, 3)
CASES = [(name, density) for name in ("dip", "dip-ca") for density in (0.5, 0.8)]


def perplexities(tokens: int, seed: int | None) -> list[float]:
    """Of the dense model and of each case, with weights changed by the noise of a seed."""
    load = prepare.load_model

    def changed(*given: Any) -> Any:
        loaded = load(*given)
        noise = torch.Generator().manual_seed(seed or 0)
        with torch.no_grad():
            for weight in loaded.model.parameters():
                if seed is not None and weight.ndim == 2:
                    weight.mul_(1 + CHANGE * torch.randn(weight.shape, generator=noise))
        return loaded

    prepare.load_model = changed
    try:
        reading = Reading(tokens, min(512, tokens // 2), dtype="float32")
        conditions = Conditions(load_profile("pixel8"), EVICTIONS.make("lfu")[1], Settings(dram="70%"))
        with Loops("smollm2-135m", "persuasion", reading, keep_dense=True) as loops:
            found = []
            for name, density in CASES:
                candidate = Candidate(name, POLICIES.make(name, {"density": density})[1])
                (one,) = loops.run(conditions, [candidate])
                found += [one.perplexity] if found else [one.dense_perplexity, one.perplexity]
            return found
    finally:
        prepare.load_model = load


def main() -> int:
    """Print the table."""
    tokens = int(sys.argv[1]) if len(sys.argv) > 1 else 2048
    plain, *others = (perplexities(tokens, seed) for seed in (None, *SEEDS))
    print(f"| {tokens} tokens | unchanged | changed, mean | standard deviation |\n|---|---:|---:|---:|")
    for at, name in enumerate(["dense", *(f"{name}, density {density}" for name, density in CASES)]):
        values = [other[at] for other in others]
        mean, spread = statistics.mean(values), statistics.stdev(values)
        row = f"| {name} | {plain[at]:.4f} | {mean:.4f} | {spread:.4f} ({100 * spread / mean:.2f} %) |"
        print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

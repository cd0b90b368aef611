"""What does an order of the neurons by co-activation give? Energy of |glu| that whole blocks of columns capture.

    python experiments/results/neuron_layout.py [TRACE]

Orders are made from the first half of a trace's tokens and judged on the second: in the model's own order, by
popularity alone, and by the chain of `hwsim fit layout`. The control shuffles each neuron's tokens on their own: every
neuron keeps how often it is active, and none is active together with another but by chance. What the chain gives there,
and what popularity alone gives, is no co-activation.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from hwsim.analysis.coactivation import chain, pack
from hwsim.memory.neuron_order import Blocks
from hwsim.trace import Trace
from hwsim.trace.synth import bundled
from hwsim.util.kernels import top_k

KEEP, BLOCKS = 0.5, (4, 16, 64)


def captured(glu: np.ndarray, order: np.ndarray, block: int) -> float:
    """Share of the sum of squares of float32 ``[tokens, neurons]`` that the best blocks hold, mean over tokens."""
    blocks, mask = Blocks(glu.shape[1], block, order), np.empty(glu.shape[1], bool)
    k, shares = max(1, int(KEEP * blocks.units + 1e-9)), []
    for row in glu:
        blocks.expand(top_k(blocks.sums(np.abs(row)), k), mask)
        shares.append(float(np.square(row[mask]).sum() / np.square(row).sum()))
    return float(np.mean(shares))


def orders(glu: np.ndarray) -> dict[str, np.ndarray]:
    """Orders made from float32 ``[tokens, neurons]``."""
    active = np.stack([top_k(np.abs(row), len(row) // 2) for row in glu])
    popular = np.argsort(-active.sum(axis=0), kind="stable")
    return {"own": np.arange(glu.shape[1]), "popularity": popular, "chain": chain(pack(active))}


def main(path: Path) -> None:
    """Print the table."""
    rng = np.random.default_rng(0)
    found: dict[tuple[str, str, int], list[float]] = {}
    with Trace(path) as trace:
        for layer in range(trace.model.num_hidden_layers):
            recorded = trace.read(layer, "glu")
            for name, glu in (("recorded", recorded), ("control", rng.permuted(recorded, axis=0))):
                half = len(glu) // 2
                for order, places in orders(glu[:half]).items():
                    for block in BLOCKS:
                        found.setdefault((name, order, block), []).append(captured(glu[half:], places, block))
    print("energy of |glu| held at keep", KEEP, "by blocks of", *BLOCKS)
    for name in ("recorded", "control"):
        for order in ("own", "popularity", "chain"):
            print(f"{name:10} {order:12}", *(f"{np.mean(found[name, order, block]):.4f}" for block in BLOCKS))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else bundled())

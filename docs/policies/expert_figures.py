"""The figures of the policies for experts, on routing that is made up: python docs/policies/expert_figures.py.

Needs matplotlib. The recorded sample has no experts. Here 4 layers of 128 experts, of which a token uses 8, are chosen
for 600 tokens by logits that drift: popularity of each expert, a slow part and a fast part. Each layer has an LRU cache
for 32 experts. Shares of reads and weights are sums over tokens and layers; weights are softmax probabilities.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

from hwsim.cache.cache import Cache
from hwsim.evictions.lru import Lru
from hwsim.masking.context import ScanContext
from hwsim.masking.counts import Served
from hwsim.masking.observers import Observer
from hwsim.masking.step_scan import scan_steps
from hwsim.masking.streams import Masking
from hwsim.memory.groups import Place
from hwsim.memory.planning import plan_layers
from hwsim.model.layers import Experts, LayerShape
from hwsim.model.shape import ModelShape
from hwsim.policy import Policy
from hwsim.simulation.plugins import POLICIES
from hwsim.testing import SMALL_SPARSE_MODEL, RandomSignals
from hwsim.trace import Sequence
from hwsim.trace.sequences import Sequences
from hwsim.trace.steps import Steps

HERE = Path(__file__).parent
LAYERS, TOKENS, EXPERTS, USED, CACHED = 4, 600, 128, 8, 32
VARIED: dict[str, list[dict[str, Any]]] = {
    "router": [{}],
    "router-k": [{"k": k} for k in (8, 7, 6, 5, 4, 3, 2, 1)],
    "drop-cold": [{"factor": factor} for factor in (0, 0.25, 0.5, 0.75, 1, 1.5, 2)],
    "cache-prior": [{"bonus": bonus} for bonus in (0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1)],
    "max-rank": [{"max_rank": rank} for rank in (8, 10, 12, 16, 24, 32, 64)],
    "cumulative": [{"mass": mass} for mass in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)],
}


class Point(NamedTuple):
    """One run: the share of the router's reads that are avoided, and of its weights that are given up."""

    avoided: float
    lost: float


def shape() -> ModelShape:
    """A layer of experts."""
    layer = LayerShape(
        num_attention_heads=2, num_key_value_heads=2, head_dim=4, attention="full", kv_elements=16, macs_per_entry=16,
        experts=Experts(count=EXPERTS, used=USED, intermediate_size=4),
    )  # fmt: skip
    whole = ModelShape(
        name="made up", num_hidden_layers=1, hidden_size=8, intermediate_size=0, num_attention_heads=2,
        num_key_value_heads=2, head_dim=4, vocab_size=10, layers=(layer,),
    )  # fmt: skip
    view = whole.at(0)
    assert view is not None
    return view


def logits_of(layer: int) -> np.ndarray:
    """Logits of a layer's router: float32 ``[tokens, experts]``."""
    rng = np.random.default_rng(layer)
    slow = rng.normal(size=(TOKENS, EXPERTS))
    for token in range(1, TOKENS):
        slow[token] = 0.9 * slow[token - 1] + np.sqrt(1 - 0.9**2) * slow[token]
    fast = rng.normal(size=(TOKENS, EXPERTS))
    return (0.8 * rng.normal(size=EXPERTS) + 1.2 * slow + 0.7 * fast).astype(np.float32)


def run(policy: Policy) -> tuple[int, float]:
    """Reads of experts, and the sum of their weights in the router's softmax."""
    model, reads, kept = shape(), 0, 0.0
    (group,) = policy.groups(model)
    for layer in range(LAYERS):
        cache = Cache(EXPERTS, CACHED, Lru())
        cache.start()
        ctx = ScanContext(model, group, layer, EXPERTS, 0, np.random.default_rng(0))
        ctx.begin(np.random.default_rng(0), cache.view)
        for logits in logits_of(layer):
            chosen = np.argsort(-logits, kind="stable")[:USED]
            powers = np.exp(logits - logits.max())
            shares = powers / powers[chosen].sum()  # of the router's own choice the sum is 1
            ctx.token += 1
            ctx.signals = {"router": logits, "experts": chosen, "expert_weights": shares[chosen]}
            mask = policy.select(ctx)
            assert mask is not None
            kept += float(shares[mask].sum())
            needed, hits = cache.step(mask)
            reads += needed - hits
    return reads, kept


def curve(name: str, whole: int) -> list[Point]:
    """The points of one policy; `whole` are the reads of the router."""
    points = []
    for parameters in VARIED[name]:
        reads, kept = run(POLICIES.make(name, parameters)[1])
        points.append(Point(1 - reads / whole, 1 - kept / (LAYERS * TOKENS)))
        print(f"{name:12} {parameters} avoided {points[-1].avoided:.1%} weight lost {points[-1].lost:.1%}", flush=True)
    return points


def draw(name: str, found: dict[str, list[Point]]) -> None:
    """One policy in colour, router-k in grey."""
    figure, axes = plt.subplots(figsize=(4.8, 3), layout="constrained")
    styles: dict[str, dict[str, Any]] = {"router-k": {"c": "0.6", "ls": "--"}}
    styles[name] = {"c": "C0", "marker": "o", "ms": 4}
    for other, style in styles.items():
        points = found[other]
        axes.plot([100 * p.avoided for p in points], [100 * p.lost for p in points], label=other, **style)
    axes.set(
        xlabel="reads avoided, % of the router's", ylabel="weight given up, %", xlim=(-5, 100), ylim=(-2, 60),
        title="made-up routing",
    )  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    figure.savefig(HERE / f"{name}.svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)


def inside() -> list[tuple[float, float, float]]:
    """dip-experts on made-up signals: density, share of the chosen experts' |glu|^2 that it holds, hit rate of LRU.

    The caches hold half of the experts' bytes.
    """
    points = []
    source = RandomSignals(SMALL_SPARSE_MODEL, 200)
    for density in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        policy = POLICIES.make("dip-experts", {"density": density})[1]
        plans = plan_layers([policy.groups(SMALL_SPARSE_MODEL)], SMALL_SPARSE_MODEL)
        plans = plans.with_capacities(plan.units // 2 for plan in plans)
        masking = Masking(SMALL_SPARSE_MODEL, policy, plans, Lru())
        sequences = Sequences([Sequence(tokens=200)])
        held = _Held(source)
        counts = scan_steps(source, sequences, Steps.of(sequences), masking, observers=[held])
        points.append((density, held.kept / held.whole, counts.hits.sum() / counts.requests.sum()))
        print(f"dip-experts  density {density} |glu|^2 {points[-1][1]:.1%} hits {points[-1][2]:.1%}", flush=True)
    return points


class _Held(Observer):
    """Sums |glu|^2 of the chosen experts, and what the masks of down hold of it."""

    def __init__(self, source: RandomSignals) -> None:
        self._source, self.kept, self.whole = source, 0.0, 0.0

    def masks(self, place: Place, token: int, served: Served) -> None:
        """Add one token."""
        if place.plan.name == "down":
            chosen = self._source.read(place.layer, "experts", token, token + 1)[0]
            glu = self._source.read(place.layer, "expert_glu", token, token + 1).reshape(len(chosen), -1)
            mask = served.units[0].reshape(-1, glu.shape[1])
            for expert, values in zip(chosen, glu, strict=True):
                if expert >= 0:
                    self.kept += float((values[mask[expert]] ** 2).sum())
                    self.whole += float((values**2).sum())


def draw_inside(points: list[tuple[float, float, float]]) -> None:
    """The figure of dip-experts."""
    figure, axes = plt.subplots(figsize=(4.8, 3), layout="constrained")
    density, kept, hits = zip(*points, strict=True)
    axes.plot(density, [100 * share for share in kept], marker="o", ms=4, label="dip-experts: |glu|² held")
    axes.plot(density, [100 * share for share in hits], c="0.6", ls="--", label="hit rate, LRU, half of the experts")
    axes.set(xlabel="density of a chosen expert", ylabel="%", ylim=(0, 105), title="made-up signals")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(HERE / "dip-experts.svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)


def main() -> None:
    """Draw them, and print every point."""
    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": "hwsim", "svg.fonttype": "none", "font.size": 9}
    whole, _ = run(POLICIES.make("router")[1])
    print(f"router: {1 - whole / (LAYERS * TOKENS * USED):.1%} of its experts are cached")
    found = {name: curve(name, whole) for name in VARIED}
    for name in found:
        draw(name, found)
    draw_inside(inside())


if __name__ == "__main__":
    main()

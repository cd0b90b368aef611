"""Time of a plug-in compared with the plain path: information for its author, never a verdict.

A replay does not add this to a token's time. It shows how long a replay takes, and hints at what deciding might cost on
a device.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hwsim.cache.cache import Cache
from hwsim.errors import HwsimError
from hwsim.evictions import Eviction
from hwsim.evictions.lru import Lru
from hwsim.masking.streams import Masking, signal_blocks
from hwsim.memory.groups import Place
from hwsim.model.layers import Experts
from hwsim.model.shape import ModelShape
from hwsim.policy import Policy
from hwsim.testing.drive import SMALL_SPARSE_MODEL, RandomSignals, for_experts
from hwsim.testing.policies import masking_of
from hwsim.util.kernels import read_only, top_k

# the size of a layer of Llama-3.2-1B
_LAYER = ModelShape(
    name="layer",
    num_hidden_layers=1,
    hidden_size=2048,
    intermediate_size=8192,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=64,
    vocab_size=100,
)
_SPARSE_LAYER = _LAYER.model_copy(
    update={"layers": (SMALL_SPARSE_MODEL.layers[0].model_copy(update={"experts": Experts(
        count=128, used=8, intermediate_size=768
    )}),)}
)  # fmt: skip
_TOKENS, _ROUNDS = 12, 5


@dataclass(frozen=True)
class Speed:
    """Seconds of one token in one layer.

    Attributes:
        seconds: seconds of the plug-in.
        plain: seconds of the plain path: top-k of magnitudes for a policy, LRU for an eviction rule.
        units: units that were decided.
    """

    seconds: float
    plain: float
    units: int

    @property
    def ratio(self) -> float:
        """Time of the plug-in divided by that of the plain path."""
        return self.seconds / self.plain


def policy_speed(policy: Policy, model: ModelShape | None = None) -> Speed | None:
    """Time of deciding all masks of a layer, compared with the top k of |v| for the same groups.

    Args:
        policy: an instance that keeps the contract.
        model: model whose first layer is decided; None: widths 2048 and 8192, with a gate, or 128 experts for a policy
            that decides them.

    Returns:
        The best of five rounds; None if the policy has no groups or refuses the model.
    """
    model = model or (_SPARSE_LAYER if for_experts(policy) else _LAYER)
    try:
        masking = masking_of(policy, model)
        if not masking.plans:
            return None
        plans = masking.plans[0]
        rounds = [_deciding(masking, place) for place in masking.plans.places([0])]
        seconds = sum(_best(run) for run in rounds)
        plain = sum(_best(_plain(plan.units, run())) for plan, run in zip(plans, rounds, strict=True))
    except HwsimError:
        return None
    return Speed(seconds, plain, sum(plan.units for plan in plans))


def _deciding(masking: Masking, place: Place) -> Callable[[], int]:
    """One round: decide all masks of one sequence with every other unit cached, and return the last mask's size."""
    decider, plan = masking.decider(place), place.plan
    cached = read_only(np.arange(plan.units) % 2 == 0)
    blocks = signal_blocks(RandomSignals(masking.model, _TOKENS), plan, range(_TOKENS))
    tokens = [row for block in blocks for row in block.rows()]

    def run() -> int:
        decider.begin(0, cached)
        return int(np.count_nonzero([decider.decide(signals) for signals in tokens][-1]))

    return run


def _plain(units: int, k: int) -> Callable[[], None]:
    """One round of the plain path: masks of the same size."""
    values = np.random.default_rng(0).standard_t(4, (_TOKENS, units)).astype(np.float32)
    out = np.empty(units, bool)

    def run() -> None:
        for row in values:
            top_k(np.abs(row), k, out)

    return run


def eviction_speed(eviction: Eviction, units: int = 8192) -> Speed:
    """Time of serving masks of a third of `units` from a cache that holds half of them, compared with LRU."""
    masks = np.random.default_rng(0).random((_TOKENS, units)) < 1 / 3

    def serve(rule: Eviction) -> Callable[[], None]:
        def run() -> None:
            cache = Cache(units, units // 2, rule)
            cache.start(masks if rule.needs_future else None)
            for mask in masks:
                cache.step(mask)

        return run

    return Speed(_best(serve(eviction)), _best(serve(Lru())), units)


def _best(run: Callable[[], object]) -> float:
    """Seconds of one token: the best of several rounds, to reduce the influence of other work on the machine."""
    times = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times) / _TOKENS

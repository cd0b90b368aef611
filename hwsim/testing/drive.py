"""Test material for plug-ins: a small model, random signals, and `decide`, the masks of a policy for your signals."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hwsim.errors import ContractError
from hwsim.evictions.lru import Lru
from hwsim.masking.counts import Served
from hwsim.masking.observers import Observer
from hwsim.masking.scan import scan
from hwsim.masking.streams import Masking
from hwsim.memory.groups import Place
from hwsim.memory.planning import plan_layers
from hwsim.model.layers import Experts, LayerShape
from hwsim.model.shape import EXPERT_SIGNALS, NORMS, ModelShape
from hwsim.policy import Policy
from hwsim.trace.header import Sequence
from hwsim.trace.sequences import Sequences

SMALL_MODEL = ModelShape(
    name="small",
    num_hidden_layers=3,
    hidden_size=48,
    intermediate_size=120,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=12,
    vocab_size=100,
)
_ATTENTION = LayerShape(
    num_attention_heads=4, num_key_value_heads=2, head_dim=12, attention="full", kv_elements=48, macs_per_entry=96
)
_SPARSE = _ATTENTION.model_copy(update={"experts": Experts(count=24, used=4, intermediate_size=20)})
_DENSE = _ATTENTION.model_copy(update={"intermediate_size": SMALL_MODEL.intermediate_size})

SMALL_SPARSE_MODEL = SMALL_MODEL.model_copy(update={"name": "small-sparse", "layers": (_SPARSE, _DENSE, _SPARSE)})
"""Layers of 24 experts, of which a token uses 4, and between them a dense layer."""


def for_experts(policy: Policy) -> bool:
    """Whether a policy decides which experts are read, by its groups for small models with and without experts."""
    for model in (SMALL_SPARSE_MODEL.at(0), SMALL_MODEL):
        try:
            if any(group.axis == "expert" for group in policy.groups(model or SMALL_MODEL)):
                return True
        except (Exception, SystemExit):  # whatever a policy for the other kind of model makes of this one
            continue
    return False


class RandomSignals:
    """Heavy-tailed random signals that are correlated in time; the same seed gives the same signals.

    Routers choose the experts of largest logits; one token in five uses one expert less.
    """

    def __init__(self, model: ModelShape, tokens: int, seed: int = 0) -> None:
        self._model, self._tokens, self._seed = model, tokens, seed

    def read(self, layer: int, signal: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Values of a signal, float32 ``[stop - start, width]``; ``experts``: int64, -1 where there are fewer."""
        if signal == "glu" and self._model.gated:
            return self.read(layer, "up", start, stop) * self.read(layer, "gate", start, stop)
        if signal in EXPERT_SIGNALS[:3]:
            return self._routing(layer)[signal][start:stop]
        rng = np.random.default_rng([self._seed, layer, *signal.encode()])
        width = self._model.signal_width(signal, layer)
        worth = np.exp(rng.normal(size=width))
        noise = rng.standard_t(4, size=(self._tokens, width))
        for token in range(1, self._tokens):
            noise[token] = 0.7 * noise[token - 1] + 0.7 * noise[token]
        return (worth * noise)[start:stop].astype(np.float32)

    def _routing(self, layer: int) -> dict[str, np.ndarray]:
        """Logits of a layer's router, the experts that it chooses, and their softmax weights."""
        experts = self._model.by_layer[layer].experts
        assert experts is not None
        rng = np.random.default_rng([self._seed, layer, *b"router"])
        logits = rng.normal(size=(self._tokens, experts.count))
        for token in range(1, self._tokens):
            logits[token] = 0.8 * logits[token - 1] + 0.6 * logits[token]
        logits = (logits + rng.normal(size=experts.count)).astype(np.float32)
        chosen = np.argsort(-logits, axis=1, kind="stable")[:, : experts.used].astype(np.int64)
        if experts.used > 1:
            chosen[::5, -1] = -1
        weights = np.where(chosen >= 0, np.exp(np.take_along_axis(logits, chosen, axis=1)), 0)
        weights /= weights.sum(axis=1, keepdims=True)
        return {"router": logits, "experts": chosen, "expert_weights": weights.astype(np.float32)}

    def norm(self, layer: int, name: str) -> np.ndarray:
        """Values of a norm, float32 ``[units]``."""
        rng = np.random.default_rng([self._seed, layer, *name.encode()])
        return np.exp(rng.normal(size=self._model.signal_width(name))).astype(np.float32)


def decide(
    policy: Policy, signals: Mapping[str, np.ndarray], model: ModelShape, *, capacity: float = 0.0, seed: int = 0
) -> dict[str, np.ndarray]:
    """Return the masks that a policy decides in the first layer for one sequence of signals.

    Args:
        policy: an instance.
        signals: what its groups need: signals ``[tokens, width]``, norms ``[units]``; the widths must fit the model.
            ``experts`` may hold -1 at the end of a row.
        model: shape of the model; ``SMALL_MODEL`` with other sizes fits any signals, ``SMALL_SPARSE_MODEL`` has
            experts.
        capacity: share of each group's units that an LRU cache holds, 0 to 1.
        seed: seed of the random numbers that the policy may draw.

    Returns:
        The masks of each group by name, bool ``[tokens, units]``.

    Raises:
        ContractError: the policy breaks its contract, or needs a signal that is not given.
    """
    plans = plan_layers([policy.groups(model)], model)
    plans = plans.with_capacities(int(capacity * plan.units + 1e-9) for plan in plans)
    tokens = next(len(values) for name, values in signals.items() if name not in NORMS)
    masking = Masking(model, policy, plans, Lru(), name=type(policy).__name__, seed=seed)
    kept = MaskCollector()
    scan(_Given(signals), Sequences([Sequence(tokens=tokens)]), masking, layers=[0], observers=[kept])
    return {group: masks for (_, group), masks in kept.masks_of.items()}


class MaskCollector(Observer):
    """Keeps all masks of a run.

    Attributes:
        masks_of: masks by layer and group, bool ``[tokens, indices]``.
    """

    def __init__(self) -> None:
        self._parts: dict[tuple[int, str], list[np.ndarray]] = {}

    def masks(self, place: Place, token: int, served: Served) -> None:
        """Keep the masks that were served."""
        self._parts.setdefault((place.layer, place.plan.name), []).append(served.masks.copy())

    @property
    def masks_of(self) -> dict[tuple[int, str], np.ndarray]:
        """The masks by layer and group."""
        return {key: np.concatenate(parts) for key, parts in self._parts.items()}


class _Given:
    """The same signals in every layer."""

    def __init__(self, signals: Mapping[str, np.ndarray]) -> None:
        self._signals = signals

    def read(self, layer: int, signal: str, start: int, stop: int) -> np.ndarray:
        """float32 ``[stop - start, width]``; ``experts``: int64."""
        kind = np.int64 if signal == "experts" else np.float32
        return np.ascontiguousarray(self._given(signal)[start:stop], kind)

    def norm(self, layer: int, name: str) -> np.ndarray:
        """float32 ``[units]``."""
        return np.ascontiguousarray(self._given(name), np.float32)

    def _given(self, name: str) -> np.ndarray:
        if name not in self._signals:
            known = ", ".join(self._signals)
            raise ContractError(f"the policy needs the signal {name!r}, the test gives {known}; give it, too")
        return np.asarray(self._signals[name])

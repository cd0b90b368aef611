"""How weights of chosen experts follow from the logits of the router, so that a policy may choose other experts.

A rule is a score of each expert (softmax over all, or sigmoid), divided by the sum of those that are chosen or not,
times a scale: one number, or one for each expert. Softmax over the chosen alone is softmax over all, divided by that
sum. Corrections that only change which experts are chosen, such as biases and groups, are no part of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

_CLOSE = 1e-2  # relative: ample for weights in bfloat16
_RIVAL = 5, 1e-5  # a rule whose difference is larger than so many times the smallest, and than this, does not fit
_AGREE = 2e-2  # two rules that differ by less are the same
_SMALL = 1e-4  # below this part of the largest weight, a rounding may be all of a weight
_TRIES = 64  # random tokens on which rules that fit are compared


class Rule(NamedTuple):
    """How weights follow from logits.

    Attributes:
        score: ``softmax`` over all experts, or ``sigmoid``.
        divided: whether the scores of the chosen experts are divided by their sum.
        scale: factor of all weights.
        scales: factor of each expert, ``[experts]``; None: 1.
    """

    score: str
    divided: bool
    scale: float = 1.0
    scales: Any = None

    def weights_of(self, logits: Any, ids: Any) -> Any:
        """Weights of some experts.

        Args:
            logits: of the router, ``[n, experts]``.
            ids: experts of each token, integers ``[n, k]``; any that a policy chooses.

        Returns:
            float32 ``[n, k]``, in the order of `ids`.
        """
        logits = logits.float()
        scores = logits.softmax(-1) if self.score == "softmax" else logits.sigmoid()
        chosen = scores.gather(-1, ids)
        if self.divided:
            chosen = chosen / chosen.sum(-1, keepdim=True)
        if self.scales is not None:
            chosen = chosen * self.scales.to(chosen)[ids]
        return chosen * self.scale

    def reproduces(self, logits: Any, ids: Any, weights: Any) -> bool:
        """Whether the rule gives the model's own weights for the model's own choice, but for rounding."""
        return _apart(self.weights_of(logits, ids), weights) <= _CLOSE


def find_rule(logits: Any, ids: Any, weights: Any, scales: Iterable[Any] = ()) -> Rule | None:
    """The rule that gives the model's own weights; None if none does, or if several do that differ for other experts.

    Args:
        logits: of the router, ``[n, experts]``.
        ids: the experts that the model chose, integers ``[n, k]``.
        weights: theirs, ``[n, k]``.
        scales: vectors ``[experts]`` of the router that may scale weights.
    """
    differences = [
        (_apart(rule.weights_of(logits, ids), weights), rule) for rule in _candidates(logits, ids, weights, scales)
    ]
    best = min((difference for difference, _ in differences), default=_CLOSE)
    limit = min(_CLOSE, max(_RIVAL[0] * best, _RIVAL[1]))
    fitting = [rule for difference, rule in sorted(differences, key=lambda entry: entry[0]) if difference <= limit]
    if not fitting:
        return None
    other = _other_choice(logits, ids)
    first, *rivals = (rule.weights_of(*other) for rule in fitting)
    return fitting[0] if all(_apart(rival, first) <= _AGREE for rival in rivals) else None


def _candidates(logits: Any, ids: Any, weights: Any, scales: Iterable[Any]) -> Iterator[Rule]:
    """All rules, each with the scale that fits the largest weights."""
    for score in ("softmax", "sigmoid"):
        for divided in (True, False):
            for own in (None, *scales):
                rule = Rule(score, divided, 1.0, own)
                plain, given = rule.weights_of(logits, ids), weights.float()
                large = given.abs() >= given.abs().amax(-1, keepdim=True)
                scale = float((given[large] / plain[large]).median())
                if scale and math.isfinite(scale):
                    yield rule._replace(scale=1.0 if abs(scale - 1) < _CLOSE / 4 else scale)


def _other_choice(logits: Any, ids: Any) -> tuple[Any, Any]:
    """Random logits, and as many random experts, or fewer where the model chooses all."""
    count, used = logits.shape[-1], ids.shape[-1]
    random = np.random.default_rng(3)
    used = used if used < count else max(1, used - 1)
    other = random.permuted(np.tile(np.arange(count), (_TRIES, 1)), axis=1)[:, :used]
    return logits.new_tensor(2 * random.standard_normal((_TRIES, count))), ids.new_tensor(other)


def _apart(value: Any, other: Any) -> float:
    """The largest relative difference of two tensors of weights, leaving out the rounding of very small ones."""
    value, other = value.float(), other.float()
    floor = _SMALL * other.abs().amax(-1, keepdim=True)
    return float(((value - other).abs() / (other.abs() + floor).clamp_min(1e-30)).max())

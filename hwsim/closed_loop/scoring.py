"""Accuracy of a policy: its losses compared with the dense model's, token by token."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp
from typing import Any

import numpy as np

from hwsim.record.runner import Runner


@dataclass
class Score:
    """Sums over the scored tokens in float64; losses and divergence in nats.

    A token is scored if a masked token predicts it. The first token of a sequence has no prediction; tokens of the
    prompt, and the token after it, are predicted densely.
    """

    tokens: int = 0
    nll: float = 0.0
    dense_nll: float = 0.0
    divergence: float = 0.0  # KL of the policy's distribution from the dense one's
    agreed: int = 0  # tokens at which both have the same first choice

    @property
    def perplexity(self) -> float:
        """Perplexity of the policy."""
        return exp(self.nll / self.tokens)

    @property
    def dense_perplexity(self) -> float:
        """Perplexity of the dense model over the same tokens."""
        return exp(self.dense_nll / self.tokens)

    @property
    def kl(self) -> float:
        """Mean KL divergence to the dense model."""
        return self.divergence / self.tokens

    @property
    def top1(self) -> float:
        """Share of tokens for which policy and dense model agree on the most likely token."""
        return self.agreed / self.tokens


def score(runner: Runner, ids: np.ndarray, prompt: int, dense: Any, hiddens: list[Any], scores: list[Score]) -> None:
    """Add one pass to the scores.

    Args:
        runner: computes logits of hidden states.
        ids: token ids, int ``[windows, tokens]``.
        prompt: tokens of each window that were not masked.
        dense: hidden states of the dense model, ``[windows, tokens, hidden]``.
        hiddens: hidden states of each policy.
        scores: score of each policy, to be updated.
    """
    torch = runner.torch
    with torch.inference_mode():
        wanted = runner.tensor(ids)[:, prompt + 1 :].reshape(-1)
        rows = [states[:, prompt:-1].reshape(-1, states.shape[-1]) for states in (dense, *hiddens)]
        for block in runner.blocks(len(wanted)):
            reference = torch.log_softmax(runner.logits(rows[0][block]).float(), -1)
            for hidden, into in zip(rows[1:], scores, strict=True):
                predicted = torch.log_softmax(runner.logits(hidden[block]).float(), -1)
                targets = wanted[block][:, None]
                into.tokens += len(targets)
                into.nll -= float(predicted.gather(1, targets).double().sum())
                into.dense_nll -= float(reference.gather(1, targets).double().sum())
                into.divergence += float((reference.exp() * (reference - predicted)).sum(-1).double().sum())
                into.agreed += int((predicted.argmax(-1) == reference.argmax(-1)).sum())

"""The steps of a LoRA training: dense pass, masked pass, gradient; validation; states to resume from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from hwsim.closed_loop.carried import Carried
from hwsim.closed_loop.masking import ClosedLoop
from hwsim.closed_loop.scoring import Score, score
from hwsim.errors import ModelError, SettingError
from hwsim.record.prepare import Prepared, Progress
from hwsim.record.runner import Runner
from hwsim.train.adapterfile import Partial

_WARM_UP = 0.05  # share of the steps over which the learning rate rises
_SAVE_EVERY = 10  # steps between two saved states, from which a killed training resumes
_CLIP = 1.0  # largest norm of a step's gradient
_MEMORY = 0.98  # decay of the running mean of the weights, after enough steps


@dataclass(frozen=True)
class Training:
    """How to train.

    Attributes:
        tokens: number of the text's first tokens, which are trained on.
        validation: number of tokens after those, which are never trained on.
        context: tokens of one window; each window is a sequence of its own.
        batch: windows of one step.
        epochs: number of passes over the tokens.
        rank: of the adapter.
        learning_rate: largest learning rate of AdamW; it rises over the first steps and then falls to zero.
        every: steps between two scores of the validation tokens.
    """

    tokens: int = 131_072
    validation: int = 4_096
    context: int = 512
    batch: int = 2
    epochs: int = 1
    rank: int = 16
    learning_rate: float = 1e-3
    every: int = 32

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if self.context < 2:
            raise SettingError(f"--context {self.context}: must be at least 2: the first token predicts the second")
        for name in ("batch", "epochs", "rank", "every"):
            if getattr(self, name) < 1:
                raise SettingError(f"--{name} {getattr(self, name)}: must be at least 1")
        if not 0 < self.learning_rate < 1:
            raise SettingError(f"--learning-rate {self.learning_rate}: must be more than 0 and less than 1")
        for name in ("tokens", "validation"):
            count = getattr(self, name)
            if count < self.context or count % self.context:
                raise SettingError(f"--{name} {count}: must be a multiple of --context {self.context}")

    @property
    def windows(self) -> int:
        """Windows that are trained on."""
        return self.tokens // self.context

    @property
    def steps(self) -> int:
        """Steps of all epochs."""
        return self.epochs * -(-self.windows // self.batch)

    def rate(self, step: int) -> float:
        """Learning rate of a step; steps count from 0."""
        warm = max(1, round(_WARM_UP * self.steps))
        return self.learning_rate * min((step + 1) / warm, (self.steps - step) / max(1, self.steps - warm), 1.0)

    def order(self, seed: int) -> Iterator[np.ndarray]:
        """The windows of each step, int ``[batch]``; every epoch has another order."""
        for epoch in range(self.epochs):
            order = np.random.default_rng((seed, epoch)).permutation(self.windows)
            yield from np.split(order, range(self.batch, self.windows, self.batch))


class Look(NamedTuple):
    """One score of the validation tokens.

    Attributes:
        step: steps that were done before it.
        tokens: tokens that were trained on before it.
        kl: divergence of the policy with the adapter from the dense model, nats.
        perplexity: of the policy with the adapter.
    """

    step: int
    tokens: int
    kl: float
    perplexity: float


class Trainer:
    """The steps of one training."""

    def __init__(
        self, ready: Prepared, carried: Carried, loop: ClosedLoop, training: Training, seed: int, partial: Partial
    ) -> None:
        self._torch = ready.libraries.torch
        self._carried, self._loop, self._training, self._seed, self._partial = carried, loop, training, seed, partial
        self.runner = Runner(carried.model, ready.libraries)
        self._windows = ready.ids.reshape(-1, training.context)
        self._sequences = ready.header.sequences
        self._weights = {
            name: weight for name, weight in carried.wrapped.named_parameters() if ".lora_" in name
        }  # before the adapter is switched on: peft freezes it while it is off
        self._mean = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._optimizer = self._torch.optim.AdamW(self._weights.values(), lr=training.learning_rate, weight_decay=0.0)
        self._curve: list[Look] = []
        self._best: dict[str, Any] = {}
        self._dense_perplexity = math.nan

    def run(self, tell: Progress) -> int:
        """Do all steps that remain; returns the number of steps that an earlier run had done."""
        training, resumed = self._training, 0
        if (state := self._partial.state(self._torch)) is not None:
            resumed = self._resume(state)
        tell("training", resumed, training.steps)
        if not self._curve:
            self._look(0, tell)
        for step, windows in enumerate(training.order(self._seed)):
            if step < resumed:
                continue
            self._step(step, windows)
            done = step + 1
            tell("training", done, training.steps)
            if done % training.every == 0 or done == training.steps:
                self._look(done, tell)
            if done % _SAVE_EVERY == 0 or done == training.steps:
                self._save(done)
        return resumed

    def finish(self) -> dict[str, Any]:
        """Write the best adapter; returns the results of the training."""
        with self._torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(self._best[name])
        done = {
            "dense_perplexity": self._dense_perplexity,
            "curve": [look._asdict() for look in self._curve],
            "best": min(self._curve[1:], key=lambda look: look.kl).step,
            "rank": self._training.rank,
            "parameters": sum(weight.numel() for weight in self._weights.values()),
        }
        self._partial.finish(self._carried.wrapped, done)
        return done

    # ------------------------------------------------------------------ one step

    def _step(self, step: int, windows: np.ndarray) -> None:
        torch, ids = self._torch, self._windows[windows]
        for group in self._optimizer.param_groups:
            group["lr"] = self._training.rate(step)
        with torch.no_grad():
            dense, _ = self.runner.forward(ids)
        with self._masked(windows):
            hidden, _ = self.runner.forward(ids)
            loss = backward(self.runner, hidden, dense)  # while the adapter is on: peft freezes it when it is off
        if not math.isfinite(loss):
            raise ModelError(f"step {step}: the loss is {loss}; choose a smaller --learning-rate")
        torch.nn.utils.clip_grad_norm_(self._weights.values(), _CLIP)
        self._optimizer.step()
        self._optimizer.zero_grad()
        fresh = 1 - min(_MEMORY, (step + 1) / (step + 10))
        with torch.no_grad():
            for name, weight in self._weights.items():
                self._mean[name].lerp_(weight, fresh)

    def _masked(self, windows: np.ndarray) -> ExitStack:
        """Context manager in which the model runs with policy and adapter, for some windows of the text."""
        sequences = [self._sequences[window] for window in windows]
        self._loop.window(sequences, int(windows[0]))
        stack = ExitStack()
        stack.enter_context(self._carried)
        stack.enter_context(self._loop)
        return stack

    # ------------------------------------------------------------------ looks and states

    def _look(self, step: int, tell: Progress) -> None:
        """Score the validation tokens with the mean of the weights: single steps of few windows are noisy."""
        self._swap()
        result, training = Score(), self._training
        first, count = training.windows, training.validation // training.context
        for number in range(first, first + count):
            windows = np.array([number])
            ids = self._windows[windows]
            dense = self.runner.hidden(ids)
            with self._masked(windows):
                hidden = self.runner.hidden(ids)
            score(self.runner, ids, 0, dense, [hidden], [result])
            tell("validating", number - first + 1, count)
        self._dense_perplexity = result.dense_perplexity
        epoch, rest = divmod(step, training.steps // training.epochs)
        tokens = epoch * training.tokens + min(rest * training.batch * training.context, training.tokens)
        look = Look(step, tokens, result.kl, result.perplexity)
        if step and look.kl <= min((earlier.kl for earlier in self._curve[1:]), default=math.inf):
            self._best = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._curve.append(look)
        self._swap()

    def _swap(self) -> None:
        """Exchange the weights and their mean."""
        with self._torch.no_grad():
            for name, weight in self._weights.items():
                backup = weight.clone()
                weight.copy_(self._mean[name])
                self._mean[name].copy_(backup)

    def _save(self, step: int) -> None:
        self._partial.save(
            self._torch,
            {
                "step": step,
                "weights": {name: weight.detach() for name, weight in self._weights.items()},
                "mean": self._mean,
                "best": self._best,
                "optimizer": self._optimizer.state_dict(),
                "curve": [list(look) for look in self._curve],
                "dense_perplexity": self._dense_perplexity,
            },
        )

    def _resume(self, state: dict[str, Any]) -> int:
        with self._torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(state["weights"][name])
                self._mean[name].copy_(state["mean"][name])
        self._optimizer.load_state_dict(state["optimizer"])
        self._best = state["best"]
        self._curve = [Look(*look) for look in state["curve"]]
        self._dense_perplexity = state["dense_perplexity"]
        return int(state["step"])


def backward(runner: Runner, hidden: Any, dense: Any) -> float:
    """Compute the gradients of the mean KL divergence; logits are held for one block of tokens at a time.

    Args:
        runner: computes logits from hidden states.
        hidden: states of the policy with the adapter, ``[windows, tokens, hidden]``; their graph gets the gradients.
        dense: states of the dense model, of the same shape.

    Returns:
        The mean divergence, nats.
    """
    torch = runner.torch
    rows = dense.reshape(-1, dense.shape[-1])
    leaf = hidden.detach().reshape(rows.shape).requires_grad_()
    total = 0.0
    for block in runner.blocks(len(rows)):
        with torch.no_grad():
            dense_logs = torch.log_softmax(runner.logits(rows[block]).float(), -1)
        policy_logs = torch.log_softmax(runner.logits(leaf[block]).float(), -1)
        loss = torch.nn.functional.kl_div(policy_logs, dense_logs, reduction="sum", log_target=True) / len(rows)
        loss.backward()
        total += float(loss.detach())
    hidden.backward(leaf.grad.reshape(hidden.shape))
    return total

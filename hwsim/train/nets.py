"""The training of one net: relu(x w1 + b1) w2 + b2, Bernoulli cross-entropy, early stopping; in torch, float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from hwsim.errors import SettingError
from hwsim.train.samples import Samples, Statistics

BATCH = 128  # tokens of one step


class Fit(NamedTuple):
    """A trained net.

    Attributes:
        net: float32 ``w1`` [hidden, rank], ``b1`` [rank], ``w2`` [rank, units], ``b2`` [units]; takes the MLP's input.
        losses: mean cross-entropy on the validation tokens in nats a unit, before training and after each epoch.
        epoch: epoch of this net, the one with the lowest loss; 0: before training.
    """

    net: dict[str, np.ndarray]
    losses: list[float]
    epoch: int


class _Net:
    """Parameters of a net in torch, for inputs that are centred and have unit mean variance."""

    def __init__(self, torch: Any, rank: int, measured: Statistics, rng: np.random.Generator, device: str) -> None:
        hidden, units = len(measured.mean), len(measured.share)
        self.torch, self.units = torch, units
        # w2 = 0: the net begins as the best static set and moves in the direction in which the loss falls
        values = {
            "w1": rng.standard_normal((hidden, rank), np.float32) / np.float32(hidden**0.5),
            "b1": np.zeros(rank, np.float32),
            "w2": np.zeros((rank, units), np.float32),
            "b2": np.log(measured.share / (1 - measured.share)).astype(np.float32),
        }
        self.parts = {name: torch.tensor(value, device=device, requires_grad=True) for name, value in values.items()}
        self._mean = torch.tensor(measured.mean.astype(np.float32), device=device)
        self._scale = measured.scale
        self._bits = torch.arange(7, -1, -1, dtype=torch.uint8, device=device)  # packbits: the highest bit comes first
        self._known = measured

    def loss(self, inputs: Any, masks: Any, reduction: str) -> Any:
        """Cross-entropy of a batch.

        Args:
            inputs: float16 ``[n, hidden]``.
            masks: uint8 ``[n, ceil(units / 8)]``, packed bits.
            reduction: ``mean`` or ``sum`` over all units of all tokens.
        """
        parts = self.parts
        x = (inputs.float() - self._mean) / self._scale
        logits = self.torch.relu(x @ parts["w1"] + parts["b1"]) @ parts["w2"] + parts["b2"]
        truth = ((masks.unsqueeze(-1) >> self._bits) & 1).flatten(1)[:, : self.units].float()
        entropy = self.torch.nn.functional.binary_cross_entropy_with_logits
        return entropy(logits, truth, reduction=reduction)

    def values(self) -> dict[str, np.ndarray]:
        """The current net, for the model's own inputs: centring and scale are folded into w1 and b1."""
        parts = {name: part.detach().cpu().numpy().astype(np.float64) for name, part in self.parts.items()}
        w1 = parts["w1"] / self._known.scale
        parts |= {"w1": w1, "b1": parts["b1"] - self._known.mean @ w1}
        return {name: part.astype(np.float32) for name, part in parts.items()}


@dataclass(frozen=True)
class Effort:
    """How a net is trained.

    Attributes:
        rank: width of the hidden layer.
        epochs: largest number of epochs.
        patience: epochs without a lower loss after which it stops.
        learning_rate: of Adam.
        device: a device of torch.
    """

    rank: int
    epochs: int
    patience: int
    learning_rate: float
    device: str


def fit(
    torch: Any,
    training: Samples,
    validation: Samples,
    known: Statistics,
    effort: Effort,
    rng: np.random.Generator,
    tell: Callable[[int], None] = lambda epoch: None,
) -> Fit:
    """Train one net with Adam in shuffled batches, until the validation loss has not improved for `patience` epochs.

    Args:
        torch: the module.
        training: tokens to learn from.
        validation: tokens that decide which epoch is the best.
        known: statistics of `training`.
        effort: how the net is trained.
        rng: for the initial net and the order of tokens; nothing else is random.
        tell: callback that receives the number of each finished epoch.

    Raises:
        SettingError: the loss is no longer finite.
    """
    device = effort.device
    net = _Net(torch, effort.rank, known, rng, device)
    adam = torch.optim.Adam(list(net.parts.values()), lr=effort.learning_rate)

    def tensors(piece: tuple[np.ndarray, np.ndarray]) -> tuple[Any, Any]:
        return torch.from_numpy(piece[0]).to(device), torch.from_numpy(piece[1]).to(device)

    def held_out() -> float:
        total = 0.0
        with torch.no_grad():
            for inputs, masks in map(tensors, validation.pieces()):
                for at in range(0, len(inputs), BATCH):
                    total += float(net.loss(inputs[at : at + BATCH], masks[at : at + BATCH], "sum"))
        return total / (validation.tokens * net.units)

    losses, best, epoch = [held_out()], 0, 0
    best_net = net.values()
    while epoch < effort.epochs and epoch - best < effort.patience:
        epoch += 1
        for inputs, masks in map(tensors, training.pieces(rng.permutation(training.blocks))):
            order = torch.from_numpy(rng.permutation(len(inputs))).to(device)
            for at in range(0, len(inputs), BATCH):
                rows = order[at : at + BATCH]
                adam.zero_grad()
                net.loss(inputs[rows], masks[rows], "mean").backward()
                adam.step()
        losses.append(held_out())
        if not np.isfinite(losses[-1]):
            raise SettingError(
                f"--learning-rate {effort.learning_rate:g}: the loss is no longer finite; give a lower one"
            )
        if losses[-1] < losses[best]:
            best, best_net = epoch, net.values()
        tell(epoch)
    return Fit(best_net, losses, best)

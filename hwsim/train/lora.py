"""LoRA: small matrices beside the MLP's own, trained to give back what a policy's masks take away.

The method of arXiv 2412.01380: y = (m x) W + (m x) A B, the same input mask m for both, A drawn from a normal
distribution, B zero. The policy is in place while it trains, its caches included, and the dense model is the teacher:
the loss is the KL divergence of the policy's next-token distribution from the dense one's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import hwsim
from hwsim import simulation
from hwsim.errors import ModelError, SettingError
from hwsim.evaluate.carried import Carried, check_in_memory, require_peft
from hwsim.evaluate.evaluation import Candidate
from hwsim.evaluate.masking import ClosedLoop
from hwsim.evaluate.scoring import Score, score
from hwsim.evictions import Eviction
from hwsim.profile import Profile
from hwsim.record import Settings as TextSettings
from hwsim.record.extras import told_as
from hwsim.record.loading import Loaded
from hwsim.record.prepare import Prepared, Progress, prepare
from hwsim.record.runner import Runner
from hwsim.train.adapterfile import Partial, finished

_WARM_UP = 0.05  # share of the steps over which the learning rate rises
_SAVE_EVERY = 10  # steps between two states that a killed training can go on from
_CLIP = 1.0  # largest norm of a step's gradient


@dataclass(frozen=True)
class Training:
    """How to train.

    Attributes:
        tokens: of the text that are trained on.
        validation: tokens of the text after those, never trained on.
        context: tokens of one window; each is a sequence of its own.
        batch: windows of one step.
        epochs: how often the tokens are gone through.
        rank: of the adapter.
        learning_rate: the largest, of AdamW; it rises over the first steps and falls to zero.
        every: steps between two looks at the validation tokens.
    """

    tokens: int = 131_072
    validation: int = 4_096
    context: int = 512
    batch: int = 1
    epochs: int = 1
    rank: int = 16
    learning_rate: float = 5e-4
    every: int = 64

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
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
        """Of all epochs."""
        return self.epochs * -(-self.windows // self.batch)

    def rate(self, step: int) -> float:
        """Learning rate of a step, from 0."""
        warm = max(1, round(_WARM_UP * self.steps))
        return self.learning_rate * min((step + 1) / warm, (self.steps - step) / max(1, self.steps - warm), 1.0)

    def order(self, seed: int) -> Iterator[np.ndarray]:
        """Which windows each step takes: another order in each epoch."""
        for epoch in range(self.epochs):
            mixed = np.random.default_rng((seed, epoch)).permutation(self.windows)
            yield from np.split(mixed, range(self.batch, self.windows, self.batch))


class Look(NamedTuple):
    """One look at the validation tokens.

    Attributes:
        step: steps that were done before it.
        tokens: that were trained on.
        kl: divergence of the policy with the adapter from the dense model, nats.
        perplexity: of the policy with the adapter.
    """

    step: int
    tokens: int
    kl: float
    perplexity: float


class Trained(NamedTuple):
    """What came of it.

    Attributes:
        folder: of the adapter.
        resumed: steps that an earlier run had done; all of them: there was nothing left to do.
        dense_perplexity: of the dense model on the validation tokens.
        curve: looks at the validation tokens; the first is the policy without an adapter.
        best: the step whose adapter was kept.
        rank: of the adapter.
        parameters: of the adapter.
    """

    folder: Path
    resumed: int
    dense_perplexity: float
    curve: list[Look]
    best: int
    rank: int
    parameters: int

    @property
    def closed(self) -> float:
        """Share of the gap between the policy's perplexity and the dense one that the adapter closed."""
        before, after = self.curve[0].perplexity, next(look.perplexity for look in self.curve if look.step == self.best)
        return (before - after) / (before - self.dense_perplexity)

    def plain(self) -> dict[str, Any]:
        """For JSON; no path in it."""
        fields = self._asdict() | {"folder": self.folder.name, "curve": [look._asdict() for look in self.curve]}
        return {"format": "hwsim-training", "version": 1, "kind": "lora", **fields, "gap_closed": self.closed}


def train_lora(
    folder: Path,
    model: str,
    text: str,
    profile: Profile,
    candidate: Candidate,
    eviction: Eviction,
    training: Training | None = None,
    reading: TextSettings | None = None,
    settings: simulation.Settings | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Trained:
    """Train an adapter for a model under a policy.

    Called again with the same arguments after it was killed, it goes on, and ends with the same bytes.

    Args:
        folder: to write, as peft's save_pretrained does, and ``hwsim.json``.
        model: as `hwsim.record.record` takes it.
        text: a UTF-8 file, or the name of a bundled text.
        profile: the device: its DRAM budget decides what the caches hold.
        candidate: the policy.
        eviction: picks who leaves the caches.
        training: how.
        reading: device, type and memory for the model; its other fields play no part.
        settings: DRAM, bits and seed, as in a replay.
        overwrite: replace an adapter that is already there, or was begun with other arguments.
        progress: is told how far it is.

    Raises:
        HwsimError: one of its kinds.
    """
    training, settings = training or Training(), settings or simulation.Settings()
    tell = progress or (lambda phase, done, total: None)
    if eviction.needs_future:
        raise SettingError("--eviction: a rule that must know the future cannot be trained with; choose another")
    reading = TextSettings(
        training.tokens + training.validation, training.context, 0, None,
        *((reading.device, reading.dtype, reading.max_memory) if reading else ()),
    )  # fmt: skip
    require_peft()
    ready = prepare(model, text, reading, tell, writes=[folder])
    shape = ready.header.model
    placement = simulation.layout(shape, profile, candidate.policy, training.context, settings, candidate.name)
    if not placement.groups:
        raise SettingError(
            f"--policy {candidate.name}: masks nothing, so there is nothing to give back; choose another"
        )
    about = _about(ready, candidate, training, settings, [plan.capacity for plan in placement.groups], eviction)
    if (done := finished(folder, about, overwrite=overwrite)) is not None:
        return _trained(folder, done, training.steps)
    with Partial(folder, about, overwrite=overwrite) as partial:
        loaded = ready.load(tell)
        check_in_memory(loaded, ready.source.name)
        with told_as(f"--model {ready.source.name}: cannot be trained"):
            carried = _new_adapter(loaded, ready, training, settings.seed)
            loop = ClosedLoop(
                carried.layers, shape, candidate.policy, placement.groups, eviction,
                name=candidate.name, seed=settings.seed,
            )  # fmt: skip
            trainer = _Trainer(ready, carried, loop, training, settings.seed, partial)
            try:
                resumed = trainer.run(tell)
            finally:
                trainer.runner.remove()
            done = trainer.finish()
    return _trained(folder, done, resumed)


def _trained(folder: Path, done: dict[str, Any], resumed: int) -> Trained:
    curve = [Look(**look) for look in done["curve"]]
    return Trained(folder, resumed, done["dense_perplexity"], curve, done["best"], done["rank"], done["parameters"])


def _about(
    ready: Prepared, candidate: Candidate, training: Training, settings: simulation.Settings,
    capacities: list[int], eviction: Eviction,
) -> dict[str, Any]:  # fmt: skip
    """Everything that decides the adapter: another value of any of it is another adapter."""
    header = ready.header
    known = header.provenance
    return {
        "format": "hwsim-lora",
        "version": 1,
        "hwsim": hwsim.__version__,
        "model": header.model.model_dump(),
        "weights": known["weights"],
        "config_sha256": known["config_sha256"],
        "text": known["text"],
        "tokens_sha256": known["tokens_sha256"],
        "policy": {"name": candidate.name, "parameters": candidate.policy.model_dump(mode="json")},
        "eviction": {"name": type(eviction).__name__, "parameters": eviction.model_dump(mode="json")},
        "capacities": capacities,
        "training": asdict(training),
        "seed": settings.seed,
        "tokens": training.tokens,
        "libraries": {"torch": known["torch"], "transformers": known["transformers"]},
        "device": ready.settings.device,
        "dtype": ready.settings.dtype,
    }


def _new_adapter(loaded: Loaded, ready: Prepared, training: Training, seed: int) -> Carried:
    import peft

    modules = [module for layer in loaded.layers for module in (layer.up, layer.gate, layer.down) if module is not None]
    names = {id(module): name for name, module in loaded.model.named_modules()}
    ready.libraries.torch.manual_seed(seed)
    config = peft.LoraConfig(
        r=training.rank,
        lora_alpha=training.rank,  # y = x W + (x A) B, without a factor
        target_modules=sorted({names[id(module)].rpartition(".")[2] for module in modules}),
        init_lora_weights="gaussian",
        task_type="CAUSAL_LM",
    )
    # the model's own name, not where it lies on this machine
    config.base_model_name_or_path = ready.source.name
    wrapped = peft.get_peft_model(loaded.model, config)
    wrapped.peft_config["default"].base_model_name_or_path = ready.source.name
    return Carried(wrapped.eval(), len(loaded.layers))


class _Trainer:
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
        self._optimizer = self._torch.optim.AdamW(self._weights.values(), lr=training.learning_rate, weight_decay=0.0)
        self._curve: list[Look] = []
        self._best: dict[str, Any] = {}
        self._dense_perplexity = math.nan

    def run(self, tell: Progress) -> int:
        """Go through all steps that are still to be done; how many were done before."""
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
        """Write the best adapter; what is known of the training."""
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
            loss = self._backward(hidden, dense)  # while the adapter is on: off, peft freezes it
        if not math.isfinite(loss):
            raise ModelError(f"step {step}: the loss is {loss}; choose a smaller --learning-rate")
        torch.nn.utils.clip_grad_norm_(self._weights.values(), _CLIP)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _masked(self, windows: np.ndarray) -> ExitStack:
        """The policy and the adapter in place, for some windows of the text."""
        sequences = [self._sequences[window] for window in windows]
        self._loop.window(sequences, int(windows[0]))
        stack = ExitStack()
        stack.enter_context(self._carried)
        stack.enter_context(self._loop)
        return stack

    def _backward(self, hidden: Any, dense: Any) -> float:
        """Gradients of the mean KL divergence of the tokens; logits are held for a block of tokens at a time."""
        torch = self._torch
        rows = dense.reshape(-1, dense.shape[-1])
        leaf = hidden.detach().reshape(rows.shape).requires_grad_()
        total = 0.0
        for block in self.runner.blocks(len(rows)):
            with torch.no_grad():
                wanted = torch.log_softmax(self.runner.logits(rows[block]).float(), -1)
            ours = torch.log_softmax(self.runner.logits(leaf[block]).float(), -1)
            loss = torch.nn.functional.kl_div(ours, wanted, reduction="sum", log_target=True) / len(rows)
            loss.backward()
            total += float(loss.detach())
        hidden.backward(leaf.grad.reshape(hidden.shape))
        return total

    # ------------------------------------------------------------------ looks and states

    def _look(self, step: int, tell: Progress) -> None:
        """Score the validation tokens."""
        into, training = Score(), self._training
        first, count = training.windows, training.validation // training.context
        for number in range(first, first + count):
            windows = np.array([number])
            ids = self._windows[windows]
            dense = self.runner.hidden(ids)
            with self._masked(windows):
                hidden = self.runner.hidden(ids)
            score(self.runner, ids, 0, dense, [hidden], [into])
            tell("validating", number - first + 1, count)
        self._dense_perplexity = into.dense_perplexity
        tokens = min(step * training.batch * training.context, training.epochs * training.tokens)
        look = Look(step, tokens, into.kl, into.perplexity)
        if step and look.kl <= min((each.kl for each in self._curve[1:]), default=math.inf):
            self._best = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._curve.append(look)

    def _save(self, step: int) -> None:
        self._partial.save(
            self._torch,
            {
                "step": step,
                "weights": {name: weight.detach() for name, weight in self._weights.items()},
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
        self._optimizer.load_state_dict(state["optimizer"])
        self._best = state["best"]
        self._curve = [Look(*look) for look in state["curve"]]
        self._dense_perplexity = state["dense_perplexity"]
        return int(state["step"])

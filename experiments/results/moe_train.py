"""Train a small mixture of experts on books, for docs/results/moe.md: no trained one of this size is published.

    python experiments/results/moe_train.py BOOK ... --held-out NOVEL --out FOLDER [--minutes 60] [--threads 1]

A BOOK is a UTF-8 text, or a folder of them (`*.txt`). FOLDER becomes a model for ``hwsim record --model FOLDER``: a
Qwen3-MoE of transformers with 6 layers, 32 experts in each, 4 of them for each token. Its tokenizer, a byte level BPE,
is trained on the same books. The books of the published page are five novels by Jane Austen, from the data of the R
package janeaustenr (Debian: r-cran-janeaustenr), and the King James Bible, printed by the program of Debian's package
bible-kjv. *Persuasion*, which hwsim reads by default, is held out: neither the model nor the tokenizer sees it.

If the training is stopped, the same command continues from the last checkpoint (FOLDER/checkpoint.pt). With the same
number of threads the final weights are bit-identical to those of an uninterrupted run: the windows of a step depend on
the seed and the step alone, and training draws no other random numbers. With another --steps the rest of the training
follows the learning rates of that number.

FOLDER/training.jsonl gets one line for each checkpoint: `loss` (mean cross-entropy of the training since the last line,
nats a token), `perplexity` on held-out text, `balance` (see `balance_loss`), `shares` (``[layers][experts]``: of the
held-out tokens, the share that uses the expert; 4 / 32 if all are used alike) and `tokens_per_second`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

_END = "<|endoftext|>"
_HELD_OUT_WINDOWS = 32  # that are read at each checkpoint
_PROBE = 200  # characters; a piece of the held-out text of this length must not be in a book
_VERSE = re.compile(r"^ {1,3}\d+ ", re.MULTILINE)  # the number before a verse of the Bible
_BREAK = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class Plan:
    """Shape of the model and settings of its training; all but `steps` must be those of a checkpoint to continue it."""

    vocabulary: int = 4096
    hidden: int = 192
    layers: int = 6
    experts: int = 32
    used: int = 4  # experts of a token
    width: int = 96  # of an expert
    heads: int = 4
    context: int = 256
    batch: int = 8  # windows of a step
    steps: int = 3000
    warmup: int = 200  # steps
    rate: float = 2e-3  # the highest learning rate
    balance: float = 0.01  # weight of `balance_loss`
    seed: int = 0


class Training:
    """A model, its optimizer and its texts, at some step; begins from FOLDER/checkpoint.pt if there is one."""

    def __init__(self, books: Sequence[Path], held_out: Path, out: Path, plan: Plan) -> None:
        """Read the texts, and the checkpoint or random weights.

        Args:
            books: texts to learn from.
            held_out: text for the perplexity.
            out: folder of the model, the checkpoint and the log.
            plan: shape and settings.

        Raises:
            SystemExit: a text cannot be read or is too short, a book contains the held-out text, or the checkpoint is
                of another plan or other texts.
        """
        self.plan, self.out = plan, out
        self.checkpoint, self.log = out / "checkpoint.pt", out / "training.jsonl"
        texts = [read(book) for book in books]
        unseen = read(held_out)
        check_apart(books, texts, unseen, held_out)
        digest = hashlib.sha256("\0".join([*texts, unseen]).encode()).hexdigest()
        settings = {name: value for name, value in asdict(plan).items() if name != "steps"}
        self.identity = {"plan": settings, "texts": digest}
        out.mkdir(parents=True, exist_ok=True)
        state = self._stored()
        serialized = state["tokenizer"] if state else make_tokenizer(texts, plan).to_str()
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(serialized), eos_token=_END, bos_token=_END
        )
        self.ids = encode(self.tokenizer, texts)
        self.unseen = encode(self.tokenizer, [unseen])
        for name, ids in (("the books", self.ids), (str(held_out), self.unseen)):
            if len(ids) <= plan.context:
                raise SystemExit(f"{name}: {len(ids)} tokens, must be more than {plan.context}; give a longer text")
        self.model = make_model(plan, len(self.tokenizer))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), betas=(0.9, 0.95), weight_decay=0.05, fused=True)
        self.step = 0
        if state:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]
            self._forget_later_lines()

    def run(self, minutes: float = math.inf, every: int = 200, until: int | None = None) -> bool:
        """Train and write checkpoints; return whether the last step is done.

        Args:
            minutes: time after which the training stops, with a checkpoint.
            every: steps between two checkpoints.
            until: step before which it stops as if it were killed, without a checkpoint; None: the last step.
        """
        began = since = time.monotonic()
        losses: list[float] = []  # since the last checkpoint
        if self.step >= self.plan.steps:  # it may have been killed between the checkpoint and the model
            self._save_model()
        for step, tokens in batches(self.ids, self.plan, self.step):
            if step == until:
                return False
            losses.append(self._learn(step, tokens))
            self.step = step + 1
            now = time.monotonic()
            late = now - began > 60 * minutes
            if self.step % every == 0 or self.step == self.plan.steps or late:
                speed = len(losses) * tokens.numel() / (now - since)
                self._save({"loss": float(np.mean(losses)), "tokens_per_second": round(speed)})
                losses, since = [], time.monotonic()
            if late:
                break
        return self.step >= self.plan.steps

    def _learn(self, step: int, tokens: torch.Tensor) -> float:
        """One step of the optimizer; returns the cross-entropy before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(self.plan, step)
        self.model.train()
        result = self.model(tokens, output_router_logits=True)
        loss = next_token_loss(result.logits, tokens)
        total = loss + self.plan.balance * balance_loss(result.router_logits, self.plan)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return float(loss.detach())

    @torch.inference_mode()
    def measure(self) -> dict[str, Any]:
        """Perplexity, balance and shares on the first windows of the held-out text."""
        context = self.plan.context
        windows = self.unseen[: len(self.unseen) // context * context].reshape(-1, context)[:_HELD_OUT_WINDOWS]
        tokens = torch.from_numpy(windows.astype(np.int64))
        self.model.eval()
        result = self.model(tokens, output_router_logits=True)
        return {
            "perplexity": math.exp(float(next_token_loss(result.logits, tokens))),
            "balance": float(balance_loss(result.router_logits, self.plan)),
            "shares": [shares(logits, self.plan) for logits in result.router_logits],
        }

    def _save(self, entry: dict[str, Any]) -> None:
        """Write the line of the log, the checkpoint and the model."""
        measured = self.measure()
        line = {"step": self.step, "tokens": self.step * self.plan.batch * self.plan.context, **entry, **measured}
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        short = {name: value for name, value in line.items() if name != "shares"}
        print(short, *(f"{min(layer):.3f}-{max(layer):.3f}" for layer in measured["shares"]), flush=True)
        state = {
            "step": self.step, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "tokenizer": self.tokenizer.backend_tokenizer.to_str(), **self.identity,
        }  # fmt: skip
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)
        self._save_model()

    def _save_model(self) -> None:
        """Write model and tokenizer beside their places, then move each file: a reader never sees half a file."""
        partial = self.out / "partial"
        self.model.save_pretrained(partial)
        self.tokenizer.save_pretrained(partial)
        for file in partial.iterdir():
            file.replace(self.out / file.name)
        partial.rmdir()

    def _stored(self) -> dict[str, Any] | None:
        """The checkpoint of the folder, or None."""
        if not self.checkpoint.exists():
            return None
        state: dict[str, Any] = torch.load(self.checkpoint, weights_only=True)
        for name, value in self.identity.items():
            if state.get(name) != value:
                raise SystemExit(
                    f"{self.checkpoint}: {name} is {state.get(name)}, must be {value}; "
                    "repeat the command that made it, or name another --out"
                )
        return state

    def _forget_later_lines(self) -> None:
        """Drop the lines of the log after the checkpoint: their steps are repeated."""
        lines = self.log.read_text(encoding="utf-8").splitlines(keepends=True) if self.log.exists() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= self.step]
        self.log.write_text("".join(kept), encoding="utf-8")


def read(path: Path) -> str:
    """The text with each paragraph on one line, as hwsim's own texts are, and without the numbers of verses."""
    try:
        text = _VERSE.sub("", path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SystemExit(f"{path}: cannot be read: {error}; give a UTF-8 text") from error
    paragraphs = (" ".join(paragraph.split()) for paragraph in _BREAK.split(text))
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph) + "\n"


def check_apart(books: Sequence[Path], texts: Sequence[str], unseen: str, held_out: Path) -> None:
    """Refuse a book that contains one of twenty pieces of the held-out text.

    Raises:
        SystemExit: a book contains one.
    """
    starts = range(0, max(1, len(unseen) - _PROBE), max(1, len(unseen) // 20))
    for book, text in zip(books, texts, strict=True):
        if any(unseen[start : start + _PROBE] in text for start in starts):
            raise SystemExit(f"{book}: contains text of {held_out}, which must be held out; leave one of them out")


def make_tokenizer(texts: Sequence[str], plan: Plan) -> Tokenizer:
    """A byte level BPE, trained on the texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=plan.vocabulary, special_tokens=[_END], initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator((text for whole in texts for text in whole.splitlines(keepends=True)), trainer)
    return tokenizer


def encode(tokenizer: Any, texts: Sequence[str]) -> np.ndarray:
    """Token ids of the texts, int32, each text after an end token."""
    parts = [[tokenizer.eos_token_id, *tokenizer(text)["input_ids"]] for text in texts]
    return np.concatenate([np.array(part, np.int32) for part in parts])


def make_model(plan: Plan, vocabulary: int) -> Any:
    """The model with random weights."""
    torch.manual_seed(plan.seed)
    config = Qwen3MoeConfig(
        vocab_size=vocabulary, hidden_size=plan.hidden, intermediate_size=4 * plan.width,
        moe_intermediate_size=plan.width, num_hidden_layers=plan.layers, num_attention_heads=plan.heads,
        num_key_value_heads=plan.heads // 2, head_dim=plan.hidden // plan.heads, num_experts=plan.experts,
        num_experts_per_tok=plan.used, norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[],
        router_aux_loss_coef=plan.balance, tie_word_embeddings=True, max_position_embeddings=4 * plan.context,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = Qwen3MoeForCausalLM(config)
    # one thread, 2,048 tokens a step: grouped_mm 2,900 tokens/s, eager 2,200, batched_mm 90
    model.set_experts_implementation("grouped_mm")
    return model


def batches(ids: np.ndarray, plan: Plan, first: int) -> Iterator[tuple[int, torch.Tensor]]:
    """The number and the windows, int64 ``[batch, context]``, of each step from `first` on."""
    for step in range(first, plan.steps):
        starts = np.random.default_rng((plan.seed, step)).integers(0, len(ids) - plan.context, plan.batch)
        yield step, torch.from_numpy(np.stack([ids[start : start + plan.context] for start in starts]).astype(np.int64))


def rate_at(plan: Plan, step: int) -> float:
    """Learning rate of a step: a linear rise, then half a cosine down to a tenth."""
    if step < plan.warmup:
        return plan.rate * (step + 1) / plan.warmup
    done = (step - plan.warmup) / max(1, plan.steps - plan.warmup)
    return plan.rate * (0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2)


def next_token_loss(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of each token but a window's first, nats."""
    return cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def balance_loss(router_logits: Sequence[torch.Tensor], plan: Plan) -> torch.Tensor:
    """Load-balancing loss of transformers, for each layer by itself: their mean; `plan.used` if all experts are equal.

    transformers adds up the counts of all layers first. Then an expert that is overloaded in one layer is compensated
    by its namesake in another: trained so, a layer of this model left 7 of 32 experts unused, and another gave one
    expert 92 % of the tokens, at a loss of 4.07 where 4 is the ideal.

    Args:
        router_logits: ``[tokens, experts]`` for each layer.
        plan: number of experts, and of those that a token uses.
    """
    losses = [load_balancing_loss_func((logits,), plan.experts, plan.used) for logits in router_logits]
    return torch.stack(losses).mean()


def shares(logits: torch.Tensor, plan: Plan) -> list[float]:
    """For each expert of a layer: the share of the tokens that use it; the shares add up to `plan.used`."""
    chosen = logits.topk(plan.used, dim=-1).indices
    counts = chosen.flatten().bincount(minlength=plan.experts)
    return [round(count / len(logits), 4) for count in counts.tolist()]


def listed(paths: Sequence[Path]) -> list[Path]:
    """The texts that are named, and those of the folders that are named, in the order of their names."""
    found = [sorted(path.glob("*.txt")) if path.is_dir() else [path] for path in paths]
    return [path for group in found for path in group]


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("books", nargs="+", type=Path, help="texts to learn from, or folders of them")
    parser.add_argument("--held-out", type=Path, required=True, help="text for the perplexity")
    parser.add_argument("--out", type=Path, required=True, help="folder of the model, the checkpoint and the log")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so many, with a checkpoint")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--steps", type=int, default=Plan.steps, help="length of the training, and of its rates")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    training = Training(listed(given.books), given.held_out, given.out, Plan(steps=given.steps))
    size = sum(parameter.numel() for parameter in training.model.parameters())
    print(f"{size:,} parameters, {len(training.ids):,} tokens in the books, step {training.step}", flush=True)
    print("done" if training.run(given.minutes) else "stopped; the same command continues")


if __name__ == "__main__":
    main()

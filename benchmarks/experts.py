"""Caches of experts: whole replays of a router trace as a user runs them, and the cache alone beside plain LRU caches.

    python benchmarks/experts.py WORK

The trace is made up, once, in the folder WORK: 1,000 tokens of Qwen3-30B-A3B's shape (48 layers, 128 experts, 8 used)
whose choice keeps to popular and recent experts.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from bench import command

from hwsim.model.layers import Experts, LayerShape
from hwsim.model.shape import ModelShape
from hwsim.trace import Sequence, TraceHeader, TraceWriter

LAYERS, EXPERTS, USED, TOKENS = 48, 128, 8, 1000
HIDDEN, WIDTH, HEADS, KV_HEADS, HEAD = 2048, 768, 32, 4, 128
CACHE = 4000 * 2**20


def shape() -> ModelShape:
    """Qwen3-30B-A3B."""
    layer = LayerShape(
        attention="full", kv_elements=2 * KV_HEADS * HEAD, macs_per_entry=2 * HEADS * HEAD, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, head_dim=HEAD, other_parameters=HIDDEN * EXPERTS,
        experts=Experts(count=EXPERTS, used=USED, intermediate_size=WIDTH),
    )  # fmt: skip
    return ModelShape(
        name="Qwen3-30B-A3B", num_hidden_layers=LAYERS, hidden_size=HIDDEN, intermediate_size=0,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=HEAD, vocab_size=151_936,
        layers=(layer,) * LAYERS,
    )  # fmt: skip


def chosen(tokens: int = TOKENS, seed: int = 0) -> np.ndarray:
    """Experts by layer and token, int64 ``[layers, tokens, used]``: popular ones, and those of the token before."""
    rng = np.random.default_rng(seed)
    choice = np.empty((LAYERS, tokens, USED), np.int64)
    for layer in range(LAYERS):
        popularity = rng.permutation(np.log(1 / np.arange(4, EXPERTS + 4)))
        before = np.zeros(EXPERTS)
        for token in range(tokens):
            scores = popularity + before + rng.gumbel(size=EXPERTS)
            choice[layer, token] = np.argsort(-scores)[:USED]
            before *= 0.5
            before[choice[layer, token]] += 1
    return choice


def made(work: Path, tokens: int = TOKENS) -> Path:
    """The trace, as a file."""
    path = work / f"experts-{tokens}.npz"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        header = TraceHeader(
            origin="synthetic", model=shape(), signals=["experts"], sequences=[Sequence(tokens=tokens, prompt=0)]
        )
        with TraceWriter(path, header) as writer:
            for layer, experts in enumerate(chosen(tokens)):
                writer.write(layer, "experts", 0, experts)
            writer.commit(tokens)
            writer.finish()
    return path

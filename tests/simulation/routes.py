"""Traces of routers, written from lists: of other programs' files, or made up."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hwsim.model.layers import Experts, LayerShape
from hwsim.model.shape import ModelShape
from hwsim.trace import Sequence, TraceHeader, TraceWriter


class Routed(NamedTuple):
    """A router trace: for each layer, bytes of an expert and of what every token reads, and the chosen experts."""

    experts: int
    expert_bytes: list[int]
    dense_bytes: list[int]
    chosen: np.ndarray  # int64 [layers, tokens, used], -1 at the end of shorter rows
    sequences: list[tuple[int, int]]  # tokens and prompt of each
    flags: np.ndarray | None = None  # bool [layers, tokens, used]
    weights: np.ndarray | None = None  # float32 [layers, tokens, used]
    accepted: np.ndarray | None = None  # bool [tokens]
    logits: np.ndarray | None = None  # float32 [layers, tokens, experts]


def write(path: Path, routed: Routed) -> Path:
    """A trace of which only bytes are known."""
    layers, tokens, used = routed.chosen.shape
    shapes = tuple(
        LayerShape(attention="none", dense_bytes=dense, experts=Experts(count=routed.experts, used=used, bytes=size))
        for size, dense in zip(routed.expert_bytes, routed.dense_bytes, strict=True)
    )
    model = ModelShape(
        name="routed", num_hidden_layers=layers, hidden_size=0, intermediate_size=0, num_attention_heads=0,
        num_key_value_heads=0, head_dim=0, vocab_size=0, layers=shapes,
    )  # fmt: skip
    given = {"experts": routed.chosen, "expert_weights": routed.weights, "router": routed.logits}
    signals = [name for name, values in given.items() if values is not None]
    header = TraceHeader(
        origin="recorded", model=model, signals=signals,
        sequences=[Sequence(tokens=count, prompt=prompt) for count, prompt in routed.sequences],
    )  # fmt: skip
    more = {"residency": routed.flags is not None, "accepted": routed.accepted is not None}
    with TraceWriter(path, header, **more) as writer:
        for layer in range(layers):
            for name in signals:
                writer.write(layer, name, 0, given[name][layer])
            if routed.flags is not None:
                writer.write_residency(layer, 0, routed.flags[layer])
        if routed.accepted is not None:
            writer.write_accepted(0, routed.accepted)
        writer.commit(tokens)
        writer.finish()
    return path


def route_trace(path: Path) -> Routed:
    """A router trace of BigMoeOnEdge."""
    lines = path.read_text().splitlines()
    about = [dict(word.split("=", 1) for word in line[2:].split() if "=" in word) for line in lines if line[0] == "#"]
    model = next(fields for fields in about if "n_layer" in fields)
    layers, used = int(model["n_layer"]), int(model["n_expert_used"])
    sizes = [fields for fields in about if "expert_bytes" in fields]
    rows = list(csv.DictReader(line for line in lines if line[0] != "#"))
    prompt = 1 + max(int(row["step"]) for row in rows if row["phase"] == "0")
    decoded = len({row["step"] for row in rows if row["phase"] == "1"})
    first = min(int(row["step"]) for row in rows if row["phase"] == "1")
    chosen = np.full((layers, prompt + decoded, used), -1)
    flags, weights = np.zeros(chosen.shape, bool), np.zeros(chosen.shape, np.float32)
    for row in rows:
        token = int(row["step"]) + (prompt - first if row["phase"] == "1" else 0)
        at = int(row["layer"]), token, int(row["slot"])
        chosen[at], flags[at], weights[at] = int(row["expert"]), int(row["residency"]) > 0, float(row["weight"])
    return Routed(
        int(model["n_expert"]), [int(fields["expert_bytes"]) for fields in sizes],
        [int(fields["dense_bytes"]) for fields in sizes], chosen, [(prompt + decoded, prompt)], flags, weights,
    )  # fmt: skip


def conformance(folder: Path) -> tuple[Routed, list[tuple[int, int]]]:
    """The hand-checked trace of moe-cache-eval, one byte an expert, and (hits, misses) of its events."""
    rows = list(csv.DictReader((folder / "events.csv").read_text().splitlines()))
    steps, layers = (1 + max(int(row[name]) for row in rows) for name in ("scheduler_step", "layer"))
    chosen = np.full((layers, steps, 2), -1)
    for row in rows:
        chosen[int(row["layer"]), int(row["scheduler_step"])] = [int(e) for e in row["requested_experts"].split()]
    return Routed(4, [1] * layers, [0] * layers, chosen, [(steps, 0)]), [
        (int(row["hits"]), int(row["misses"])) for row in rows
    ]

"""Router traces in plain Python: drawn by hypothesis, written in every form, and read in the plainest way."""

from __future__ import annotations

import csv
import json
import random
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import strategies as st


@dataclass
class Route:
    """A router trace.

    `tokens` holds for each sequence a list of tokens, each of them {layer: [(expert, weight, residency)]}; `accepted` a
    flag for each token of each sequence.
    """

    sizes: list[int]
    dense: list[int]
    experts: int
    used: int
    prompts: list[int]
    tokens: list[list[dict[int, list[tuple[int, float, int]]]]]
    accepted: list[list[int]]
    extra: dict[str, Any] = field(default_factory=dict)

    def rows(self, sequence: int, order: str) -> list[dict[str, Any]]:
        """The rows of one sequence: token by token, or layer by layer within prompt and decode."""
        found = []
        for token, layers in enumerate(self.tokens[sequence]):
            for layer, chosen in layers.items():
                for slot, (expert, weight, cached) in enumerate(chosen):
                    found.append({
                        "sequence": sequence, "phase": int(token >= self.prompts[sequence]), "token": token,
                        "layer": layer, "slot": slot, "expert": expert, "weight": weight, "residency": cached,
                        "accepted": self.accepted[sequence][token],
                    })  # fmt: skip
        if order == "layers":
            found.sort(key=lambda row: (row["phase"], row["layer"]))
        return found


@st.composite
def routes(draw: st.DrawFn) -> Route:
    """Small router traces, some with dense layers, and some whose last layer sees the last token of a prompt only."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    sizes = draw(st.lists(st.sampled_from([0, 1, 7, 3_059_712]), min_size=1, max_size=4).filter(any))
    experts = draw(st.integers(1, 6))
    used = draw(st.integers(1, experts))
    prompts = draw(st.lists(st.integers(0, 4), min_size=1, max_size=3))
    short = draw(st.booleans()) and bool(sizes[-1]) and sum(map(bool, sizes)) > 1
    tokens = []
    for prompt in prompts:
        sequence = []
        for token in range(prompt + draw(st.integers(1, 3))):
            layers = {}
            for layer, size in enumerate(sizes):
                if size and not (short and layer == len(sizes) - 1 and token < prompt - 1):
                    chosen = rng.sample(range(experts), used)
                    layers[layer] = [
                        (expert, rng.choice([0.0, rng.random(), 1e-9]), rng.randrange(2)) for expert in chosen
                    ]
            sequence.append(layers)
        tokens.append(sequence)
    accepted = [[rng.randrange(2) for _ in sequence] for sequence in tokens]
    return Route(sizes, [rng.randrange(100) for _ in sizes], experts, used, prompts, tokens, accepted)


FORMS = st.fixed_dictionaries({
    "form": st.sampled_from(["csv", "jsonl"]),
    "order": st.sampled_from(["tokens", "layers"]),
    "columns": st.lists(st.sampled_from(["slot", "weight", "residency", "accepted"]), unique=True),
    "words": st.booleans(),
    "end": st.sampled_from(["\n", "\r\n"]),
    "shuffle": st.integers(0, 1000),
})  # fmt: skip


def write(route: Route, path: Path, form: dict[str, Any]) -> Path:
    """Write a route in one of `FORMS`."""
    names = ["sequence", "phase", "token", "layer", "expert", *form["columns"]]
    random.Random(form["shuffle"]).shuffle(names)
    rows = [row for sequence in range(len(route.tokens)) for row in route.rows(sequence, form["order"])]
    for row in rows:
        row["phase"] = ("prompt", "decode")[row["phase"]] if form["words"] else row["phase"]
    head = {"model": "drawn", "n_layer": len(route.sizes), "n_expert": route.experts, "n_expert_used": route.used}
    if form["form"] == "csv":
        lines = ["# " + " ".join(f"{key}={value}" for key, value in head.items())]
        for layer, (size, dense) in enumerate(zip(route.sizes, route.dense, strict=True)):
            lines.append(f"# layer={layer} expert_bytes={size} dense_bytes={dense}")
        lines += [",".join(names), *(",".join(str(row[name]) for name in names) for row in rows)]
    else:
        lines = [json.dumps(head | {"expert_bytes": route.sizes, "dense_bytes": route.dense})]
        lines += [json.dumps({name: row[name] for name in names}) for row in rows]
    path.write_bytes("".join(line + form["end"] for line in lines).encode())
    return path


def read_bigmoe(path: Path) -> tuple[dict[tuple[int, int, int], list[dict[str, str]]], dict[int, int]]:
    """Rows of a route_trace by (turn, step, layer), in the order of the slots; and the tokens of each turn's prompt."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    found: dict[tuple[int, int, int], list[dict[str, str]]] = defaultdict(list)
    prompts: dict[int, set[int]] = defaultdict(set)
    for row in sorted(rows, key=lambda row: int(row["slot"])):
        found[int(row["turn"]), int(row["step"]), int(row["layer"])].append(row)
        if row["phase"] == "0":
            prompts[int(row["turn"])].add(int(row["step"]))
    return found, {turn: len(steps) for turn, steps in prompts.items()}

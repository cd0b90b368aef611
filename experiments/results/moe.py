"""Policies for experts on a trained model: accuracy, misses and speed, in the closed loop and in replays.

    python experiments/results/moe.py WORK --model FOLDER --text NOVEL.txt [--page docs/results/moe.md]

FOLDER is the model of ``moe_train.py``, NOVEL.txt the text that it was not trained on. The text is read in parts; each
part gives one difference to the model's own routing, and the intervals are those of the mean difference (Student's t,
95 %). Results are kept in WORK; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from hwsim.closed_loop.evaluation import Candidate, Loops
from hwsim.device.profile import load_profile
from hwsim.record import Settings as Reading
from hwsim.record import record
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.simulation.replay import replay
from hwsim.simulation.run import Conditions, Source
from hwsim.simulation.settings import Settings
from hwsim.trace import Trace
from hwsim.util.files import write_atomic

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "experiments"))

import tables  # noqa: E402

DEVICE, EVICTION = "oneplus15r", "lru"
PARTS, TOKENS, CONTEXT, PROMPT = 8, 512, 256, 32  # of the text; tokens of a part, its windows and their prompts
PER_LAYER = (5, 10, 16)  # experts that a layer's cache holds, of 32; a token uses 4
STUDENT = 2.365  # 97.5 % quantile of Student's t with 7 degrees of freedom


@dataclass(frozen=True)
class Choice:
    """A policy with parameters."""

    policy: str
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The policy and its parameters, for a table."""
        values = ", ".join(f"{key} {value}" for key, value in self.parameters.items())
        return f"{self.policy}{', ' if values else ''}{values}"

    def candidate(self) -> Candidate:
        """The policy, to be evaluated."""
        return Candidate(self.name, POLICIES.make(self.policy, self.parameters)[1])


CHOICES = (
    Choice("router"),
    Choice("router-k", {"k": 3}),
    Choice("router-k", {"k": 2}),
    Choice("router-k", {"k": 1}),
    Choice("drop-cold", {"factor": 0.5}),
    Choice("drop-cold", {"factor": 0.75}),
    Choice("drop-cold", {"factor": 1.0}),
    Choice("cache-prior", {"bonus": 0.1}),
    Choice("cache-prior", {"bonus": 0.3}),
    Choice("max-rank", {"max_rank": 8}),
    Choice("max-rank", {"max_rank": 12}),
    Choice("cumulative", {"mass": 0.5}),
    Choice("cumulative", {"mass": 0.8}),
)


class Setup(NamedTuple):
    """What all runs have in common."""

    work: Path
    model: str
    expert_bytes: int
    layers: int

    def conditions(self, per_layer: int) -> Conditions:
        """A device whose caches hold some experts of each layer."""
        size = per_layer * self.layers * self.expert_bytes
        settings = Settings(cache=size, cache_scope="layer", timing="events")
        return Conditions(load_profile(DEVICE), EVICTIONS.make(EVICTION)[1], settings, EVICTION)


def split(text: Path, work: Path) -> list[Path]:
    """Parts of a text, evenly spread over it."""
    whole = text.read_text()
    size = len(whole) // PARTS
    paths = []
    for part in range(PARTS):
        path = work / f"part{part}.txt"
        path.write_text(whole[part * size : (part + 1) * size])
        paths.append(path)
    return paths


def reading() -> Reading:
    """How the text is read."""
    return Reading(tokens=TOKENS, context=CONTEXT, prompt=PROMPT)


def numbers(result: Any) -> dict[str, float]:
    """What the tables need of a result."""
    plain = result.plain()
    kept = {name: plain[name] for name in ("tokens", "flash_bytes", "unit_requests", "unit_hits")}
    kept["seconds"] = plain["time_s"]["total"]
    if "perplexity" in plain:
        kept["nats"] = math.log(plain["perplexity"])
        kept["scored"] = plain["tokens_scored"]
        kept["agreed"] = plain["top1"] * plain["tokens_scored"]
    return kept


def measure(setup: Setup, part: int, text: Path) -> None:
    """Measure every policy on one part of the text at every size of the caches; what is on disk is not made again."""
    missing = [per_layer for per_layer in PER_LAYER if not file_of(setup, part, per_layer).exists()]
    if not missing:
        return
    with Loops(setup.model, str(text), reading(), keep_dense=True) as loops:
        for per_layer in missing:
            found = measured(setup, loops, recorded(setup, part, text), per_layer)
            write_atomic(file_of(setup, part, per_layer), json.dumps(found, indent=1) + "\n")
            print(file_of(setup, part, per_layer).name, flush=True)


def file_of(setup: Setup, part: int, per_layer: int) -> Path:
    """Where the numbers of one part at one size of the caches are kept."""
    return setup.work / f"part{part}-{per_layer}.json"


def measured(setup: Setup, loops: Loops, path: Path, per_layer: int) -> dict[str, dict[str, Any]]:
    """Closed loop and replay of every policy on one part at one size of the caches."""
    conditions = setup.conditions(per_layer)
    closed = loops.run(conditions, [choice.candidate() for choice in CHOICES])
    found: dict[str, dict[str, Any]] = {
        choice.name: {"closed": numbers(result)} for choice, result in zip(CHOICES, closed, strict=True)
    }
    with Trace(path) as trace:
        source = Source.of_trace(trace)
        for choice in CHOICES:
            candidate = choice.candidate()
            found[choice.name]["open"] = numbers(replay(conditions.run(source, candidate.policy, candidate.name)))
    return found


def recorded(setup: Setup, part: int, text: Path) -> Path:
    """The trace of one part."""
    return record(setup.work / f"part{part}.npz", setup.model, str(text), reading()).path


def interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half of its interval."""
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return mean, STUDENT * spread / math.sqrt(len(values))


def row(name: str, parts: list[dict[str, dict[str, Any]]]) -> list[str]:
    """A policy's line: perplexity and its change, hits, misses and speed, and what a replay says of the misses."""
    closed, own = ([part[key]["closed"] for part in parts] for key in (name, "router"))
    opened = [part[name]["open"] for part in parts]

    def total(rows: list[dict[str, Any]], key: str) -> float:
        return float(sum(entry[key] for entry in rows))

    scored = total(closed, "scored")
    perplexity = math.exp(sum(entry["nats"] * entry["scored"] for entry in closed) / scored)
    change, half = interval([one["nats"] - base["nats"] for one, base in zip(closed, own, strict=True)])
    misses = [
        (total(rows, "unit_requests") - total(rows, "unit_hits")) / total(rows, "tokens")
        for rows in (closed, opened, own)
    ]
    low, high = (100 * math.expm1(change + sign * half) for sign in (-1, 1))
    return [
        name, f"{perplexity:.2f}", "-" if name == "router" else f"{low:+.1f} to {high:+.1f} %",
        f"{total(closed, 'unit_requests') / total(closed, 'tokens'):.1f}",
        f"{total(closed, 'unit_hits') / total(closed, 'unit_requests'):.1%}", f"{misses[0]:.2f}",
        f"{misses[0] / misses[2] - 1:+.0%}", f"{misses[1]:.2f}",
        f"{total(closed, 'tokens') / total(closed, 'seconds'):.0f}",
    ]  # fmt: skip


HEAD = [
    "", "perplexity", "change, 95 %", "experts a token", "hit rate", "misses a token", "against router",
    "misses, replay", "tokens/s",
]  # fmt: skip


def main() -> None:
    """Read the command line and run everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--page", type=Path)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    texts = split(given.text, given.work)
    first = recorded(Setup(given.work, given.model, 0, 0), 0, texts[0])
    with Trace(first) as trace:
        router = POLICIES.make("router")[1]
        plans = (
            Conditions(load_profile(DEVICE), EVICTIONS.make(EVICTION)[1], Settings())
            .run(Source.of_trace(trace), router)
            .placement.plans
        )
        setup = Setup(given.work, given.model, next(iter(plans)).unit_bytes, len(list(plans)))
    for number, text in enumerate(texts):
        measure(setup, number, text)
    page = given.page.read_text() if given.page else ""
    for per_layer in PER_LAYER:
        parts = [json.loads(file_of(setup, number, per_layer).read_text()) for number in range(PARTS)]
        table = tables.grid(HEAD, [row(choice.name, parts) for choice in CHOICES])
        print(f"\n{per_layer} experts a layer\n{table}")
        if page:
            page = tables.replaced(page, f"cache {per_layer}", table)
    if given.page:
        write_atomic(given.page, page)


if __name__ == "__main__":
    main()

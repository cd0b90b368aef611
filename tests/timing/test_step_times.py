"""Time, energy and throughput of steps of several members and of prompts in the caches, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwsim.model.layers import LayerShape
from hwsim.model.shape import Bits, ModelShape
from hwsim.policy import Context, Group, Policy
from hwsim.simulation.metrics import Result
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.simulation.settings import Settings
from hwsim.testing import SMALL_SPARSE_MODEL
from hwsim.trace import Sequence, Trace, TraceHeader, TraceWriter
from tests.conftest import flat_profile, write_trace
from tests.runs import replay
from tests.toy import BITS, KV_ENTRY, RESIDENT, TOY, device_of, times, toy

# A prompt of one token before two of the first sequence, and two tokens of the second; rows 1, 2 and 3, 4 are decoded
TWO = (Sequence(tokens=3, prompt=1), Sequence(tokens=2))
SCRIPT = {
    "input": [[], [0, 1], [0, 1], [1, 2], [1]],
    "down": [[], [0], [0, 3], [3, 4], [0]],
}
CACHES = 96  # bytes: input holds 2 units of 16 B, down 4 of 4 B, in each layer


class ByRow(Policy):
    """Asks for what the script says of the row, which the first number of the input tells."""

    script: dict[str, list[list[int]]] = SCRIPT

    def groups(self, model: ModelShape) -> list[Group]:
        return [
            Group("input", "hidden", ["gate.column", "up.column"], needs=["input"]),
            Group("down", "neuron", ["down.column"], needs=["input"]),
        ]

    def select(self, ctx: Context) -> np.ndarray:
        mask = np.zeros(ctx.units, bool)
        mask[self.script[ctx.group.name][int(ctx.signals["input"][0])]] = True
        return mask


def numbered(path: Path, sequences: tuple[Sequence, ...], model: ModelShape = TOY) -> Path:
    """A trace whose input is the number of the row."""
    header = TraceHeader(origin="synthetic", model=model, signals=["input"], sequences=list(sequences))
    rows = np.repeat(np.arange(header.tokens, dtype=np.float32)[:, None], model.hidden_size, axis=1)
    with TraceWriter(path, header) as writer:
        for layer in range(model.num_hidden_layers):
            writer.write(layer, "input", 0, rows)
        writer.commit(header.tokens)
        writer.finish()
    return path


def run(
    folder: Path, sequences: tuple[Sequence, ...] = TWO, *, script: Any = SCRIPT, sections: Any = None,
    model: ModelShape = TOY, bits: Bits = BITS, **options: Any,
) -> Result:  # fmt: skip
    with Trace(numbered(folder / "t.npz", sequences, model)) as trace:
        settings = Settings(cache=CACHES, bits=bits, per_token=True, **options)
        return replay(trace, device_of(sections or {}), ByRow(script=script), EVICTIONS.make("lru")[1], settings)


# The union of rows 1 and 3 is {0 1 2} and {0 3 4}: all are missed, the first two of input stay. That of rows 2 and 4
# is {0 1} and {0 3}: all are hits. KV entries: 2 + 1, then 3 + 2.
LOCKSTEP = [
    1.60 + 3 * 0.08 + 2 * (3 * 16 / 10 + 3 * 4 / 10),  # 13.84
    1.60 + 5 * 0.08 + 2 * (2 * 16 / 100 + 2 * 4 / 100),  # 2.80
]


@pytest.mark.parametrize("timing", ["events", "closed-form"])
def test_two_sequences_in_lockstep(tmp_path: Path, timing: str) -> None:
    result = run(tmp_path, lockstep=2, timing=timing)
    assert times(result) == pytest.approx(LOCKSTEP, rel=1e-12)
    assert (result.tokens, result.steps) == (4, 2)
    assert result.throughput_tok_s == pytest.approx(4 / 16.64, rel=1e-12)
    assert result.latency_s.mean == pytest.approx(8.32, rel=1e-12)
    assert (result.unit_requests, result.unit_hits) == (2 * 10, 2 * 4)
    assert result.kv_cache_bytes == 2 * 3 * KV_ENTRY  # each sequence has its own
    assert result.resident_bytes == RESIDENT + 2 * 3 * KV_ENTRY
    assert result.flash_bytes == 2 * (3 * 16 + 3 * 4)
    assert result.dram_bytes == 2 * RESIDENT + 8 * KV_ENTRY + 2 * (2 * 16 + 2 * 4)
    assert [step.dram_bytes for step in result.per_token or []] == [160 + 3 * 8, 160 + 5 * 8 + 80]
    # every member's own units: 4 + 3 of input, 3 + 3 of down; 96 weights, 4 tokens, both layers alike
    assert result.mlp_density == pytest.approx((7 * 16 + 6 * 4) / (4 * 96), rel=1e-12)


def test_lockstep_reserves_no_more_than_there_are_sequences(tmp_path: Path) -> None:
    assert run(tmp_path, lockstep=50).kv_cache_bytes == 2 * 3 * KV_ENTRY


def test_arithmetic_is_the_sum_over_the_members(tmp_path: Path) -> None:
    sections = {
        "compute": {"rate": "1000 OP/s", "overhead": "1 s", "selection": "0.01 s", "bookkeeping": "0.1 s"},
        "energy": {"dram_read": "2 mJ/B", "flash_read": "5 mJ/B", "compute": "1 mJ/OP", "base_power": "3 W"},
    }
    result = run(tmp_path, lockstep=2, sections=sections)
    # two operations for each of 160 resident weights of 2 members, 8 for each KV entry of each layer by head and width
    operations = [
        2 * 2 * 160 + 2 * 2 * 8 * 3 + 2 * 2 * (4 * 16 + 3 * 4),
        2 * 2 * 160 + 2 * 2 * 8 * 5 + 2 * 2 * (3 * 16 + 3 * 4),
    ]
    kernels = 2 * (1 + 2)  # a layer's own and one for each group, once for all members
    chosen = 2 * (4 + 8) * 2 * 0.01  # masks are chosen for each member
    kept = [2 * (3 + 3) * 0.1, 2 * (2 + 2) * 0.1]  # the caches are kept for the union
    by_hand = [
        time + count / 1000 + kernels + chosen + books
        for time, count, books in zip(LOCKSTEP, operations, kept, strict=True)
    ]
    assert times(result) == pytest.approx(by_hand, rel=1e-12)
    energy = result.energy_by_source_j
    assert energy is not None
    assert energy.compute == pytest.approx(sum(operations) * 1e-3, rel=1e-12)
    assert energy.flash == pytest.approx(result.flash_bytes * 5e-3, rel=1e-12)
    assert energy.dram_read == pytest.approx(result.dram_bytes * 2e-3, rel=1e-12)
    assert energy.base == pytest.approx(3 * sum(by_hand), rel=1e-12)


_LAYER = LayerShape(
    attention="linear", state_elements=4, kv_elements=4, macs_per_entry=8, num_attention_heads=2, num_key_value_heads=1,
    head_dim=2, intermediate_size=8,
)  # fmt: skip
STATEFUL = TOY.model_copy(update={"layers": (_LAYER, _LAYER), "embedding_row": 8})


@pytest.mark.parametrize("timing", ["events", "closed-form"])
def test_each_member_has_its_states_and_looks_up_its_rows(tmp_path: Path, timing: str) -> None:
    bits = BITS.model_copy(update={"state": 8.0})
    result = run(tmp_path, lockstep=2, timing=timing, model=STATEFUL, bits=bits)
    more = 2 * 2 * 8 / 100 + 2 * 8 / 10  # reading and writing 8 B of states, and reading a row of 8 B, twice
    assert times(result) == pytest.approx([time + more for time in LOCKSTEP], rel=1e-12)
    assert result.state_bytes == 2 * 8
    assert result.flash_bytes == 2 * (3 * 16 + 3 * 4) + 2 * 2 * 8
    assert result.dram_bytes == 2 * RESIDENT + 8 * KV_ENTRY + 2 * (2 * 16 + 2 * 4) + 2 * 2 * 2 * 8


@pytest.mark.parametrize("timing", ["events", "closed-form"])
def test_time_to_first_token_of_a_prompt_that_goes_through_the_caches(tmp_path: Path, timing: str) -> None:
    script = {"input": [[], [], [], [0, 1]], "down": [[], [], [], [0, 7]]}
    sequence = (Sequence(tokens=4, prompt=3),)
    whole = run(tmp_path, sequence, script=script, prefill="cached", timing=timing)
    # all units of both groups are missed; the first 2 and 4 stay
    assert whole.ttft_s == pytest.approx(1.60 + 3 * 0.08 + 2 * (4 * 16 / 10 + 8 * 4 / 10), rel=1e-12)
    assert times(whole) == pytest.approx([1.60 + 4 * 0.08 + 2 * (2 * 16 / 100 + 4 / 100 + 4 / 10)], rel=1e-12)
    prompt = whole.prompt
    assert prompt is not None
    assert (prompt.tokens, prompt.requests, prompt.hits, prompt.flash_bytes) == (3, 24, 0, 2 * 96)
    # in chunks of two and one: the second chunk finds 2 and 4 units
    parts = run(tmp_path, sequence, script=script, prefill="cached", prefill_chunk=2, timing=timing)
    second = 1.60 + 3 * 0.08 + 2 * ((2 * 16 + 4 * 4) / 10 + (2 * 16 + 4 * 4) / 100)
    assert parts.ttft_s == pytest.approx(1.60 + 2 * 0.08 + 2 * (4 * 16 / 10 + 8 * 4 / 10) + second, rel=1e-12)
    assert parts.prompt is not None
    assert parts.prompt.hits == 2 * 6


def test_arithmetic_of_a_prompt(tmp_path: Path) -> None:
    script = {"input": [[], [], [], [0, 1]], "down": [[], [], [], [0, 7]]}
    sections = {"compute": {"rate": "1000 OP/s", "overhead": "1 s", "selection": "7 s"}}
    sequence = (Sequence(tokens=4, prompt=3),)
    result = run(tmp_path, sequence, script=script, prefill="cached", sections=sections)
    read = 1.60 + 3 * 0.08 + 2 * (4 * 16 / 10 + 8 * 4 / 10)
    operations = 3 * 2 * (160 + 2 * 96) + 2 * 2 * 8 * (1 + 2 + 3)
    # no mask is chosen for a prompt
    assert result.ttft_s == pytest.approx(read + operations / 1000 + 2 * (1 + 2), rel=1e-12)


def test_a_dense_prompt_takes_the_same_time_by_steps_and_by_formula(tmp_path: Path) -> None:
    sections = {"compute": {"rate": "1000 OP/s"}}
    for chunk in (None, 2):
        options = {"budget": 300, "device": device_of(sections), "policy": POLICIES.make("dense")[1]}
        prompts = (Sequence(tokens=6, prompt=5), Sequence(tokens=3, prompt=1))
        formula, steps = (
            toy(tmp_path, prompts, prefill=prefill, prefill_chunk=chunk, **options) for prefill in ("dense", "cached")
        )
        assert steps.ttft_s == pytest.approx(formula.ttft_s, rel=1e-12)
        assert times(steps) == times(formula)
        assert toy(tmp_path, prompts, prefill_chunk=chunk, **options).ttft_s == formula.ttft_s


@pytest.mark.parametrize("timing", ["events", "closed-form"])
def test_speculation_by_hand(tmp_path: Path, timing: str) -> None:
    script = {"input": [[0], [1], [2]], "down": [[0], [1], [2]]}
    sequence = (Sequence(tokens=3),)
    wrong = run(tmp_path, sequence, script=script, speculate=1, accept=0, timing=timing)
    # rows 0 1, then 1 2, then 2; KV entries of each member: 1 + 2, 2 + 3, 3
    by_hand = [
        1.60 + 3 * 0.08 + 2 * (2 * 16 + 2 * 4) / 10,
        1.60 + 5 * 0.08 + 2 * ((16 + 4) / 10 + (16 + 4) / 100),
        1.60 + 3 * 0.08 + 2 * (16 + 4) / 100,
    ]
    assert times(wrong) == pytest.approx(by_hand, rel=1e-12)
    assert (wrong.tokens, wrong.steps) == (3, 3)
    right = run(tmp_path, sequence, script=script, speculate=1, accept=1, timing=timing)
    by_hand = [1.60 + 3 * 0.08 + 2 * (2 * 16 + 2 * 4) / 10, 1.60 + 3 * 0.08 + 2 * (16 + 4) / 10]
    assert times(right) == pytest.approx(by_hand, rel=1e-12)
    assert (right.tokens, right.steps) == (3, 2)
    assert right.throughput_tok_s == pytest.approx(3 / sum(by_hand), rel=1e-12)


_ROUTER = POLICIES.make("router")[1]
SIGNALS = ("router", "experts", "expert_weights")
SEQUENCES = [Sequence(tokens=9, prompt=4), Sequence(tokens=5), Sequence(tokens=7, prompt=2)]


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sparse") / "t.npz"
    model = SMALL_SPARSE_MODEL.model_copy(
        update={"layers": tuple(SMALL_SPARSE_MODEL.layers[number] for number in (0, 2)), "num_hidden_layers": 2}
    )
    return write_trace(path, model, SEQUENCES, SIGNALS)


@pytest.mark.parametrize("scope", ["matrix", "layer", "global"])
@pytest.mark.parametrize(
    "options",
    [{}, {"lockstep": 2}, {"speculate": 2, "accept": 0.5}, {"prefill_chunk": 3, "keep_cache": True}, {"dram": "60%"}],
)
def test_the_engine_agrees_with_the_closed_form(sparse: Path, scope: str, options: dict[str, Any]) -> None:
    given = {"cache_scope": scope, "per_token": True} | ({} if "dram" in options else {"cache": 20_000}) | options
    with Trace(sparse) as trace:
        engine, form = (
            replay(trace, flat_profile(), _ROUTER, EVICTIONS.make("lru")[1], Settings(timing=timing, **given))
            for timing in ("events", "closed-form")
        )
    assert engine.time_s.total == pytest.approx(form.time_s.total, rel=1e-9)
    assert engine.ttft_s == pytest.approx(form.ttft_s, rel=1e-9)
    assert times(engine) == pytest.approx(times(form), rel=1e-9)
    assert engine.flash_bytes == form.flash_bytes == engine.flash_read_bytes

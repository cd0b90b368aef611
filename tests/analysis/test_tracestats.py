"""Statistics of a trace against plain numpy, and against answers known beforehand."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from hwsim.analysis import tracestats
from hwsim.analysis.tracestats import trace_stats
from hwsim.errors import SettingError
from hwsim.model.shape import ModelShape
from hwsim.trace import Sequence, Trace, TraceHeader, TraceWriter
from tests.conftest import SEQUENCES, write_trace


def one_signal(path: Path, values: np.ndarray, sequences: list[Sequence] | None = None) -> Trace:
    """A trace of one layer whose input is `values`, float ``[tokens, units]``."""
    shape = ModelShape(
        name="one", num_hidden_layers=1, hidden_size=values.shape[1], intermediate_size=4, num_attention_heads=1,
        num_key_value_heads=1, head_dim=1, vocab_size=10,
    )  # fmt: skip
    header = TraceHeader(
        origin="synthetic", model=shape, signals=["input"], sequences=sequences or [Sequence(tokens=len(values))]
    )
    with TraceWriter(path, header) as writer:
        writer.write(0, "input", 0, values)
        writer.commit(header.tokens)
        writer.finish()
    return Trace(path)


def plain(values: np.ndarray, lengths: list[int], keep: float) -> dict[str, float]:
    """The same numbers, without blocks, histograms or kernels."""
    size = np.abs(values.astype(np.float64))
    tokens, units = size.shape
    k = max(1, int(keep * units + 1e-9))
    # a stable sort of the negative: ties go to the lower index
    order = np.argsort(-size, axis=1, kind="stable")
    picked = [set(row[:k].tolist()) for row in order]
    starts = {sum(lengths[:i]) for i in range(len(lengths))}
    pairs = [len(picked[t] & picked[t - 1]) / k for t in range(tokens) if t not in starts]
    counts = sorted((sum(unit in mask for mask in picked) for unit in range(units)), reverse=True)
    carriers = []
    for row in size:
        energy = np.sort(row**2)[::-1]
        carriers.append(next(n for n in range(1, units + 1) if energy[:n].sum() >= 0.9 * energy.sum()) / units)
    stored = np.abs(values.astype(np.float16)).astype(np.float64)
    p50, p99 = (float(np.quantile(stored, q, method="inverted_cdf")) for q in (0.5, 0.99))
    return {
        "mean": stored.mean(),
        "rms": math.sqrt((stored**2).mean()),
        "p50": p50,
        "p99": p99,
        "max": stored.max(),
        "tail": p99 / p50,
        "energy_share_90": float(np.mean(carriers)),
        "overlap": float(np.mean(pairs)),
        "popularity": sum(counts[: math.ceil(units / 10)]) / sum(counts),
    }


@pytest.mark.parametrize("block", [1, 500, 2**20])
@pytest.mark.parametrize("keep", [0.5, 0.2, 1.0])
def test_equals_plain_numpy(trace: Trace, block: int, keep: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracestats, "_BLOCK", block)
    stats = trace_stats(trace, keeps=[keep])
    assert list(stats.signals) == ["input", "up", "gate", "glu"]
    assert stats.tokens == 65
    for signal, layers in stats.layers.items():
        for layer, found in enumerate(layers):
            wanted = plain(trace.read(layer, signal), [s.tokens for s in SEQUENCES], keep)
            for name, value in wanted.items():
                got = getattr(found, name)
                assert (got[keep] if isinstance(got, dict) else got) == pytest.approx(value, rel=1e-12), (signal, name)


def test_over_all_layers(trace: Trace) -> None:
    stats = trace_stats(trace)
    for signal, layers in stats.layers.items():
        found = stats.signals[signal]
        pooled = np.concatenate([np.abs(trace.read(i, signal)).astype(np.float16) for i in range(len(layers))])
        assert found.p99 == np.quantile(pooled.astype(np.float64), 0.99, method="inverted_cdf")
        assert found.mean == pytest.approx(pooled.astype(np.float64).mean(), rel=1e-12)
        assert found.tail == pytest.approx(np.exp(np.mean([np.log(layer.tail) for layer in layers])))
        assert found.overlap[0.5] == pytest.approx(np.mean([layer.overlap[0.5] for layer in layers]))
        assert found.popularity[0.2] == pytest.approx(np.mean([layer.popularity[0.2] for layer in layers]))


def test_independent_tokens_overlap_by_chance(tmp_path: Path, rng: np.random.Generator) -> None:
    with one_signal(tmp_path / "t.npz", rng.normal(size=(200, 1000))) as trace:
        found = trace_stats(trace).signals["input"]
    assert found.overlap[0.5] == pytest.approx(0.5, abs=0.01)
    assert found.overlap[0.2] == pytest.approx(0.2, abs=0.01)
    assert found.tail == pytest.approx(2.5758 / 0.6745, rel=0.02)  # quantiles of |normal|


def test_equal_tokens_overlap_wholly_but_not_across_sequences(tmp_path: Path) -> None:
    units = np.arange(1, 21, dtype=np.float32)
    values = np.stack([units] * 3 + [units[::-1]] * 3)
    sequences = [Sequence(tokens=3), Sequence(tokens=3)]
    with one_signal(tmp_path / "t.npz", values, sequences) as trace:
        found = trace_stats(trace).signals["input"]
        assert found.overlap == {0.5: 1.0, 0.2: 1.0}
        # at keep 0.2 eight units are picked three times each of 24 picks: two of them are a quarter
        assert found.popularity == {0.5: pytest.approx(0.1), 0.2: pytest.approx(0.25)}
        assert trace_stats(trace, tokens=4).tokens == 4
    with one_signal(tmp_path / "one.npz", values) as trace:
        assert trace_stats(trace).signals["input"].overlap[0.5] == pytest.approx(4 / 5)


def test_one_unit_carries_all(tmp_path: Path) -> None:
    values = np.zeros((4, 10), np.float32)
    values[:3, 7] = 5
    with one_signal(tmp_path / "t.npz", values) as trace:
        found = trace_stats(trace).signals["input"]
    assert found.energy_share_90 == pytest.approx(3 / 4 * 0.1)  # the last token has no energy, and nobody to carry it
    assert found.tail is None
    assert (found.p50, found.max) == (0.0, 5.0)


def test_a_single_token_has_no_overlap(tmp_path: Path) -> None:
    with one_signal(tmp_path / "t.npz", np.ones((1, 8))) as trace:
        stats = trace_stats(trace)
    assert stats.signals["input"].overlap == {0.5: None, 0.2: None}
    json.dumps(dataclasses.asdict(stats), allow_nan=False)


def test_glu_of_a_model_without_a_gate(tmp_path: Path) -> None:
    shape = ModelShape(
        name="plain", num_hidden_layers=2, hidden_size=16, intermediate_size=32, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, vocab_size=10, gated=False, hidden_act="relu",
    )  # fmt: skip
    with Trace(write_trace(tmp_path / "t.npz", shape, signals=("input", "glu"))) as trace:
        assert list(trace_stats(trace).signals) == ["input", "glu"]


@pytest.mark.parametrize("wrong", [{"tokens": 0}, {"keeps": []}, {"keeps": [0.0]}, {"keeps": [1.5]}])
def test_out_of_bounds(trace: Trace, wrong: dict[str, object]) -> None:
    with pytest.raises(SettingError):
        trace_stats(trace, **wrong)  # type: ignore[arg-type]

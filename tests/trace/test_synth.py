"""Synthetic traces: the law against simulation, the fit against the law, and the file against the recorded one."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from hwsim.analysis.tracestats import SignalStats, TraceStats, trace_stats
from hwsim.errors import OutputError, SettingError, TraceError
from hwsim.model.catalog import known_shape
from hwsim.model.shape import ModelShape
from hwsim.testing import SMALL_MODEL
from hwsim.trace import Sequence, Trace
from hwsim.trace.synth import SignalFit, Windows, bundled, generate, law, synthesize
from hwsim.trace.synth import fit as fitting
from hwsim.util.kernels import top_k
from tests.conftest import Hwsim, write_trace

# relative; what the synthetic trace promises of each signal over all layers
TOLERANCE = {"tail": 0.06, "energy_share_90": 0.08, "overlap": 0.03, "popularity": 0.07}
WIDE = ModelShape(
    name="wide", num_hidden_layers=30, hidden_size=1280, intermediate_size=4480, num_attention_heads=10,
    num_key_value_heads=10, head_dim=128, vocab_size=100,
)  # fmt: skip


def overlap(values: np.ndarray, keep: float, lag: int = 1) -> float:
    k = int(keep * values.shape[1])
    masks = np.array([top_k(row, k) for row in np.abs(values)])
    return float((masks[lag:] & masks[:-lag]).sum(axis=1).mean() / k)


def by_law(spread: float, rho: float, tokens: int, units: int, rng: np.random.Generator) -> np.ndarray:
    """Signals drawn from the law in the plainest way: float32 ``[tokens, units]``."""
    scales = rng.permutation((1 - (np.arange(units) + 0.5) / units) ** -spread)
    z = [rng.normal(size=units)]
    for _ in range(tokens - 1):
        z.append(rho * z[-1] + math.sqrt(1 - rho**2) * rng.normal(size=units))
    return (scales * np.array(z)).astype(np.float32)


def misses(fitted: TraceStats, synthetic: TraceStats) -> dict[str, float]:
    """Relative difference of each statistic that is beyond its tolerance, as ``glu.overlap.0.5``."""
    found = {}
    for label, stats in synthetic.signals.items():
        for name, tolerance in TOLERANCE.items():
            for key, wanted in _values(fitted.signals[label], name).items():
                miss = _values(stats, name)[key] / wanted - 1
                if abs(miss) > tolerance:
                    found[f"{label}.{name}{key}"] = miss
    return found


def _values(stats: SignalStats, name: str) -> dict[str, float]:
    value = getattr(stats, name)
    return {f".{keep}": each for keep, each in value.items()} if isinstance(value, dict) else {"": value}


# ---------------------------------------------------------------------- the law


def test_normal_tail() -> None:
    x = np.array([-8.0, -1.0, 0.0, 0.3, 1.0, 3.3, 7.7, 20.0, 30.0])
    wanted = [math.erfc(value / math.sqrt(2)) / 2 for value in x]
    np.testing.assert_allclose(law.upper(x), wanted, rtol=1e-5)
    assert law.upper(np.array([50.0]))[0] < 1e-290


@pytest.mark.parametrize("units", [48, 5120])
@pytest.mark.parametrize("spread", [0.0, 0.3, 1.5])
def test_exceed_is_the_mixture_of_all_units(units: int, spread: float) -> None:
    y = np.geomspace(1e-3, 1e4, 50)
    scales = (1 - (np.arange(units) + 0.5) / units) ** -spread
    wanted = np.array([np.mean(2 * law.upper(value / scales)) for value in y])
    found = law.exceed(y, units, spread)
    np.testing.assert_allclose(found[wanted > 1e-12], wanted[wanted > 1e-12], rtol=3e-3)


@pytest.mark.parametrize(("spread", "rho"), [(0.0, 0.0), (0.0, 0.7), (0.3, 0.5), (0.8, 0.6)])
def test_overlaps_of_the_law(spread: float, rho: float, rng: np.random.Generator) -> None:
    values = by_law(spread, rho, 120, 4000, rng)
    for keep in (0.5, 0.2):
        assert np.interp(spread, *law.far_overlaps(keep)) == pytest.approx(overlap(values, keep, 60), rel=0.02)
        assert np.interp(rho, *law.next_overlaps(keep, spread)) == pytest.approx(overlap(values, keep), rel=0.01)


def test_without_likeness_overlap_is_chance() -> None:
    assert law.far_overlaps(0.3)[1][0] == pytest.approx(0.3, rel=1e-3)
    assert law.next_overlaps(0.3, 0.0)[1][0] == pytest.approx(0.3, rel=1e-3)


# ---------------------------------------------------------------------- the fit


@pytest.mark.parametrize(("spread", "rho"), [(0.0, 0.0), (0.2, 0.3), (0.4, 0.6), (1.0, 0.8)])
def test_fit_finds_what_was_put_in(spread: float, rho: float, rng: np.random.Generator) -> None:
    values = by_law(spread, rho, 200, 2000, rng)
    found = fitting.fit_signal([values[:100], values[100:]])
    assert found.spread == pytest.approx(spread, abs=0.03)
    assert found.rho == pytest.approx(rho, abs=0.03 if rho else 0.1)  # overlaps hardly feel a small rho
    draw = generate.Stream(0, 0, "input", 2000, found).draw(np.arange(200) == 0)
    for keep in (0.5, 0.2):
        assert overlap(draw, keep) == pytest.approx(overlap(values, keep), rel=0.03)
    for q in (0.1, 0.5, 0.9, 0.99, 0.999):
        assert np.quantile(np.abs(draw), q) == pytest.approx(np.quantile(np.abs(values), q), rel=0.06)


def test_mostly_zeros_stay_mostly_zeros(rng: np.random.Generator) -> None:
    values = by_law(0.3, 0.5, 100, 3000, rng)
    values = np.maximum(values - np.quantile(values, 0.9), 0)  # as after a ReLU
    draw = generate.Stream(0, 0, "glu", 3000, fitting.fit_signal([values])).draw(np.arange(100) == 0)
    assert np.mean(draw > 0) == pytest.approx(0.1, abs=0.02)
    assert np.mean(draw < 0) < 0.02
    for keep in (0.05, 0.02):
        assert overlap(draw, keep) == pytest.approx(overlap(values, keep), rel=0.06)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_constant_signal_can_be_drawn(value: float) -> None:
    found = fitting.fit_signal([np.full((40, 64), value, np.float32)])
    draw = generate.Stream(0, 0, "input", 64, found).draw(np.arange(20) == 0)
    np.testing.assert_allclose(np.abs(draw), value, rtol=1e-5)


def test_first_tokens_are_left_out(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "t.npz", sequences=[Sequence(tokens=30), Sequence(tokens=20)])
    with Trace(path) as trace:
        assert fitting._runs(trace) == [(1, 30), (31, 50)]


def test_between_two_layers(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "t.npz")
    with Trace(path) as trace:
        fitter = fitting.Fitter(trace)
        one, two = fitter.at(0.5, "input"), fitter.at(1.0, "input")
        between = fitter.at(0.75, "input")
    assert between.rho == pytest.approx((one.rho + two.rho) / 2)
    np.testing.assert_allclose(between.log_magnitude, (one.log_magnitude + two.log_magnitude) / 2)


# ---------------------------------------------------------------------- against the recorded trace


@pytest.fixture(scope="module")
def recorded():
    with Trace(bundled()) as trace:
        yield trace


@pytest.fixture(scope="module")
def recorded_stats(recorded: Trace) -> TraceStats:
    return trace_stats(recorded)


@pytest.fixture(scope="module")
def twin(recorded: Trace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic trace of the recorded one's own shape and length."""
    path = tmp_path_factory.mktemp("synth") / "twin.npz"
    synthesize(path, recorded.model, recorded.header.tokens)
    return path


def test_statistics_of_the_same_shape(twin: Path, recorded_stats: TraceStats) -> None:
    with Trace(twin) as trace:
        assert misses(recorded_stats, trace_stats(trace)) == {}


def test_statistics_of_another_shape(tmp_path: Path, recorded: Trace, recorded_stats: TraceStats) -> None:
    synthesize(tmp_path / "wide.npz", WIDE, recorded.header.tokens)
    with Trace(tmp_path / "wide.npz") as trace:
        assert misses(recorded_stats, trace_stats(trace)) == {}


@pytest.mark.parametrize(
    ("broken", "told_by"),
    [
        ({"rho": 0.0}, "glu.overlap.0.2"),  # tokens that do not follow each other
        ({"spread": 0.0}, "glu.popularity.0.2"),  # units that are all alike
        ({"log_magnitude": np.linspace(-1.0, 1.0, fitting.RANKS.size)}, "glu.tail"),  # a light tail
        ({"log_magnitude": np.linspace(-9.0, 9.0, fitting.RANKS.size)}, "input.energy_share_90"),  # a heavy one
    ],
)
def test_the_comparison_can_fail(
    broken: dict[str, object],
    told_by: str,
    tmp_path: Path,
    recorded_stats: TraceStats,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = fitting.Fitter.at

    def without(self: fitting.Fitter, depth: float, signal: str) -> SignalFit:
        return dataclasses.replace(honest(self, depth, signal), **broken)

    monkeypatch.setattr(fitting.Fitter, "at", without)
    small = WIDE.model_copy(update={"num_hidden_layers": 8, "hidden_size": 256, "intermediate_size": 640})
    synthesize(tmp_path / "t.npz", small, recorded_stats.tokens)
    with Trace(tmp_path / "t.npz") as trace:
        assert told_by in misses(recorded_stats, trace_stats(trace))


def test_replays_like_the_recorded_trace(twin: Path, recorded: Trace) -> None:
    from hwsim.device.profile import load_profile
    from hwsim.simulation.plugins import EVICTIONS, POLICIES
    from hwsim.simulation.settings import Settings
    from tests.runs import replay

    profile, settings = load_profile("pixel8"), Settings(dram="50%")
    with Trace(twin) as trace:
        for name in ("dip", "dip-ca"):
            one, two = (
                replay(each, profile, POLICIES.make(name)[1], EVICTIONS.make("lru")[1], settings)
                for each in (recorded, trace)
            )
            assert two.throughput_tok_s == pytest.approx(one.throughput_tok_s, rel=0.02), name
            assert two.hit_rate == pytest.approx(one.hit_rate, abs=0.015), name


# ---------------------------------------------------------------------- the file


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory):
    """A small trace to fit to, with up and gate."""
    path = tmp_path_factory.mktemp("like") / "gated.npz"
    with Trace(write_trace(path, signals=("input", "up", "gate", "attn_input"))) as trace:
        yield trace


def test_same_arguments_same_bytes(tmp_path: Path, gated: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(name: str, seed: int = 0) -> bytes:
        synthesize(tmp_path / name, SMALL_MODEL, Windows(60, context=25), like=gated, seed=seed)
        return (tmp_path / name).read_bytes()

    first = made("a")
    assert made("b") == first
    assert made("other", seed=1) != first
    for block in (1, 7 * 48, 2**30):  # one token at a time; seven; everything
        monkeypatch.setattr(generate, "_BLOCK", block)
        assert made(f"block{block}") == first


def test_streams_differ(gated: Trace) -> None:
    fit = fitting.Fitter(gated).at(0.0, "up")
    draws = [
        generate.Stream(*key, 48, fit).draw(np.arange(5) == 0)
        for key in [(0, 0, "up"), (0, 0, "gate"), (0, 1, "up"), (1, 0, "up")]
    ]
    assert all(not np.allclose(one, two) for i, one in enumerate(draws) for two in draws[:i])


def test_header(tmp_path: Path, gated: Trace) -> None:
    synthesize(
        tmp_path / "t.npz",
        WIDE.model_copy(update={"num_hidden_layers": 2}),
        Windows(70, context=32, prompt=4),
        like=gated,
    )
    with Trace(tmp_path / "t.npz") as trace:
        header = trace.header
        assert (header.origin, header.model.name) == ("synthetic", "wide")
        assert header.signals == gated.header.signals
        assert header.sequences == [Sequence(tokens=n, prompt=4) for n in (32, 32, 6)]
        fitted = header.provenance["fitted_to"]
        assert (fitted["name"], fitted["hash"]) == (gated.path.name, gated.hash)
        assert header.provenance["seed"] == 0
        assert list(trace.verify())
    assert [file.name for file in tmp_path.iterdir()] == ["t.npz"]


def test_sequences_begin_afresh(gated: Trace) -> None:
    fit = dataclasses.replace(fitting.Fitter(gated).at(0.0, "up"), rho=0.9, spread=0.0)
    starts = np.arange(40) % 20 == 0
    draw = generate.Stream(0, 0, "up", 5000, fit).draw(starts)
    assert overlap(draw[18:20], 0.2) > 0.6
    assert overlap(draw[19:21], 0.2) == pytest.approx(0.2, abs=0.04)


def test_up_and_gate_make_glu(tmp_path: Path, gated: Trace) -> None:
    synthesize(tmp_path / "t.npz", SMALL_MODEL, 40, like=gated, signals=["up", "gate"])
    with Trace(tmp_path / "t.npz") as trace:
        glu = trace.read(0, "glu")
        np.testing.assert_array_equal(glu, trace.read(0, "up") * trace.read(0, "gate"))
    synthesize(tmp_path / "glu.npz", SMALL_MODEL, 40, like=gated, signals=["glu"])
    with Trace(tmp_path / "glu.npz") as trace:
        assert trace.header.signals == ["glu"]
        assert np.abs(trace.read(0, "glu")).mean() == pytest.approx(np.abs(glu).mean(), rel=0.5)


def test_signs_follow_the_recorded_ones(rng: np.random.Generator) -> None:
    x = by_law(0.3, 0.5, 200, 1000, rng)
    gate = x / (1 + np.exp(-3 * x))  # small where negative, as after SiLU
    draw = generate.Stream(0, 0, "gate", 1000, fitting.fit_signal([gate])).draw(np.arange(200) == 0)
    large = np.quantile(np.abs(gate), 0.8)
    assert np.mean(draw[np.abs(draw) > large] > 0) > 0.98
    assert np.mean(draw > 0) == pytest.approx(np.mean(gate > 0), abs=0.05)


def test_a_model_without_a_gate_gets_glu(tmp_path: Path, gated: Trace) -> None:
    shape = known_shape("opt-350m").model_copy(
        update={"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 64}
    )
    assert synthesize(tmp_path / "t.npz", shape, 20, like=gated).signals == ["input", "glu", "attn_input"]


def test_memory_does_not_grow_with_tokens(tmp_path: Path, gated: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "_BLOCK", 16 * 2048)
    shape = SMALL_MODEL.model_copy(update={"num_hidden_layers": 1, "hidden_size": 2048})

    def peak(tokens: int) -> int:
        tracemalloc.start()
        synthesize(tmp_path / "t.npz", shape, tokens, like=gated, signals=["input"])
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(16)  # tables that are made once
    assert peak(800) < 1.1 * peak(200) + 100_000


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"tokens": 0}, SettingError, "tokens 0"),
        ({"tokens": Windows(50, context=0)}, SettingError, "context 0"),
        ({"tokens": Windows(50, prompt=-1)}, SettingError, "prompt -1"),
        ({"tokens": Windows(50, context=48, prompt=2)}, SettingError, "leaves nothing to decode of the shortest"),
        ({"signals": []}, SettingError, "at least one"),
        ({"signals": ["input", "input"]}, SettingError, "once"),
        ({"signals": ["gat"]}, SettingError, "did you mean 'gate'"),
        ({"signals": ["attn_output"]}, TraceError, "hwsim record --signals attn_output"),
        ({"path": "no/such/folder/t.npz"}, OutputError, "does not exist"),
    ],
)
def test_refused_in_one_line(
    settings: dict[str, object], error: type[Exception], words: str, tmp_path: Path, gated: Trace
) -> None:
    arguments = {"path": tmp_path / "t.npz", "tokens": 50} | settings
    with pytest.raises(error, match=words) as caught:
        synthesize(model=SMALL_MODEL, like=gated, **arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_too_short_to_fit(tmp_path: Path) -> None:
    with (
        Trace(write_trace(tmp_path / "t.npz", sequences=[Sequence(tokens=16)])) as trace,
        pytest.raises(TraceError, match="has 15 tokens"),
    ):
        synthesize(tmp_path / "out.npz", SMALL_MODEL, 10, like=trace)


def test_an_interrupted_run_leaves_nothing_and_keeps_the_old_file(tmp_path: Path, gated: Trace) -> None:
    (tmp_path / "t.npz").write_bytes(b"old")

    def stop(phase: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize(tmp_path / "t.npz", SMALL_MODEL, 30, like=gated, progress=stop)
    assert [file.name for file in tmp_path.iterdir()] == ["t.npz"]
    assert (tmp_path / "t.npz").read_bytes() == b"old"


# ---------------------------------------------------------------------- the command


def test_command(hwsim: Hwsim, tmp_path: Path) -> None:
    like = write_trace(tmp_path / "like.npz")
    command = ["synth", "--model", "smollm2-135m", "--tokens", "20", "--like", like, "--json", "-"]
    done = hwsim(*command)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["file"] == "smollm2-135m-synthetic.npz"
    assert set(told["statistics"]["synthetic"]) == {"tokens", "input", "up", "gate", "glu"}
    with Trace(tmp_path / told["file"]) as trace:
        assert (trace.size, trace.header.tokens, trace.header.origin) == (told["bytes"], 20, "synthetic")
    again = hwsim(*command)
    assert again.returncode == 1
    assert again.stderr.count("\n") == 1
    assert "--overwrite" in again.stderr
    table = hwsim(*command[:-2], "--overwrite", "--signals", "input", "--json", "out.json")
    assert table.returncode == 0, table.stderr
    assert "synthetic: 20 tokens of smollm2-135m" in table.stdout
    assert "overlap at keep 0.5" in table.stdout
    assert json.loads((tmp_path / "out.json").read_text())["signals"] == ["input"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "phi3-medum"], "did you mean 'phi3-medium'"),
        (["--model", "phi3-medium", "--like", "none.npz"], "none.npz: cannot be opened"),
        (["--model", "phi3-medium", "--signals", ""], "at least one"),
        (["--model", "phi3-medium", "--tokens", "-3"], "tokens -3"),
    ],
)
def test_command_refuses_in_one_line(options: list[str], words: str, hwsim: Hwsim, tmp_path: Path) -> None:
    done = hwsim("synth", *options)
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_command_interrupted_leaves_nothing(tmp_path: Path) -> None:
    # a job in the background ignores the signal unless it asks for it
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from hwsim.cli import main; main()"
    )
    command = [sys.executable, "-c", program, "synth", "--model", "phi3-medium"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("*.progress.json")) and process.poll() is None:
        time.sleep(0.02)
    time.sleep(0.3)  # in the middle of the drawing
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == "hwsim: interrupted; nothing was left half-written\n"
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []

"""The compiled scan decides what the plain one decides, to the bit: masks, hits, and what the caches hold."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba", reason="the compiled scan needs the extra `fast`")

import llvmlite.binding as llvm

from hwsim.cache import compiled
from hwsim.cache.cache import Cache, rank_update
from hwsim.errors import ContractError
from hwsim.evictions.lfu import Lfu
from hwsim.evictions.lru import Lru
from hwsim.masking.decider import _Stored
from hwsim.masking.streams import Masking, PolicyStream, signal_blocks
from hwsim.policy import Context, Group, Policy, Scores
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.simulation.settings import Settings
from hwsim.testing import SMALL_MODEL, RandomSignals
from hwsim.trace import Sequence, Trace
from hwsim.util import kernels
from tests.conftest import flat_profile, write_trace
from tests.runs import Told, layout, scan

RULES = {"lru": "last", "lfu": "count", "fifo": "first"}
RANKS = {"lru": -1, "lfu": 0, "fifo": -1}


def plain(values: np.ndarray, uncached: np.ndarray, k: int, capacity: int, rule: str) -> tuple[Any, Any, Cache]:
    """Token by token: numpy's where, the plain top-k, the plain cache."""
    cache = Cache(values.shape[1], capacity, EVICTIONS.make(rule)[1])
    cache.start()
    masks, hits = [], []
    for value, factor in zip(values, uncached, strict=True):
        mask = kernels.top_k(np.where(cache.view, value, factor * value), k)
        masks.append(mask.copy())
        hits.append(cache.step(mask)[1])
    return np.array(masks), np.array(hits), cache


@st.composite
def cases(draw: Any) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Scores with ties, zeros of both signs, infinities, all equal; any k and capacity."""
    units, tokens = draw(st.integers(1, 40) | st.integers(60, 300)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = rng.standard_t(3, size=(tokens, units)).astype(np.float32)
    kinds = ["any", "ties", "zeros", "infinite", "magnitudes", "equal", "tiny", "half", "spread"]
    kinds += ["half ties", "half spread", "close"]
    kind = draw(st.sampled_from(kinds))
    if kind == "ties":
        values = np.round(values)
    elif kind == "zeros":
        values = np.where(rng.random(values.shape) < 0.5, rng.choice(np.float32([0.0, -0.0]), values.shape), values)
    elif kind == "infinite":
        values[rng.random(values.shape) < 0.2] = rng.choice(np.float32([np.inf, -np.inf]))
    elif kind == "magnitudes":
        values = np.abs(values)
    elif kind == "equal":
        values[:] = draw(st.sampled_from([0.0, 1.0, -2.5]))
    elif kind == "tiny":
        values *= np.float32(1e-42)
    elif kind == "half":
        values = np.abs(values).astype(np.float16).astype(np.float32)
    elif kind == "half ties":
        values = np.round(np.abs(values), 1).astype(np.float16).astype(np.float32)
    elif kind == "half spread":  # tiny ones, zeros and the largest among them
        spread = 10.0 ** rng.uniform(-9, 4.8, values.shape)
        values = np.minimum(spread, 65504).astype(np.float16).astype(np.float32)
    elif kind == "close":  # many share a key, and products with a factor lie between two keys
        values = np.float32(1) + rng.integers(0, 64, values.shape).astype(np.float32) * np.float32(2.0**-14)
        values *= np.where(rng.random(values.shape) < 0.5, np.float32(5), np.float32(1))
    elif kind == "spread":
        values = np.float32(10.0 ** rng.uniform(-40, 38, values.shape)) * np.sign(values)
    factors = (
        [1.0, 0.5, 0.2, 0.3333, 1e-3, 1e-30, 2.5]
        if kind == "infinite"
        else [1.0, 0.5, 0.2, 0.3333, 1e-3, 1e-30, 2.5, 0.0]
    )  # 0 x infinity is NaN
    uncached = rng.choice(np.float32(factors), tokens)
    return values, uncached, draw(st.integers(1, units)), draw(st.integers(0, units))


@settings(max_examples=300)
@given(case=cases(), rule=st.sampled_from(sorted(RULES)))
def test_the_kernel_is_its_plain_twin(case: Any, rule: str) -> None:
    values, uncached, k, capacity = case
    masks, hits, cache = plain(values, uncached, k, capacity, rule)
    kinds = [values]
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    if np.array_equal(np.abs(halves.astype(np.float32)), values) and np.isfinite(values).all():
        signs = np.float16(1) - 2 * np.random.default_rng(1).integers(0, 2, halves.shape).astype(np.float16)
        kinds += [halves, halves * signs]  # of these the magnitudes are the scores
    for kind in kinds:
        cached, rank = np.zeros(values.shape[1], bool), np.full(values.shape[1], RANKS[rule], np.int32)
        found, there = compiled.serve(kind, uncached, k, capacity, RULES[rule], cached, rank, 0)  # type: ignore[arg-type]
        np.testing.assert_array_equal(found, masks)
        np.testing.assert_array_equal(there, hits)
        np.testing.assert_array_equal(cached, cache.view)
        if capacity:
            np.testing.assert_array_equal(rank, cache._state)


@pytest.mark.parametrize("rule", sorted(RULES))
@pytest.mark.parametrize("size", ["mask above capacity", "some stay", "all stay"])
def test_the_kernel_at_the_size_of_a_large_model(rule: str, size: str) -> None:
    units, tokens = 5120, 40
    rng = np.random.default_rng(7)
    values = np.abs(rng.standard_t(3, units) + rng.standard_t(3, (tokens, units)))
    values = values.astype(np.float16).astype(np.float32)
    k = 2700
    capacity = {"mask above capacity": 2000, "some stay": 3300, "all stay": 5000}[size]
    test_the_kernel_is_its_plain_twin.hypothesis.inner_test(  # type: ignore[attr-defined]
        case=(values, np.full(tokens, 0.2, np.float32), k, capacity), rule=rule
    )


@pytest.mark.parametrize("rule", sorted(RULES))
def test_more_units_than_16_bits_count(rule: str) -> None:
    rng = np.random.default_rng(3)
    values = np.round(np.abs(rng.standard_normal((10, 70_000))), 3).astype(np.float32)  # with many ties
    test_the_kernel_is_its_plain_twin.hypothesis.inner_test(  # type: ignore[attr-defined]
        case=(values, np.full(10, 0.5, np.float32), 40_000, 50_000), rule=rule
    )


@pytest.mark.parametrize("rule", sorted(RULES))
def test_more_tokens_than_16_bits_count(rule: str) -> None:
    rng = np.random.default_rng(5)
    values = np.abs(rng.standard_normal((33_000, 9))).astype(np.float16).astype(np.float32)
    test_the_kernel_is_its_plain_twin.hypothesis.inner_test(  # type: ignore[attr-defined]
        case=(values, np.full(len(values), 0.5, np.float32), 4, 6), rule=rule
    )


@pytest.mark.parametrize("rule", sorted(RULES))
@pytest.mark.parametrize("spread", [100, 70_000, 10_000_000])
def test_ranks_of_long_sequences_decide_alike_in_one_block_and_token_by_token(rule: str, spread: int) -> None:
    # ranks that lie closer than 16 bits are compared as such, others and single tokens whole
    rng, tokens, token = np.random.default_rng(11), 30, 12_000_000
    values = np.abs(rng.standard_normal((tokens, 300))).astype(np.float32)
    factors, ranks = np.full(tokens, 0.5, np.float32), rng.integers(token - spread, token, 300).astype(np.int32)
    there = np.arange(300) < 200
    ends = []
    for steps in ([tokens], [1] * tokens):
        cached, rank, found, at = there.copy(), ranks.copy(), [], 0
        for step in steps:
            part = slice(at, at + step)
            masks, hits = compiled.serve(
                values[part],
                factors[part],
                150,
                200,
                RULES[rule],
                cached,
                rank,
                token + at,  # type: ignore[arg-type]
            )
            found += list(zip(masks.tolist(), hits.tolist(), strict=True))
            at += step
        ends.append((found, cached.tolist(), rank[cached].tolist()))
    assert ends[0] == ends[1]


class Infinite(Policy):
    """Scores of which those that are not cached become 0 x infinity."""

    def groups(self, model: Any) -> list[Group]:
        return [Group("down", axis="neuron", slices=["down.column"], keep=0.5, needs=["glu"])]

    def score(self, ctx: Context) -> np.ndarray:
        return np.where(ctx.cached, 1, 0) * np.full(ctx.units, np.inf, np.float32)

    def scores(self, ctx: Context) -> Scores:
        values = np.full(ctx.signals["glu"].shape, np.inf, np.float32)
        return Scores(values, np.zeros(len(values), np.float32))


def test_zero_times_infinity_is_told_with_its_place() -> None:
    with np.errstate(invalid="ignore"), pytest.raises(ContractError, match=r"token 0: returned NaN for unit 0"):
        run(stream_of(Infinite()))


@pytest.mark.parametrize("rule", ["lru", "lfu", "fifo", "none", "s3fifo", "arc", "belady", "belady-bypass"])
@pytest.mark.parametrize("name", ["dip", "dip-ca", "magnitude", "oracle", "up", "gate"])
@pytest.mark.parametrize("dram", ["75%", "95%"])
def test_a_scan_in_blocks_is_the_scan_token_by_token(name: str, rule: str, dram: str) -> None:
    policy, eviction = POLICIES.make(name, {"density": 0.8})[1], EVICTIONS.make(rule)[1]
    if eviction.needs_future and name == "dip-ca":
        pytest.skip("looks at the cache")
    plans = layout(SMALL_MODEL, flat_profile(), policy, 40, Settings(dram=dram), name).plans
    source = RandomSignals(SMALL_MODEL, 60)
    for place in plans.places([1]):
        runs = []
        for fast in (False, True):
            stream = PolicyStream(Masking(SMALL_MODEL, policy, plans, eviction, name=name), place, fast=fast)
            assert stream.compiled is (fast and stream._cache.rank_update is not None)
            found = []
            for number, span in enumerate((range(33), range(33, 60))):
                stream.begin(number)
                # blocks of several sizes follow each other
                for part in [span] if eviction.needs_future else [span[:7], span[7:]]:
                    for masks, requests, hits, *_ in stream.run(signal_blocks(source, place.plan, part)):
                        count = np.full(len(masks), requests)
                        found += list(zip(masks.copy().tolist(), count, np.full(len(masks), hits), strict=True))
            runs.append((found, stream.cached.tolist()))
        assert runs[0] == runs[1]


@pytest.mark.parametrize("changes", [{"fixed_top_n": 3}, {"alpha_blend": True}, {"warm_up": True}])
def test_options_of_dip_ca_decide_alike(changes: dict[str, Any]) -> None:
    policy, eviction = POLICIES.make("dip-ca", changes)[1], Lfu()
    plans = layout(SMALL_MODEL, flat_profile(), policy, 40, Settings(dram="80%")).plans
    (place, _) = plans.places([0])
    runs = []
    for fast in (False, True):
        stream = PolicyStream(Masking(SMALL_MODEL, policy, plans, eviction, name="dip-ca"), place, fast=fast)
        stream.begin(0)
        blocks = signal_blocks(RandomSignals(SMALL_MODEL, 30), place.plan, range(30))
        runs.append(np.concatenate([served.masks.copy() for served in stream.run(blocks)]))
    np.testing.assert_array_equal(*runs)


# ---------------------------------------------------------------------- who is asked in blocks


class Twice(POLICIES.find("dip")[1]):  # type: ignore[misc]
    """Another score without scores of its own."""

    def score(self, ctx: Context) -> np.ndarray:
        return -super().score(ctx)


class Wrong(Policy):
    """Scores of another type."""

    answer: ClassVar[Any] = None

    def groups(self, model: Any) -> list[Group]:
        return [Group("down", axis="neuron", slices=["down.column"], keep=0.5, needs=["glu"])]

    def score(self, ctx: Context) -> np.ndarray:
        return np.full(ctx.units, np.nan, np.float32)

    def scores(self, ctx: Context) -> Any:
        return self.answer(ctx)


def stream_of(policy: Policy, eviction: Any = None, fast: bool = True) -> PolicyStream:
    plans = layout(SMALL_MODEL, flat_profile(), policy, 40, Settings(dram="80%")).plans
    masking = Masking(SMALL_MODEL, policy, plans, eviction or Lru(), name="p")
    return PolicyStream(masking, plans.places([0])[-1], fast=fast)


def run(stream: PolicyStream) -> None:
    stream.begin(0)
    list(stream.run(signal_blocks(RandomSignals(SMALL_MODEL, 5), stream.plan, range(5))))


def test_a_subclass_with_another_rule_is_asked_token_by_token() -> None:
    class Counts(Lru):
        """Uses more than it says."""

        def use(self, state: Any, use: Any) -> None:
            state[use.mask] += 2

    assert not stream_of(Twice())._fast
    assert rank_update(Lru) == "last"
    assert rank_update(Counts) is None
    assert not stream_of(POLICIES.make("dip")[1], Counts())._fast
    assert stream_of(POLICIES.make("dip")[1])._fast


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda ctx: np.ones((5, ctx.units), np.float32), r"scores\(\) at layer 0, group down, token 0: needs Scores"),
        (lambda ctx: Scores(np.ones((5, ctx.units))), "needs Scores of float32"),
        (lambda ctx: Scores(np.ones((4, ctx.units), np.float32)), r"of shape \(5, 120\)"),
        (lambda ctx: Scores(np.ones((5, ctx.units), np.float32), np.ones(4, np.float32)), r"and \(5,\) of what is"),
        (
            lambda ctx: Scores(np.full((5, ctx.units), np.nan, np.float32)),
            r"score\(\) .*token 0: returned NaN for unit 0",
        ),
        (lambda ctx: 1 / 0, r"scores\(\) .* raised ZeroDivisionError"),
    ],
)
def test_scores_that_break_the_contract(answer: Any, message: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(Wrong, "answer", staticmethod(answer))
    with pytest.raises(ContractError, match=message):
        run(stream_of(Wrong()))


class Negative(POLICIES.find("dip")[1]):  # type: ignore[misc]
    """What is not cached counts less than nothing."""

    def score(self, ctx: Context) -> np.ndarray:
        value = super().score(ctx)
        return np.where(ctx.cached, value, np.float32(-0.5) * value)

    def scores(self, ctx: Context) -> Scores | None:
        values = np.abs(ctx.signals[ctx.group.needs[0]])
        return Scores(values, np.full(len(values), -0.5, np.float32))


def test_a_factor_that_turns_the_order_is_decided_token_by_token() -> None:
    runs = []
    for fast in (False, True):
        stream = stream_of(Negative(), fast=fast)
        stream.begin(0)
        blocks = signal_blocks(RandomSignals(SMALL_MODEL, 12), stream.plan, range(12))
        runs.append(np.concatenate([served.masks.copy() for served in stream.run(blocks)]))
    np.testing.assert_array_equal(*runs)


class Widened:
    """A trace whose float16 nobody sees."""

    def __init__(self, trace: Trace) -> None:
        self.read, self.norm = trace.read, trace.norm


@pytest.mark.parametrize("stored", ["input,glu", "input,up,gate"])
@pytest.mark.parametrize("name", ["dip", "dip-ca", "magnitude", "oracle", "up", "gate"])
def test_what_is_stored_decides_as_what_is_read(name: str, stored: str, tmp_path: Path, monkeypatch: Any) -> None:
    """float16 of a trace is handed to the compiled scan as it is: masks, hits and contents are those of float32."""
    monkeypatch.setattr("hwsim.masking.streams._WORTH", 0)
    names = stored.split(",")
    if name in ("up", "gate") and name not in names:
        pytest.skip("not in it")
    path = write_trace(tmp_path / "a.npz", sequences=[Sequence(tokens=60)], signals=tuple(names))
    policy = POLICIES.make(name, {"density": 0.8})[1]
    plans = layout(SMALL_MODEL, flat_profile(), policy, 60, Settings(dram="85%"), name).plans
    with Trace(path) as trace:
        halves = {signal: trace.read_halves(0, signal) for signal in names}
        assert all(each is not None and each.dtype == np.float16 for each in halves.values())
        assert trace.has("glu") and (trace.read_halves(0, "glu") is None) == ("glu" not in names)
        runs = []
        for given in (trace, Widened(trace)):
            told: list[Any] = []
            observer = Told(
                lambda *args, to=told: to.append((*args[:3], args[3].tolist())),
                lambda *args, to=told: to.append((*args[:2], args[2].tolist())),
            )
            counts = scan(
                given, trace.header.sequences, policy, plans, Lru(), model=SMALL_MODEL, name=name, observers=[observer]
            )
            runs.append((counts.requests.tolist(), counts.hits.tolist(), told))
    assert runs[0] == runs[1]


def test_a_policy_sees_all_signals_of_a_block_as_float32() -> None:
    halves = np.arange(6, dtype=np.float16).reshape(2, 3)
    seen = _Stored({"glu": halves, "norm_down": np.ones(3, np.float32)})
    assert list(seen) == ["glu", "norm_down"]
    assert "glu" in seen
    assert "up" not in seen
    assert {name: (values.dtype, values.flags.writeable) for name, values in seen.items()} == {
        "glu": (np.float32, False),
        "norm_down": (np.float32, True),
    }
    assert seen["glu"] is seen["glu"]
    with pytest.raises(KeyError, match=r"signal 'up' is not among what this group needs \(glu, norm_down\)"):
        seen["up"]


_LOOK = r"""
import re, sys
import numpy as np
from hwsim.cache import compiled
from hwsim.cache import compiled_loops

for kind in (np.float16, np.float32):
    for rule in ("last", "count", "first"):
        values = np.random.default_rng(0).random((16, 200)).astype(kind)
        cached, rank = np.zeros(200, bool), np.zeros(200, np.int32)
        compiled.serve(values, np.full(16, 0.5, np.float32), 90, 120, rule, cached, rank, 0)
for name in sys.argv[1:]:
    found = "".join(getattr(compiled_loops, name).inspect_asm().values())
    print(name, len(re.findall(r"vp(?:cmpgt|cmpeq|maxs|mins|sub)[wd][^\n]*%ymm", found)))
"""


@pytest.mark.skipif("avx2" not in llvm.get_host_cpu_features(), reason="looks at the code of a processor with AVX2")
def test_loops_become_vector_instructions(tmp_path: Path) -> None:
    """Of the oldest processor that is common: a load or store under a condition makes a loop 20 times slower there, and
    no longer so where memory can be masked."""
    least = {"reach": 2, "reach_first": 2, "reach_first_half": 2, "settle": 15, "remain": 2, "above": 2}
    features = ",".join(f"+{name}" for name in ("avx2", "avx", "fma", "sse4.2", "popcnt", "bmi", "bmi2"))
    changes = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", _LOOK, *least], env=os.environ | changes, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = {name: int(count) for name, count in (line.split() for line in done.stdout.splitlines())}
    assert found.keys() == least.keys()
    assert {name: count for name, count in found.items() if count < least[name]} == {}


def test_check_policy_holds_scores_to_score() -> None:
    from hwsim.testing import check_policy

    class Squares(Policy):
        """Columns of down by glu, squared; of many tokens by something else."""

        def groups(self, model: Any) -> list[Group]:
            return [Group("down", axis="neuron", slices=["down.column"], keep=0.5, needs=["glu"])]

        def score(self, ctx: Context) -> np.ndarray:
            return ctx.signals["glu"] ** 2

        def scores(self, ctx: Context) -> Scores:
            return Scores(ctx.signals["glu"])

    with pytest.raises(
        ContractError, match=r"scores\(\) at layer 0, group down, token 0 choose other units than score"
    ):
        check_policy(Squares)
    assert "scores() of many tokens, where it has them, are those of score()" in check_policy(
        POLICIES.find("dip-ca")[1]
    )


def test_check_policy_finds_what_breaks_with_a_trace_only() -> None:
    from hwsim.testing import check_policy

    class Doubled(Policy):
        """Columns of down by |glu|, doubled where many are asked for: magnitudes that are not computed have no double."""

        def groups(self, model: Any) -> list[Group]:
            return [Group("down", axis="neuron", slices=["down.column"], keep=0.5, needs=["glu"])]

        def score(self, ctx: Context) -> np.ndarray:
            return np.abs(ctx.signals["glu"]) * 2

        def scores(self, ctx: Context) -> Scores:
            return Scores(ctx.magnitudes("glu") * 2)  # type: ignore[operator]

    with pytest.raises(
        ContractError, match=r"scores\(\) at layer 0, group down, token 0: raised TypeError: .*Magnitudes"
    ):
        check_policy(Doubled)


# ---------------------------------------------------------------------- threads


@pytest.mark.parametrize("rule", ["lru", "lfu", "belady", "s3fifo"])
@pytest.mark.parametrize("name", ["dip", "dip-ca", "random", "up"])
def test_threads_find_the_same(name: str, rule: str, monkeypatch: Any) -> None:
    """Whoever decides which layer: requests, hits, contents, and who is told of layers in which order."""
    monkeypatch.setattr("hwsim.masking.streams._WORTH", 0)
    policy, eviction = POLICIES.make(name, {"density": 0.8})[1], EVICTIONS.make(rule)[1]
    if rule == "belady" and name == "dip-ca":
        eviction = Lru()
    plans = layout(SMALL_MODEL, flat_profile(), policy, 40, Settings(dram="85%"), name).plans
    runs = []
    for threads in (1, 3):
        told: list[Any] = []
        observer = Told(
            contents=lambda *args, to=told: to.append((*args[:2], args[2].tolist())),
            progress=lambda *args, to=told: to.append(args),
        )
        counts = scan(
            RandomSignals(SMALL_MODEL, 60), [Sequence(tokens=40, prompt=3), Sequence(tokens=20)], policy, plans,
            eviction, model=SMALL_MODEL, name=name, observers=[observer], threads=threads,
        )  # fmt: skip
        runs.append((counts.requests.tolist(), counts.hits.tolist(), told))
    assert runs[0] == runs[1]


def test_the_first_error_of_several_threads_is_told(monkeypatch: Any) -> None:
    monkeypatch.setattr("hwsim.masking.streams._WORTH", 0)
    policy, sequences = Infinite(), [Sequence(tokens=20)]
    plans = layout(SMALL_MODEL, flat_profile(), policy, 40, Settings(dram="80%")).plans
    with np.errstate(invalid="ignore"), pytest.raises(ContractError, match=r"at layer 0, group down, token 0"):
        scan(RandomSignals(SMALL_MODEL, 20), sequences, policy, plans, Lru(), model=SMALL_MODEL, threads=3)

"""Curves and locality of experts: what replays count, size by size and rule by rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwsim.analysis.expert_locality import Shuffled, expert_locality, rules_for
from hwsim.errors import PluginError, SettingError
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.simulation.replay import count
from hwsim.simulation.settings import Settings
from hwsim.trace import Trace
from tests.conftest import flat_profile
from tests.runs import replay, run_of
from tests.simulation.routes import Routed, write

SIZES = (0, 20, 150, 400, 2000)  # the experts of all layers take 504 bytes
DECODED = 16 + 9


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two sequences with prompts, three layers of 12 experts of different bytes, of which 3 are used."""
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(3, 20 + 14, 12))
    for token in range(1, logits.shape[1]):
        logits[:, token] += 0.8 * logits[:, token - 1]
    chosen = np.argsort(-logits, axis=2)[:, :, :3].astype(np.int64)
    chosen[1, 7, 2] = -1
    weights = np.sort(rng.random(chosen.shape), axis=2)[:, :, ::-1].astype(np.float32)
    return write(
        tmp_path / "routed.npz", Routed(12, [20, 10, 12], [5] * 3, chosen, [(20, 4), (14, 5)], weights=weights)
    )


@pytest.mark.parametrize("scope", ["global", "layer", "matrix"])
@pytest.mark.parametrize("rule", ["lru", "lfu", "belady"])
@pytest.mark.parametrize("more", [(), ("--prefill", "dense"), ("--keep-cache", "--prefill-chunk", "2")])
def test_a_curve_is_what_replays_count(hwsim: Any, path: Path, scope: str, rule: str, more: tuple[str, ...]) -> None:
    command = ("trace", "curve", path, "--policy", "router", "--cache-scope", scope, "--eviction", rule, *more)
    sizes = ",".join(f"{size}B" for size in SIZES)
    done = hwsim(*command, "--cache", sizes, "--dram", "415B", "--json", "-")
    assert done.returncode == 0, done.stderr
    curve = json.loads(done.stdout)
    assert (curve["eviction"], curve["cache_scope"], curve["cache_bytes"]) == (rule, scope, 400)
    assert [each["cache_bytes"] for each in curve["sizes"]] == list(SIZES)
    options: dict[str, Any] = {}
    if more:
        options = {"prefill": "dense"} if more[0] == "--prefill" else {"keep_cache": True, "prefill_chunk": 2}
    with Trace(path) as trace:
        for each in curve["sizes"]:
            settings = Settings(cache=each["cache_bytes"], cache_scope=scope, **options)
            result = replay(
                trace, flat_profile(), POLICIES.make("router")[1], EVICTIONS.make(rule)[1], settings
            )  # fmt: skip
            assert (each["requests"], each["hits"]) == (result.unit_requests, result.unit_hits)
            assert each["steps"] == DECODED
            assert each["demand_bytes"] - each["miss_bytes"] == sum(g.hits * g.unit_bytes for g in result.groups)
            prompt = (0, 0) if result.prompt is None else (result.prompt.requests, result.prompt.hits)
            assert (each["prompt_requests"], each["prompt_hits"]) == prompt
    rates = [each["hits"] / each["requests"] for each in curve["sizes"]]
    assert rates[0] == 0
    assert rates == sorted(rates)


def test_a_cache_below_one_token_s_demand_finds_nothing(hwsim: Any, path: Path) -> None:
    done = hwsim("trace", "curve", path, "--policy", "router", "--cache-scope", "global", "--cache", "100B")
    assert done.returncode == 0, done.stderr
    assert " 0.0%" in done.stdout
    assert "one cache for all layers" in done.stdout


def test_a_policy_that_reads_the_cache_is_replayed_at_each_size(hwsim: Any, path: Path) -> None:
    done = hwsim("trace", "curve", path, "--policy", "drop-cold", "--cache", "150B,504B", "--json", "-")
    assert done.returncode == 0, done.stderr
    small, large = json.loads(done.stdout)["sizes"]
    assert small["requests"] < large["requests"]


def test_a_report_draws_the_curve(hwsim: Any, path: Path, tmp_path: Path) -> None:
    pytest.importorskip("jinja2", reason="reports need the extra `report`")
    pytest.importorskip("plotly", reason="reports need the extra `report`")
    for words in (
        ("trace", "curve", path, "--policy", "router", "--cache-scope", "layer", "--dram", "200B", "--json", "c.json"),
        ("replay", path, "--policy", "router", "--hw", "pixel8", "--dram", "200B", "--json", "r.json"),
        ("report", "r.json", "c.json", "-o", "page.html"),
    ):
        done = hwsim(*words)
        assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.html").read_text()
    assert "Miss ratio of caches of experts by their size" in page
    assert "lru, scope layer" in page


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--cache-scope", "global"), "--cache-scope: is for policies that choose experts"),
        (("--prefill", "cached"), "--prefill: is for policies that choose experts"),
        (("--keep-cache",), "--keep-cache: is for policies that choose experts"),
        (("--cache", "1MB"), "--cache: is for policies that choose experts"),
        (("--eviction", "lfu"), "--eviction lfu: the curve of all sizes is that of lru"),
    ],
)
def test_a_dense_trace_takes_no_options_for_experts(
    hwsim: Any, small_trace: Path, options: tuple[str, ...], text: str
) -> None:
    done = hwsim("trace", "curve", small_trace, "--policy", "dip", *options)
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (1, 1, "")
    assert text in done.stderr


@pytest.mark.parametrize("sizes", ["2", "x", "", "1GB,-1GB"])
def test_a_size_that_is_none_is_refused_in_one_line(hwsim: Any, path: Path, sizes: str) -> None:
    done = hwsim("trace", "curve", path, "--policy", "router", "--cache", sizes)
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (1, 1, "")
    assert "--cache" in done.stderr


# ---------------------------------------------------------------------- locality


@pytest.mark.parametrize("scope", ["global", "layer", "matrix"])
def test_locality_in_recorded_order_is_a_replay(path: Path, scope: str) -> None:
    rules = {name: EVICTIONS.make(name)[1] for name in ("lru", "lfu", "belady")}
    with Trace(path) as trace:
        settings = Settings(cache=150, cache_scope=scope)
        run = run_of(trace, flat_profile(), POLICIES.make("router")[1], rules["lru"], settings)
        locality = expert_locality(trace, run.sequences, run.steps, run.masking, rules, 150)
        assert (locality.units, locality.capacity) == (36, 150 * 36 // 504)
        for name, rule in rules.items():
            counts = count(run_of(trace, flat_profile(), POLICIES.make("router")[1], rule, settings))
            assert locality.rules[name].trace == counts.hits.sum()
            assert locality.requests == counts.requests.sum()


def test_the_control_has_the_same_tokens_in_another_order(path: Path) -> None:
    with Trace(path) as trace:
        run = run_of(trace, flat_profile(), POLICIES.make("router")[1], EVICTIONS.make("lru")[1], Settings(cache=150))
        shuffled = Shuffled(trace, run.sequences, 3)

        def rows(source: Any, start: int, stop: int) -> list[list[float]]:
            """All signals of all layers, row by row."""
            values = [
                source.read(layer, name, start, stop) for layer in range(3) for name in ("experts", "expert_weights")
            ]  # fmt: skip
            return np.concatenate(values, axis=1).tolist()

        before, after = rows(trace, 0, 34), rows(shuffled, 0, 34)
        for start, decoded, stop in ((0, 4, 20), (20, 25, 34)):
            assert before[start:decoded] == after[start:decoded]
            assert sorted(before[decoded:stop]) == sorted(after[decoded:stop])
            assert before[decoded:stop] != after[decoded:stop]
        assert after[6:11] == rows(shuffled, 6, 11)


def test_rules_that_cannot_serve_are_left_out_unless_they_are_named(path: Path) -> None:
    rules = {name: EVICTIONS.make(name)[1] for name in ("lru", "clock")}
    with Trace(path) as trace:
        run = run_of(
            trace, flat_profile(), POLICIES.make("router")[1], rules["lru"], Settings(cache=150, cache_scope="global")
        )  # fmt: skip
        assert set(rules_for(run.masking, rules, named=False)) == {"lru"}
        with pytest.raises(SettingError, match="Clock cannot serve"):
            rules_for(run.masking, rules, named=True)
        aware = run_of(trace, flat_profile(), POLICIES.make("drop-cold")[1], rules["lru"], Settings(cache=150))
        with pytest.raises(PluginError, match="looks at the cache, so its masks change with the rule"):
            expert_locality(trace, aware.sequences, aware.steps, aware.masking, {"lru": rules["lru"]}, 150)


def test_the_commands(hwsim: Any, path: Path, small_trace: Path) -> None:
    done = hwsim("trace", "locality", path, "--policy", "router", "--dram", "165B", "--cache-scope", "global")
    assert done.returncode == 0, done.stderr
    assert "the cache holds 10 of 36 units" in done.stdout
    assert "clock" not in done.stdout
    refused = hwsim("trace", "locality", small_trace, "--policy", "dip", "--dram", "70%", "--cache-scope", "layer")
    assert (refused.returncode, refused.stderr.count("\n"), refused.stdout) == (1, 1, "")

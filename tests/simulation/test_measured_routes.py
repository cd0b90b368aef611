"""Caches of experts against measurements of others: a phone's own flags, and hit rates of other simulators.

The whole traces lie in the folder that HWSIM_MEASURED_DATA names; without it these tests are skipped.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hwsim.simulation.metrics import Result
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.simulation.replay import count
from hwsim.simulation.settings import Settings
from hwsim.trace import Trace
from tests.conftest import flat_profile
from tests.runs import replay, run_of
from tests.simulation.routes import conformance, route_trace, write

_HERE = Path(__file__).parent / "files" / "moe-cache-eval"
_FOLDER = os.environ.get("HWSIM_MEASURED_DATA")
_MODELS = {"qwen": 36_864, "gptoss": 4_608}  # flags of decoded tokens
measured = pytest.mark.skipif(not _FOLDER, reason="HWSIM_MEASURED_DATA names no folder of measured data")


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Trace]]:
    assert _FOLDER
    folder, opened = tmp_path_factory.mktemp("routes"), {}
    for name in _MODELS:
        (source,) = Path(_FOLDER).glob(f"bigmoe/*{name}.route.csv")
        opened[name] = Trace(write(folder / f"{name}.npz", route_trace(source)))
    yield opened
    for trace in opened.values():
        trace.close()


def _replay(trace: Trace, eviction: str, cache: int, scope: str) -> Result:
    settings = Settings(cache=cache, cache_scope=scope, timing="closed-form")
    return replay(trace, flat_profile(), POLICIES.make("router")[1], EVICTIONS.make(eviction)[1], settings)


@measured
@pytest.mark.parametrize(("model", "mebibytes"), [("qwen", 4000), ("gptoss", 3000)])
def test_the_phone_s_own_flags_are_reproduced(traces: dict[str, Trace], model: str, mebibytes: int) -> None:
    result = _replay(traces[model], "lru", mebibytes * 2**20, "global")
    assert result.device_flags is not None
    assert (result.device_flags.rows, result.device_flags.agree) == (_MODELS[model], _MODELS[model])


@measured
@pytest.mark.parametrize("model", _MODELS)
def test_hit_rates_of_decoding_are_those_of_another_simulator(traces: dict[str, Trace], model: str) -> None:
    assert _FOLDER
    (curve,) = Path(_FOLDER).glob(f"bigmoe/*{model}-curve.csv")
    rules = {
        "lru": ("lru", "global"), "lfu": ("lfu", "global"), "belady": ("belady", "global"), "layer": ("lru", "layer"),
        "layerlfu": ("lfu", "layer"),
    }  # fmt: skip
    points = [row for row in csv.DictReader(curve.read_text().splitlines()) if row["policy"] in rules]
    assert len(points) >= 50
    for row in points:
        rule, scope = rules[row["policy"]]
        result = _replay(traces[model], rule, int(row["budget_mib"]) * 2**20, scope)
        expected, rate = float(row["hit_pct_decode"]), 100 * result.hit_rate
        assert rate == pytest.approx(expected, abs=0.1), row
        assert result.prompt is not None
        hits = result.unit_hits + result.prompt.hits
        whole = 100 * hits / (result.unit_requests + result.prompt.requests)
        assert whole == pytest.approx(float(row["hit_pct_cum"]), abs=0.1), row
        if expected == 0:
            assert rate == 0, row


def test_the_conformance_trace_event_by_event(tmp_path: Path) -> None:
    routed, events = conformance(_HERE)
    with Trace(write(tmp_path / "t.npz", routed)) as trace:
        settings = Settings(cache="6B", cache_scope="layer")
        run = run_of(trace, flat_profile(), POLICIES.make("router")[1], EVICTIONS.make("lru")[1], settings)
        counts = count(run)
        hits, misses = counts.hits[:, :, 0].ravel().tolist(), counts.misses[:, :, 0].ravel().tolist()
    assert list(zip(hits, misses, strict=True)) == events
    assert (sum(hits), sum(misses)) == (12, 18)

"""Plans for mixtures of experts: each row is a replay, and the rules that recommend."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hwsim.device.profile import load_profile
from hwsim.errors import SettingError
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.simulation.replay import replay
from hwsim.simulation.run import Conditions, Source
from hwsim.simulation.settings import Settings
from hwsim.studies.plan import Plan, plan
from hwsim.trace import Sequence, Trace
from tests.conftest import Hwsim, write_trace
from tests.sparse import write_sparse

_DEVICE = "oneplus15r"


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of a router's choices."""
    path = tmp_path_factory.mktemp("plan") / "experts.npz"
    return write_sparse(path, [Sequence(tokens=40, prompt=5), Sequence(tokens=30)])


@pytest.fixture(scope="module")
def found(trace: Path) -> Plan:
    """A plan for two amounts of DRAM."""
    with Trace(trace) as opened:
        return plan(opened, load_profile(_DEVICE), ["25%", "70%"], experts=[3, 1])


def test_each_row_is_a_replay(trace: Path, found: Plan) -> None:
    with Trace(trace) as opened:
        source = Source.of_trace(opened)
        for row in found.rows:
            profile = load_profile(_DEVICE)
            profile = profile.model_copy(update={"flash": profile.flash.model_copy(update={"queue_depth": row.lanes})})
            settings = Settings(dram=row.dram, cache_scope=row.scope)
            parameters = {} if row.experts == 4 else {"k": row.experts}
            policy = POLICIES.make("router" if row.experts == 4 else "router-k", parameters)[1]
            result = replay(Conditions(profile, EVICTIONS.make(row.eviction)[1], settings).run(source, policy))
            assert row.hit_rate == result.hit_rate
            assert row.tokens_per_second == result.throughput_tok_s
            assert row.flash_bytes == result.flash_bytes / result.tokens
            assert row.pinned + row.cache == row.dram


def test_the_weight_of_fewer_experts_is_counted(trace: Path, found: Plan) -> None:
    with Trace(trace) as opened:
        rows = [*range(5, 40), *range(40, 70)]
        weights = [opened.read(layer, "expert_weights")[rows] for layer in (0, 2)]
        known = [opened.read(layer, "experts")[rows] >= 0 for layer in (0, 2)]
    whole = sum(float(values[there].sum()) for values, there in zip(weights, known, strict=True))
    for count in (4, 3, 1):
        kept = sum(
            float(values[:, :count][there[:, :count]].sum()) for values, there in zip(weights, known, strict=True)
        )
        lost = {row.weight_lost for row in found.rows if row.experts == count}
        assert len(lost) == 1
        assert lost.pop() == pytest.approx(1 - kept / whole)


def test_one_setup_with_the_models_own_experts_is_recommended(found: Plan) -> None:
    for dram in sorted({row.dram for row in found.rows}):
        rows = [row for row in found.rows if row.dram == dram]
        (best,) = [row for row in rows if row.recommended]
        own = [row for row in rows if row.experts == 4 and not row.bound]
        assert best in own
        assert best.tokens_per_second >= 0.999 * max(row.tokens_per_second for row in own)
        assert sum(row.bound for row in rows) == 1
        assert {row.lanes for row in own} == {1, 2, 4, 8}


def test_a_cache_below_one_tokens_demand_is_told(found: Plan) -> None:
    first = found.rows[0]
    assert first.cache < first.demand
    assert first.hit_rate == 0  # a global LRU
    assert "smaller than what one token needs" in found.reasons[0]
    assert "Belady" in found.reasons[1]


def test_what_cannot_be_planned_is_refused(trace: Path, tmp_path: Path) -> None:
    with Trace(trace) as opened:
        with pytest.raises(SettingError, match="--experts 5: must be from 1 to 4"):
            plan(opened, load_profile(_DEVICE), ["50%"], experts=[5])
        with pytest.raises(SettingError, match="names no amount"):
            plan(opened, load_profile(_DEVICE), [])
    with Trace(write_trace(tmp_path / "dense.npz")) as opened, pytest.raises(SettingError, match="hwsim trace curve"):
        plan(opened, load_profile(_DEVICE), ["50%"])


def test_the_command_prints_and_writes(trace: Path, hwsim: Hwsim, tmp_path: Path) -> None:
    out = hwsim("plan", str(trace), "--hw", _DEVICE, "--dram", "60%", "--json", str(tmp_path / "p.json"))
    assert "tokens/s" in out.stdout
    data = json.loads((tmp_path / "p.json").read_text())
    assert data["format"] == "hwsim-plan"
    assert len(data["reasons"]) == 1
    assert np.isfinite([row["tokens_per_second"] for row in data["rows"]]).all()
    refused = hwsim("plan", str(trace), "--hw", _DEVICE, "--experts", "two")
    assert refused.returncode == 1
    assert refused.stderr.startswith("hwsim: --experts two: must be whole numbers")

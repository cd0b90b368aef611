"""The real model in the closed loop: what must hold of its accuracy, whatever the text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the closed loop needs the extra `record`")

from hwsim.closed_loop import Candidate
from hwsim.record import Settings as Reading
from hwsim.simulation.metrics import Evaluation
from hwsim.simulation.settings import Settings
from tests.closed_loop.loops import candidate, rule
from tests.conftest import flat_profile
from tests.runs import evaluate

pytestmark = pytest.mark.xdist_group("smollm2")  # one run for all
POLICIES_TRIED = ("dip", "magnitude", "oracle")
DENSITIES = (0.67, 0.8, 1.0)


@pytest.fixture(scope="module")
def results(smollm2: Path) -> dict[tuple[str, float, float], Evaluation]:
    """By policy, density and gamma: one run over 192 tokens, which all share the dense pass."""
    asked: list[tuple[str, float, float]] = [(name, density, 1.0) for name in POLICIES_TRIED for density in DENSITIES]
    asked += [("dip-ca", 0.8, 1.0), ("dip-ca", 0.8, 0.2)]

    def make(name: str, density: float, gamma: float) -> Candidate:
        fields: dict[str, Any] = {"density": density} | ({"gamma": gamma} if name == "dip-ca" else {})
        return candidate(name, **fields)

    reading, settings = Reading(tokens=192, context=192), Settings(dram="90%")
    found = evaluate(
        smollm2, "persuasion", flat_profile(), [make(*each) for each in asked], rule(), reading, settings
    )  # fmt: skip
    return dict(zip(asked, found, strict=True))


@pytest.mark.parametrize("policy", POLICIES_TRIED)
def test_what_it_says_comes_closer_to_dense_as_density_rises(policy: str, results: dict[Any, Evaluation]) -> None:
    # perplexity of so few tokens may fall below dense by chance; the divergence cannot
    low, middle, high = (results[policy, density, 1.0] for density in DENSITIES)
    assert low.kl > middle.kl > high.kl
    assert high.kl == pytest.approx(0, abs=1e-6)
    assert low.top1 < high.top1
    assert low.perplexity > 0.99 * high.perplexity


@pytest.mark.parametrize("policy", POLICIES_TRIED)
def test_all_of_it_is_the_dense_model(policy: str, results: dict[Any, Evaluation]) -> None:
    whole = results[policy, 1.0, 1.0]
    assert whole.perplexity == pytest.approx(whole.dense_perplexity, rel=1e-6)
    assert whole.top1 == 1


def test_gamma_1_is_dip_and_a_smaller_one_trades_accuracy_for_hits(results: dict[Any, Evaluation]) -> None:
    dip, same, aware = results["dip", 0.8, 1.0], results["dip-ca", 0.8, 1.0], results["dip-ca", 0.8, 0.2]
    for field in ("perplexity", "kl", "top1", "unit_hits", "flash_bytes", "groups", "throughput_tok_s"):
        assert getattr(dip, field) == getattr(same, field), field
    assert aware.hit_rate is not None
    assert dip.hit_rate is not None
    assert aware.hit_rate > dip.hit_rate
    assert aware.throughput_tok_s > dip.throughput_tok_s
    assert aware.kl > dip.kl

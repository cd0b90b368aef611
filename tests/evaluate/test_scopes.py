"""The closed loop with caches that groups share, and with units of several neighbours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the closed loop needs the extra `record`")

from hwsim.errors import HwsimError
from hwsim.evaluate import Candidate, evaluate, generate
from hwsim.evaluate.evaluation import Evaluation
from hwsim.layout import Layout
from hwsim.masks import MaskFile, MaskWriter
from hwsim.plugins import EVICTIONS, POLICIES
from hwsim.record import Settings as Reading
from hwsim.simulation import Settings, replay_masks
from tests.conftest import flat_profile

READING = Reading(tokens=36, context=18, prompt=2)


def run(model: Path, policy: str, masks: MaskWriter | None = None, **chosen: Any) -> Evaluation:
    candidates = [Candidate(policy, POLICIES.make(policy)[1])]
    rule, settings = EVICTIONS.make("lfu")[1], Settings(**{"dram": "60%"} | chosen)
    return evaluate(str(model), "persuasion", flat_profile(), candidates, rule, READING, settings, masks=masks)[0]


def settings_of(**chosen: Any) -> Settings:
    return Settings(**{"dram": "60%"} | chosen)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_masks_that_do_not_look_at_the_cache_go_through_it_afterwards(
    scope: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """The accuracy is that of any scope, and the hits are those of a replay of the masks."""
    writer = MaskWriter(tmp_path / "m.npz")
    loop = run(checkpoints["llama"], "dip", writer, cache_scope=scope)
    alone = run(checkpoints["llama"], "dip")
    assert (loop.perplexity, loop.kl) == (alone.perplexity, alone.kl)
    assert loop.unit_requests == alone.unit_requests
    chosen = settings_of(cache_scope=scope)
    again = replay_masks(MaskFile(tmp_path / "m.npz"), flat_profile(), EVICTIONS.make("lfu")[1], chosen)
    assert again.groups == loop.groups
    assert loop.unit_hits > 0


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_cache_aware_policy_is_refused_where_masks_come_first(scope: str, checkpoints: dict[str, Path]) -> None:
    with pytest.raises(HwsimError, match=rf"reads ctx\.cached, but --cache-scope {scope} couples groups") as told:
        run(checkpoints["llama"], "dip-ca", cache_scope=scope)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("scope", ["matrix", "layer", "global"])
def test_a_generation_serves_every_scope(scope: str, checkpoints: dict[str, Path]) -> None:
    """It goes token by token, so that a policy may read shared caches; with everything in DRAM they are all the same."""
    kept = {}
    for dram in ("60%", "100%"):
        kept[dram] = generate(
            str(checkpoints["llama"]), "the sea", flat_profile(), Candidate("dip-ca", POLICIES.make("dip-ca")[1]),
            EVICTIONS.make("lfu")[1], 8, settings=settings_of(cache_scope=scope, dram=dram), eviction_name="lfu",
        )  # fmt: skip
    result, whole = kept["60%"].result, kept["100%"].result
    assert result is not None
    assert whole is not None
    assert 0 < result.unit_hits < whole.unit_hits
    WHOLE.setdefault("ids", (kept["100%"].ids, whole.unit_hits))
    assert WHOLE["ids"] == (kept["100%"].ids, whole.unit_hits)


WHOLE: dict[str, Any] = {}


@pytest.mark.parametrize("policy", ["dip", "dip-ca", "oracle"])
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_block_masks_are_applied_as_they_are_counted(
    policy: str, family: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    writer = MaskWriter(tmp_path / "m.npz")
    loop = run(checkpoints[family], policy, writer, block=5)
    masks = MaskFile(tmp_path / "m.npz")
    again = replay_masks(masks, flat_profile(), EVICTIONS.make("lfu")[1], settings_of(block=5))
    assert again.groups == loop.groups
    assert again.mlp_density == loop.mlp_density


def test_one_is_none_and_the_models_own_order_is_no_layout(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    model = checkpoints["llama"]
    plain = run(model, "dip-ca")
    shape = plain.provenance["model"]
    own = np.tile(np.arange(shape["intermediate_size"], dtype=np.int32), (shape["num_hidden_layers"], 1))
    mixed = np.random.default_rng(0).permuted(own, axis=1)
    measured = {"provenance"}
    for settings in ({"block": 1}, {"block": 1, "neurons": Layout({}, mixed)}):
        assert run(model, "dip-ca", **settings).model_dump(exclude=measured) == plain.model_dump(exclude=measured)
    blocks = run(model, "dip-ca", block=4).model_dump(exclude=measured)
    assert run(model, "dip-ca", block=4, neurons=Layout({}, own)).model_dump(exclude=measured) == blocks
    assert run(model, "dip-ca", block=4, neurons=Layout({}, mixed)).kl != blocks["kl"]


def test_a_block_of_everything_is_dense(checkpoints: dict[str, Path]) -> None:
    whole = run(checkpoints["llama"], "dip", block=10**6)
    assert whole.kl == pytest.approx(0, abs=1e-6)
    assert whole.mlp_density == 1

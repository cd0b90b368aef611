"""The closed loop with caches that groups share, and with units of several neighbours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the closed loop needs the extra `record`")

from hwsim.cache.unit_sets import UnitSets, member_of
from hwsim.closed_loop import Candidate, TaskSettings, evaluate_tasks, evaluation
from hwsim.closed_loop.evaluation import Evaluation
from hwsim.closed_loop.generation import Stepper
from hwsim.closed_loop.masking import ClosedLoop
from hwsim.errors import HwsimError, ModelError, SettingError
from hwsim.masking.counts import Counts
from hwsim.masking.mask_file import MaskFile, MaskWriter
from hwsim.masking.scan import Tally, saved_streams
from hwsim.masking.scan import count as count_masks
from hwsim.memory.groups import Place
from hwsim.memory.neuron_order import Layout
from hwsim.model.shape import ModelShape
from hwsim.policy import Context, Group, Policy
from hwsim.record import Settings as Reading
from hwsim.simulation.run import Conditions
from hwsim.simulation.settings import Settings
from hwsim.testing.drive import MaskCollector
from hwsim.trace import Sequence
from hwsim.trace.sequences import Sequences
from tests.closed_loop.loops import candidate, generate, masking_of, rule, shape_of
from tests.conftest import flat_profile
from tests.record.conftest import layers_in, make_model
from tests.runs import evaluate, replay_masks

TASKS = Path(__file__).parent / "tasks"
READING = Reading(tokens=36, context=18, prompt=2)


def run(model: Path, policy: str, masks: MaskWriter | None = None, **chosen: Any) -> Evaluation:
    return evaluate(
        model, "persuasion", flat_profile(), [candidate(policy)], rule(), READING, settings_of(**chosen), masks=masks
    )[0]  # fmt: skip


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
    again = replay_masks(MaskFile(tmp_path / "m.npz"), flat_profile(), rule(), chosen)
    assert again.groups == loop.groups
    assert loop.unit_hits > 0


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("family", ["llama", "phi3", "qwen2"])
def test_a_policy_that_reads_shared_caches_is_run_token_by_token(
    scope: str, family: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """And says so; the masks are those that it decides, the hits those of a replay of them."""
    writer = MaskWriter(tmp_path / "m.npz")
    loop = run(checkpoints[family], "dip-ca", writer, cache_scope=scope)
    assert any("token by token" in note for note in loop.notes)
    chosen = settings_of(cache_scope=scope)
    again = replay_masks(MaskFile(tmp_path / "m.npz"), flat_profile(), rule(), chosen)
    assert again.groups == loop.groups
    assert 0 < loop.unit_hits < loop.unit_requests
    # with room for everything all scopes are the same
    whole, alone = (run(checkpoints[family], "dip-ca", cache_scope=each, dram="100%") for each in (scope, "matrix"))
    assert whole.unit_hits == alone.unit_hits
    assert whole.perplexity == pytest.approx(alone.perplexity, rel=1e-6)
    assert whole.kl == pytest.approx(alone.kl, rel=1e-3)


@pytest.mark.parametrize("batch", [1, 2])
def test_token_by_token_is_the_window_at_once(batch: int, checkpoints: dict[str, Path], monkeypatch: Any) -> None:
    at_once = run(checkpoints["llama"], "dip", cache_scope="layer")
    original = evaluation._masked

    def masked(runner: Any, loop: Any, *args: Any) -> Any:
        if not loop.by_token:
            loop.loop, loop.by_token = loop.loop.by_token(), True
        return original(runner, loop, *args)

    monkeypatch.setattr(evaluation, "_masked", masked)
    settings = settings_of(cache_scope="layer")
    (stepped,) = evaluate(
        checkpoints["llama"], "persuasion", flat_profile(), [candidate("dip")], rule(), READING, settings, batch=batch
    )
    assert stepped.groups == at_once.groups
    assert stepped.perplexity == pytest.approx(at_once.perplexity, rel=1e-6)


@pytest.mark.parametrize("scope", ["matrix", "layer", "global"])
def test_a_generation_serves_every_scope(scope: str, checkpoints: dict[str, Path]) -> None:
    """It goes token by token, so that a policy may read shared caches; with everything in DRAM they are all the same."""
    kept = {}
    for dram in ("60%", "100%"):
        settings = settings_of(cache_scope=scope, dram=dram)
        kept[dram] = generate(checkpoints["llama"], "the sea", candidate("dip-ca"), 8, settings)
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
    again = replay_masks(masks, flat_profile(), rule(), settings_of(block=5))
    assert again.groups == loop.groups
    assert again.mlp_density == loop.mlp_density


def test_one_is_none_and_the_models_own_order_is_no_layout(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    model = checkpoints["llama"]
    plain = run(model, "dip-ca")
    shape = plain.provenance["model"]
    own = np.tile(np.arange(shape["intermediate_size"], dtype=np.int32), (shape["num_hidden_layers"], 1))
    mixed = np.random.default_rng(0).permuted(own, axis=1)
    measured = {"provenance"}
    for settings in ({"block": 1}, {"block": 1, "layout": Layout({}, mixed)}):
        assert run(model, "dip-ca", **settings).model_dump(exclude=measured) == plain.model_dump(exclude=measured)
    blocks = run(model, "dip-ca", block=4).model_dump(exclude=measured)
    assert run(model, "dip-ca", block=4, layout=Layout({}, own)).model_dump(exclude=measured) == blocks
    assert run(model, "dip-ca", block=4, layout=Layout({}, mixed)).kl != blocks["kl"]


def test_a_block_of_everything_is_dense(checkpoints: dict[str, Path]) -> None:
    whole = run(checkpoints["llama"], "dip", block=10**6)
    assert whole.kl == pytest.approx(0, abs=1e-6)
    assert whole.mlp_density == 1


# ---------------------------------------------------------------------- with attention, norms, tasks and pins


class Attends(Policy):
    """Cuts attention beside the MLP, the stronger for the norm of down's columns."""

    aware: bool = False

    def groups(self, model: ModelShape) -> list[Group]:
        """In the order in which a layer knows what they need."""
        return [
            Group("attention", "hidden", ["q.column", "k.column", "v.column"], 0.5, ["attn_input"]),
            Group("input", "hidden", ["gate.column", "up.column"], 0.5, ["input", "norm_input"]),
            Group("down", "neuron", ["down.column"], 0.5, ["glu", "norm_down"]),
        ]

    def score(self, ctx: Context) -> np.ndarray:
        """Absolute values, weighted; what is cached counts double."""
        signal, *norms = ctx.group.needs
        worth = np.abs(ctx.signals[signal]) * (ctx.signals[norms[0]] if norms else 1)
        return (worth * np.where(ctx.cached, 2, 1) if self.aware else worth).astype(np.float32)


@pytest.mark.parametrize("chosen", [{"cache_scope": "layer"}, {"cache_scope": "global", "block": 3}, {"block": 3}])
def test_attention_and_norms_in_every_kind_of_cache(
    chosen: dict[str, Any], checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    writer, model = MaskWriter(tmp_path / "m.npz"), checkpoints["llama"]
    settings, lru = settings_of(**chosen), rule("lru")
    (loop,) = evaluate(model, "persuasion", flat_profile(), [Candidate("a", Attends())], lru, READING, settings,
                       masks=writer)  # fmt: skip
    again = replay_masks(MaskFile(tmp_path / "m.npz"), flat_profile(), lru, settings)
    assert again.groups == loop.groups
    assert loop.unit_hits > 0


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("aware", [False, True])
@pytest.mark.parametrize("block", [1, 3])
def test_steps_go_through_shared_caches_in_the_order_of_a_device(
    scope: Any, aware: bool, block: int, checkpoints: dict[str, Path]
) -> None:
    """The masks that were decided, counted afterwards in that order, hit what was hit on the way."""
    import torch

    model, stepped = make_model("llama"), MaskCollector()
    settings = settings_of(cache_scope=scope, block=block)
    masking = masking_of(Attends(aware=aware), shape_of(checkpoints["llama"]), 20, settings, name="a")
    assert masking.shared
    stepper = Stepper(model, torch, ClosedLoop(layers_in(model), masking, [stepped], steps=True))
    stepper.prefill([1, 2, 3])
    for token in range(5, 20):
        stepper.step(token)
    counts = Counts.joined(stepper.counts)

    def read(place: Place) -> np.ndarray:
        masks, blocks = stepped.masks_of[place.layer, place.plan.name], place.plan.blocks()
        return np.packbits([mask if blocks is None else blocks.touched(mask) for mask in masks], axis=1)

    again = Tally(Counts.none(15, masking.plans))
    count_masks(saved_streams(read, masking), Sequences([Sequence(tokens=15)]), masking, again)
    np.testing.assert_array_equal(again.counts.requests, counts.requests)
    np.testing.assert_array_equal(again.counts.hits, counts.hits)
    assert 0 < counts.hits.sum() < counts.requests.sum()


class Turned(Policy):
    """The oracle's group, which a layer knows last, comes first."""

    def groups(self, model: ModelShape) -> list[Group]:
        """Rows by what they will give, columns by nothing at all."""
        return [
            Group("rows", "neuron", ["gate.row", "up.row"], 0.5, ["glu"], oracle=True),
            Group("columns", "neuron", ["down.column"], 0.5, []),
        ]

    def score(self, ctx: Context) -> np.ndarray:
        """Zero is as good as any."""
        return np.zeros(ctx.units, np.float32)


def test_another_order_than_the_models_is_refused(checkpoints: dict[str, Path]) -> None:
    model, turned = checkpoints["llama"], Candidate("t", Turned())
    assert generate(model, "the sea", turned, 4, settings_of(), "lru").result
    with pytest.raises(ModelError, match=r"order in which a layer knows what they need .* it is rows, columns; change"):
        generate(model, "the sea", turned, 4, settings_of(cache_scope="layer"), "lru")


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What datasets makes of data files stays in the test's folder."""
    datasets = pytest.importorskip("datasets", reason="tasks need the extra `tasks`")
    pytest.importorskip("lm_eval", reason="tasks need the extra `tasks`")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))


def asked(chosen: dict[str, Any], policy: str, model: Path, names: tuple[str, ...], dense: bool = False) -> Any:
    """One policy on tasks."""
    tasks, conditions = (
        TaskSettings(names, TASKS, 3, dense_prompt=dense),
        Conditions(flat_profile(), rule(), settings_of(**chosen)),
    )
    return evaluate_tasks(str(model), tasks, conditions, [candidate(policy)])[0]


@pytest.mark.usefixtures("own_cache")
@pytest.mark.filterwarnings("ignore")  # of lm-eval and of what it imports
@pytest.mark.parametrize("dense", [False, True])
def test_tasks_go_through_shared_caches(dense: bool, checkpoints: dict[str, Path]) -> None:
    """One layer's cache for one group is a cache of its own, whether tokens come together or one after the other."""
    names = ("persuasion_names",) if dense else ("persuasion_endings", "persuasion_names")
    alone, shared = (
        asked({"cache_scope": scope, "dram": "80%"}, "oracle", checkpoints["llama"], names, dense)
        for scope in ("matrix", "layer")
    )
    assert alone.groups == shared.groups
    assert 0 < alone.unit_hits < alone.unit_requests
    assert alone.lm_eval["results"] == shared.lm_eval["results"]


@pytest.mark.usefixtures("own_cache")
@pytest.mark.filterwarnings("ignore")
def test_tasks_with_blocks_pins_and_what_they_refuse(checkpoints: dict[str, Path]) -> None:
    model, names = checkpoints["llama"], ("persuasion_endings",)
    plain = asked({"block": 5}, "dip", model, names)
    units = {(each.layer, each.group): each.units for each in plain.groups}
    sets = {member_of(*place): np.arange(count) == count - 1 for place, count in units.items()}
    pinned = asked({"block": 5, "pin": UnitSets(sets)}, "dip", model, names)
    assert pinned.unit_requests == plain.unit_requests
    assert pinned.groups != plain.groups
    assert pinned.provenance["settings"]["pinned"]["units"] == len(units)
    everything = {name: np.ones_like(units) for name, units in sets.items()}
    with pytest.raises(SettingError, match="units are pinned, but the cache holds"):
        asked({"block": 5, "pin": UnitSets(everything)}, "dip", model, names)
    with pytest.raises(HwsimError, match=r"reads ctx\.cached, but --cache-scope layer couples groups"):
        asked({"cache_scope": "layer"}, "dip-ca", model, names)

"""LoRA: the gradient against a plain twin, merging, what an adapter weighs, kills, and adapters that do not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs the extra `train`")
pytest.importorskip("peft", reason="training needs the extra `train`")

from hwsim.adapter import read_adapter
from hwsim.errors import ModelError, OutputError, SettingError
from hwsim.evaluate import Candidate, evaluate, generate
from hwsim.evaluate.carried import carry
from hwsim.evaluate.generation import Stepper
from hwsim.evaluate.masking import ClosedLoop
from hwsim.masks import MaskFile, MaskWriter
from hwsim.metrics import Evaluation
from hwsim.model import Bits
from hwsim.plugins import EVICTIONS, POLICIES
from hwsim.record import Settings as Reading
from hwsim.record import record
from hwsim.record.prepare import prepare
from hwsim.simulation import Settings, layout, replay
from hwsim.trace import Trace
from hwsim.train.lora import Trained, train_lora
from hwsim.train.trainer import Training
from tests.conftest import flat_profile
from tests.record.conftest import make_model, save

SMALL = Training(tokens=192, validation=48, context=24, batch=2, rank=4, learning_rate=5e-3, every=2)
READING = Reading(tokens=56, context=24)


def train(
    folder: Path, model: Path, policy: str = "dip", training: Training = SMALL, *, fields: dict[str, Any] | None = None,
    overwrite: bool = False, progress: Callable[[str, int, int], None] | None = None,
) -> Trained:  # fmt: skip
    candidate = Candidate(policy, POLICIES.make(policy, fields or {})[1])
    return train_lora(
        folder, str(model), "persuasion", flat_profile(), candidate, EVICTIONS.make("lfu")[1], training,
        settings=Settings(dram="70%"), overwrite=overwrite, progress=progress,
    )  # fmt: skip


def judge(model: Path, lora: Path | None, policy: str = "dip", *, merged: bool = False, batch: int = 1) -> Evaluation:
    candidate = Candidate(policy, POLICIES.make(policy)[1])
    settings = Settings(dram="70%", lora=lora, lora_merged=merged)
    rule = EVICTIONS.make("lfu")[1]
    return evaluate(str(model), "persuasion", flat_profile(), [candidate], rule, READING, settings, batch=batch)[0]


@pytest.fixture(scope="module")
def adapters(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A trained adapter for a model of each shape of MLP."""
    root = tmp_path_factory.mktemp("adapters")
    made = {family: root / family for family in ("llama", "phi3", "opt")}
    for family, folder in made.items():
        train(folder, checkpoints[family])
    return made


# ---------------------------------------------------------------------- what training does


@pytest.mark.parametrize("family", ["llama", "phi3", "opt"])
def test_it_comes_nearer_to_the_dense_model(family: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    longer = Training(tokens=1440, validation=96, context=24, batch=2, rank=8, learning_rate=1e-3, every=15)
    trained = train(tmp_path / "a", checkpoints[family], training=longer, fields={"density": 0.3})
    first, *others = trained.curve
    assert [look.step for look in trained.curve] == [0, 15, 30]
    assert [look.tokens for look in trained.curve] == [0, 720, 1440]
    assert min(look.kl for look in others) < first.kl
    assert trained.best == min(others, key=lambda look: look.kl).step
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_a_step_follows_the_gradient_of_the_divergence(checkpoints: dict[str, Path], monkeypatch: Any) -> None:
    """The loss in blocks gives the gradients of one plain KL divergence over all tokens."""
    import torch

    from hwsim.record.runner import Runner
    from hwsim.train.trainer import backward

    class Parts:
        torch = __import__("torch")

    runner = Runner(make_model("llama"), Parts())  # type: ignore[arg-type]
    monkeypatch.setattr("hwsim.record.runner._LOGITS", 400 * 5)  # five tokens at a time
    dense, start = torch.randn(2, 9, 32), torch.randn(2, 9, 32)
    grads = []
    for how in ("blocks", "plain"):
        hidden = start.clone().requires_grad_()
        if how == "blocks":
            loss = backward(runner, hidden * 1.5, dense)
        else:
            ours, wanted = (torch.log_softmax(runner.logits(each), -1) for each in (hidden * 1.5, dense))
            plain = (wanted.exp() * (wanted - ours)).sum(-1).mean()
            plain.backward()
            assert loss == pytest.approx(float(plain.detach()), rel=1e-5)
        assert hidden.grad is not None
        grads.append(hidden.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-7)


def test_an_untrained_adapter_changes_nothing(
    checkpoints: dict[str, Path], adapters: dict[str, Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(adapters["llama"], tmp_path / "zero")
    weights = load_file(tmp_path / "zero" / "adapter_model.safetensors")
    for name, each in weights.items():
        if ".lora_B." in name:
            each.zero_()
    save_file(weights, tmp_path / "zero" / "adapter_model.safetensors")
    with_it, without = judge(checkpoints["llama"], tmp_path / "zero"), judge(checkpoints["llama"], None)
    assert with_it.perplexity == pytest.approx(without.perplexity, rel=1e-6)
    assert with_it.unit_hits == without.unit_hits or with_it.cache_bytes < without.cache_bytes


@pytest.mark.parametrize("family", ["llama", "phi3", "opt"])
@pytest.mark.parametrize("policy", ["dip", "dip-ca", "noisy-oracle"])
def test_it_acts_as_if_it_were_merged(
    family: str, policy: str, checkpoints: dict[str, Path], adapters: dict[str, Path], tmp_path: Path
) -> None:
    """y = (m x) W + (m x) A B is y = (m x)(W + A B): a model with the product in its weights is masked to the same losses."""
    import peft

    model = peft.PeftModel.from_pretrained(make_model(family), adapters[family]).merge_and_unload()
    merged = judge(save(model, tmp_path / "merged"), None, policy)
    carried = judge(checkpoints[family], adapters[family], policy, merged=True)
    assert carried.perplexity == pytest.approx(merged.perplexity, rel=1e-4)
    assert (carried.unit_hits, carried.flash_bytes) == (merged.unit_hits, merged.flash_bytes)
    assert carried.dense_perplexity == judge(checkpoints[family], None, policy).dense_perplexity


def test_windows_of_a_batch_are_judged_as_single_ones(checkpoints: dict[str, Path], adapters: dict[str, Path]) -> None:
    one, two = (judge(checkpoints["llama"], adapters["llama"], "dip-ca", batch=batch) for batch in (1, 2))
    assert one.perplexity == pytest.approx(two.perplexity, rel=1e-6)
    assert (one.unit_requests, one.unit_hits, one.tokens) == (two.unit_requests, two.unit_hits, two.tokens)


def test_prompts_are_read_without_it(checkpoints: dict[str, Path], adapters: dict[str, Path], tmp_path: Path) -> None:
    """The prompt's keys and values are the dense model's: masked tokens see them in eval as in a generation."""
    model, lora = checkpoints["llama"], adapters["llama"]
    reading, settings = Reading(tokens=40, context=20, prompt=7), Settings(dram="60%", lora=lora)
    candidate, rule = Candidate("dip", POLICIES.make("dip")[1]), EVICTIONS.make("lfu")[1]
    writer = MaskWriter(tmp_path / "m.npz")
    loop = evaluate(
        str(model), "persuasion", flat_profile(), [candidate], rule, reading, settings, masks=writer, batch=2
    )[0]  # fmt: skip
    masks = MaskFile(tmp_path / "m.npz")
    ready = prepare(str(model), "persuasion", reading, lambda *_: None)
    loaded = ready.load(lambda *_: None)
    carried = carry(loaded, lora, "model")
    assert carried is not None
    plans = layout(ready.header.model, flat_profile(), candidate.policy, 20, settings, "dip").groups
    told: dict[tuple[int, str], list[np.ndarray]] = {}
    with_masks = ClosedLoop(
        carried.layers, ready.header.model, candidate.policy, plans, rule, name="dip",
        sink=lambda layer, group, first, mask: told.setdefault((layer, group), []).append(mask.copy()),
    )  # fmt: skip
    losses = []
    for window in ready.ids.reshape(-1, 20):
        stepper = Stepper(loaded.model, ready.libraries.torch, with_masks, carried)
        stepper.prefill(window[:7].tolist())
        for at in range(7, 19):
            logits = stepper.step(int(window[at]))
            losses.append(-float(logits.log_softmax(-1)[int(window[at + 1])]))
        stepper.step(int(window[19]))
    assert loop.perplexity == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)
    for plan in plans:
        for layer in range(ready.header.model.num_hidden_layers):
            name = plan.group.name
            np.testing.assert_array_equal(masks._read(layer, plan, 26), np.concatenate(told[layer, name]))


def test_it_writes_token_by_token_too(checkpoints: dict[str, Path], adapters: dict[str, Path]) -> None:
    """Text under the carried adapter is that of the layer-by-layer run: each token is the best of the one before."""
    written = generate(
        str(checkpoints["llama"]), "Anne", flat_profile(), Candidate("dip", POLICIES.make("dip")[1]),
        EVICTIONS.make("lru")[1], 12, settings=Settings(dram="60%", lora=adapters["llama"]),
    )  # fmt: skip
    assert written.result is not None
    assert written.result.provenance["adapter"]["rank"] == 4
    assert written.ids


# ---------------------------------------------------------------------- what it weighs


def test_its_bytes_are_resident_and_its_parameters_count(
    checkpoints: dict[str, Path], adapters: dict[str, Path], tmp_path: Path
) -> None:
    record(tmp_path / "t.npz", str(checkpoints["llama"]), settings=READING)
    parameters = 3 * 3 * 4 * (32 + 88)  # layers, matrices, rank, width
    with Trace(tmp_path / "t.npz") as trace:

        def run(policy: str, **fields: Any) -> Any:
            settings = Settings(dram="110%", **fields)
            return replay(trace, flat_profile(), POLICIES.make(policy)[1], EVICTIONS.make("lfu")[1], settings)

        bare, own, merged = (
            run("dip"),
            run("dip", lora=adapters["llama"]),
            run("dip", lora=adapters["llama"], lora_merged=True),
        )
        dense = run("dense", lora=adapters["llama"])
        half = run("dip", lora=adapters["llama"], bits=Bits(adapter=8))
        assert "adapter" not in dense.provenance
        assert dense.mlp_density == 1
        assert dense.resident_bytes == run("dense").resident_bytes
    assert own.resident_bytes - bare.resident_bytes == 2 * parameters
    assert half.resident_bytes - bare.resident_bytes == parameters
    assert own.cache_bytes == bare.cache_bytes - 2 * parameters
    assert own.mlp_density - bare.mlp_density == pytest.approx(parameters / (3 * 3 * 32 * 88), abs=1e-12)
    assert own.dram_bytes > bare.dram_bytes
    assert merged.mlp_density == bare.mlp_density
    assert merged.groups == bare.groups
    assert own.provenance["adapter"]["parameters"] == parameters
    assert judge(checkpoints["llama"], adapters["llama"]).mlp_density == pytest.approx(own.mlp_density, abs=1e-12)


# ---------------------------------------------------------------------- kills


class Killed(BaseException):
    """Nothing in the program catches this."""


def test_a_killed_training_goes_on_and_ends_with_the_same_bytes(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    longer = Training(tokens=1152, validation=24, context=24, batch=1, rank=2, learning_rate=5e-3, every=8)
    undisturbed = train(tmp_path / "a", checkpoints["llama"], "dip-ca", longer)
    assert undisturbed.resumed == 0

    for moment in (3, 17, 31):  # before the first state is kept, and between two

        def stop(phase: str, done: int, total: int, moment: int = moment) -> None:
            if phase == "training" and done == moment:
                raise Killed

        with pytest.raises(Killed):
            train(tmp_path / "b", checkpoints["llama"], "dip-ca", longer, progress=stop)
    resumed = train(tmp_path / "b", checkpoints["llama"], "dip-ca", longer)
    assert resumed.resumed == 30
    assert resumed.curve == undisturbed.curve
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["adapter_config.json", "adapter_model.safetensors", "hwsim.json"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    again = train(tmp_path / "b", checkpoints["llama"], "dip-ca", longer)
    assert again.resumed == longer.steps
    assert again.curve == undisturbed.curve
    assert str(tmp_path) not in (tmp_path / "a" / "hwsim.json").read_text() + (
        tmp_path / "a" / "adapter_config.json"
    ).read_text().replace(json.dumps(str(checkpoints["llama"])), "")


def test_its_bytes_do_not_depend_on_the_seed_of_hashes(adapters: dict[str, Path]) -> None:
    """peft keeps the names of modules in a set, whose order differs from process to process."""
    for folder in adapters.values():
        names = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
        assert len(names) > 1
        assert names == sorted(names)


def test_another_rank_is_not_mixed_into_an_unfinished_one(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    def stop(phase: str, done: int, total: int) -> None:
        if phase == "training" and done == 12:
            raise Killed

    short = Training(tokens=480, validation=24, context=24, batch=1, rank=2, every=50)
    other = Training(tokens=480, validation=24, context=24, batch=1, rank=3, every=50)
    with pytest.raises(Killed):
        train(tmp_path / "a", checkpoints["llama"], training=short, progress=stop)
    with pytest.raises(OutputError, match=r"a.partial: was begun with other settings \(training.rank 2, now 3\)"):
        train(tmp_path / "a", checkpoints["llama"], training=other)
    assert train(tmp_path / "a", checkpoints["llama"], training=other, overwrite=True).rank == 3
    with pytest.raises(OutputError, match=r"holds another adapter \(training.rank 3, now 2\)"):
        train(tmp_path / "a", checkpoints["llama"], training=short)
    assert train(tmp_path / "a", checkpoints["llama"], training=short, overwrite=True).rank == 2


def test_a_damaged_state_is_told_and_can_be_left_behind(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    def stop(phase: str, done: int, total: int) -> None:
        if phase == "training" and done == 12:
            raise Killed

    short = Training(tokens=480, validation=24, context=24, batch=1, rank=2, every=50)
    with pytest.raises(Killed):
        train(tmp_path / "a", checkpoints["llama"], training=short, progress=stop)
    (tmp_path / "a.partial" / "state.pt").write_bytes(b"no state")
    with pytest.raises(OutputError, match=r"state.pt: is damaged.*--overwrite to begin anew"):
        train(tmp_path / "a", checkpoints["llama"], training=short)
    assert train(tmp_path / "a", checkpoints["llama"], training=short, overwrite=True).resumed == 0


def test_what_is_there_is_spared(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("mine")
    with pytest.raises(OutputError, match="exists and is no adapter of `hwsim train lora`"):
        train(tmp_path / "mine", checkpoints["llama"], overwrite=True)
    (tmp_path / "a.partial").mkdir()
    with pytest.raises(OutputError, match=r"a\.partial: is in the way"):
        train(tmp_path / "a", checkpoints["llama"])
    with pytest.raises(OutputError, match=r"the folder .* does not exist"):
        train(tmp_path / "no" / "a", checkpoints["llama"])
    assert (tmp_path / "mine" / "letter").read_text() == "mine"


# ---------------------------------------------------------------------- what is refused


def test_settings_that_are_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    for change, message in (
        ({"rank": 0}, "--rank 0: must be at least 1"),
        ({"context": 1}, "--context 1: must be at least 2"),
        ({"context": 0}, "--context 0: must be at least 2"),
        ({"tokens": 100}, "--tokens 100: must be a multiple of --context 24"),
        ({"learning_rate": 0.0}, "--learning-rate 0.0: must be more than 0"),
    ):
        with pytest.raises(SettingError, match=message):
            Training(**{"tokens": 192, "validation": 48, "context": 24, **change})  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="--policy dense: masks nothing"):
        train(tmp_path / "a", checkpoints["llama"], "dense")
    with pytest.raises(SettingError, match="--batch 0: must be at least 1"):
        judge(checkpoints["llama"], None, batch=0)
    assert not list(tmp_path.iterdir())


def test_a_learning_rate_that_breaks_it_is_told(checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("hwsim.train.trainer.backward", lambda *args: float("nan"))
    with pytest.raises(ModelError, match="the loss is nan; choose a smaller --learning-rate"):
        train(tmp_path / "a", checkpoints["llama"])
    assert not list(tmp_path.iterdir())


def edit(folder: Path, name: str, **changes: Any) -> None:
    fields = json.loads((folder / name).read_text()) | changes
    (folder / name).write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: edit(f, "adapter_config.json", r=8), "has rank 4, adapter_config.json says r=8"),
        (lambda f: edit(f, "adapter_config.json", r="many"), "r='many'; it must be a whole number from 1"),
        (lambda f: edit(f, "adapter_config.json", peft_type="IA3"), "says 'IA3'; it must be a LORA adapter"),
        (lambda f: edit(f, "adapter_config.json", use_dora=True), "has use_dora; hwsim knows plain LoRA of one rank"),
        (lambda f: (f / "adapter_config.json").write_text("{"), "adapter_config.json is damaged: no JSON"),
        (lambda f: (f / "adapter_config.json").unlink(), "adapter_config.json cannot be read: No such file"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), "adapter_model.safetensors cannot be read"),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b"xx"), "is damaged, or no safetensors file"),
        (
            lambda f: (f / "adapter_model.safetensors").write_bytes(
                (f / "adapter_model.safetensors").read_bytes()[:-9]
            ),
            "is damaged, or no safetensors file",
        ),
    ],
)
def test_adapters_that_are_damaged(
    damage: Callable[[Path], Any], message: str, adapters: dict[str, Path], checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "a"
    shutil.copytree(adapters["llama"], folder)
    damage(folder)
    with pytest.raises(SettingError, match=message) as found:
        judge(checkpoints["llama"], folder)
    assert "\n" not in str(found.value)


def test_adapters_of_another_model(adapters: dict[str, Path], checkpoints: dict[str, Path], tmp_path: Path) -> None:
    wider = save(make_model("llama", intermediate_size=96), tmp_path / "wider")
    fewer = save(make_model("llama", num_hidden_layers=2), tmp_path / "fewer")
    for model in (wider, fewer):
        with pytest.raises(SettingError, match=r"does not fit .* it was trained for another model"):
            judge(model, adapters["llama"])
    with pytest.raises(ModelError, match=r"has .*gate_up_proj.* it was trained for another model"):
        judge(checkpoints["llama"], adapters["phi3"])
    adapter = read_adapter(adapters["phi3"], shape_of(checkpoints["phi3"]))
    assert adapter.parameters == 3 * 4 * ((32 + 2 * 88) + (88 + 32))


def shape_of(folder: Path) -> Any:
    """The shape of a saved model."""
    from hwsim.record.extras import libraries
    from hwsim.record.loading import read_structure
    from hwsim.record.sources import find_source

    return read_structure(find_source(str(folder)), libraries()).shape


def test_order_of_windows_is_a_permutation() -> None:
    training = Training(tokens=240, validation=24, context=24, batch=3, epochs=2)
    batches = list(training.order(5))
    assert len(batches) == training.steps == 8
    for epoch in (batches[:4], batches[4:]):
        assert sorted(np.concatenate(epoch).tolist()) == list(range(10))
    assert [training.rate(step) for step in range(8)][-1] == pytest.approx(training.learning_rate / 7)


def test_masks_name_their_adapter(checkpoints: dict[str, Path], adapters: dict[str, Path], tmp_path: Path) -> None:
    from hwsim.masks import MaskFile, MaskWriter
    from hwsim.simulation import replay_masks

    dip, rule = Candidate("dip", POLICIES.make("dip")[1]), EVICTIONS.make("lfu")[1]
    settings = Settings(dram="110%", lora=adapters["llama"])
    writer = MaskWriter(tmp_path / "m.npz")
    model = str(checkpoints["llama"])
    (loop,) = evaluate(model, "persuasion", flat_profile(), [dip], rule, READING, settings, masks=writer)
    masks = MaskFile(tmp_path / "m.npz")
    again = replay_masks(masks, flat_profile(), rule, settings)
    assert (again.groups, again.time_s, again.mlp_density) == (loop.groups, loop.time_s, loop.mlp_density)
    with pytest.raises(SettingError, match="the masks were made with the adapter llama; give --lora FOLDER of llama"):
        replay_masks(masks, flat_profile(), rule, Settings(dram="110%"))


def test_nothing_to_repair_is_no_error(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    trained = train(tmp_path / "a", checkpoints["llama"], fields={"density": 1.0})
    assert trained.closed is None or trained.closed == pytest.approx(0, abs=1)
    assert trained.plain()["gap_closed"] == trained.closed


def test_one_training_at_a_time_in_one_place(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    def again(phase: str, done: int, total: int) -> None:
        if phase == "training" and done == 1:
            with pytest.raises(OutputError, match=r"a\.partial: another process is training there"):
                train(tmp_path / "a", checkpoints["llama"])

    train(tmp_path / "a", checkpoints["llama"], progress=again)
    shutil.move(tmp_path / "a", tmp_path / "b")
    edited = json.loads((tmp_path / "b" / "hwsim.json").read_text())
    del edited["done"]
    (tmp_path / "b" / "hwsim.json").write_text(json.dumps(edited))
    with pytest.raises(OutputError, match="b: is an unfinished training"):
        train(tmp_path / "b", checkpoints["llama"])


# ---------------------------------------------------------------------- the command line


def test_the_commands(checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    from hwsim.cli.app import app

    def hwsim(*words: str) -> tuple[int, str, str]:
        try:
            app([*words], standalone_mode=True)
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    monkeypatch.chdir(tmp_path)
    model = ("--model", str(checkpoints["llama"]))
    device = ("--hw", "pixel8", "--dram", "70%", "--policy", "dip")
    short = ("--tokens", "96", "--validation", "24", "--context", "24", "--rank", "2", "--every", "2")
    command = ("train", "lora", *model, *device, *short, "--text", "persuasion", "-o", "a", "--json", "a.json")
    code, shown, _ = hwsim(*command)
    assert code == 0
    assert "rank 2" in shown
    assert "without the adapter" in shown
    told = json.loads((tmp_path / "a.json").read_text())
    assert (told["format"], told["kind"], told["folder"], told["rank"]) == ("hwsim-training", "lora", "a", 2)
    assert hwsim(*command)[2].count("Nothing was left to do") == 1

    reading = ("--tokens", "48", "--context", "24", "--lora", "a")
    assert hwsim("eval", *model, *device, *reading, "--json", "e.json")[0] == 0
    assert json.loads((tmp_path / "e.json").read_text())["provenance"]["adapter"]["merged"] is False
    assert hwsim("record", *model, "--tokens", "48", "--context", "24", "-o", "t.npz")[0] == 0
    assert hwsim("replay", "t.npz", *device, "--lora", "a", "--lora-merged", "--json", "r.json")[0] == 0
    assert json.loads((tmp_path / "r.json").read_text())["provenance"]["adapter"]["merged"] is True
    for words, line in (
        (("replay", "t.npz", *device, "--lora-merged"), "--lora-merged: no adapter is given; give --lora FOLDER, too"),
        (("replay", "t.npz", *device, "--lora", "no"), "--lora no: adapter_config.json cannot be read: No such file"),
        (("replay", "sample", *device, "--lora", "a"), "does not fit smollm2-135m"),
        (
            ("replay", "t.npz", *device, "--lora", "a", "--json", "a/hwsim.json"),
            "cannot be written: the command reads it",
        ),
    ):
        code, _, error = hwsim(*words)
        assert code == 1, words
        assert line in error
        assert error.count("\n") == 1

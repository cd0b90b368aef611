"""LoRA: kills, what is refused, adapters that do not fit, and the commands."""

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

from hwsim.errors import ModelError, OutputError, SettingError
from hwsim.model.lora import read_adapter
from hwsim.simulation.settings import Settings
from hwsim.train.trainer import Training
from tests.closed_loop.loops import candidate, rule, shape_of
from tests.conftest import flat_profile
from tests.record.conftest import make_model, save
from tests.runs import evaluate, replay_masks
from tests.train.lora import READING, adapters, judge, train

__all__ = ["adapters"]


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


def test_order_of_windows_is_a_permutation() -> None:
    training = Training(tokens=240, validation=24, context=24, batch=3, epochs=2)
    batches = list(training.order(5))
    assert len(batches) == training.steps == 8
    for epoch in (batches[:4], batches[4:]):
        assert sorted(np.concatenate(epoch).tolist()) == list(range(10))
    assert [training.rate(step) for step in range(8)][-1] == pytest.approx(training.learning_rate / 7)


def test_masks_name_their_adapter(checkpoints: dict[str, Path], adapters: dict[str, Path], tmp_path: Path) -> None:
    from hwsim.masking.mask_file import MaskFile, MaskWriter

    settings = Settings(dram="110%", lora=adapters["llama"])
    writer, model, dip = MaskWriter(tmp_path / "m.npz"), checkpoints["llama"], candidate("dip")
    (loop,) = evaluate(model, "persuasion", flat_profile(), [dip], rule(), READING, settings, masks=writer)
    masks = MaskFile(tmp_path / "m.npz")
    again = replay_masks(masks, flat_profile(), rule(), settings)
    assert (again.groups, again.time_s, again.mlp_density) == (loop.groups, loop.time_s, loop.mlp_density)
    with pytest.raises(SettingError, match="the masks were made with the adapter llama; give --lora FOLDER of llama"):
        replay_masks(masks, flat_profile(), rule(), Settings(dram="110%"))


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

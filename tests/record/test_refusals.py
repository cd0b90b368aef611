"""Models from wherever they come, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwsim.errors import HwsimError, ModelError, OutputError, SettingError
from hwsim.record import Settings, record
from hwsim.trace import Trace
from tests.record.conftest import make_model, save


def damaged(folder: Path, target: Path, change: Callable[[Path], None]) -> str:
    shutil.copytree(folder, target)
    change(target)
    return str(target)


def cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def other_weights(folder: Path) -> None:
    """Weights of a model with fewer layers: the rest would be random."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))


def drop_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut, "its weights cannot be loaded"),
        (drop("config.json"), "has no config.json"),
        (drop("model.safetensors"), "has no weights"),
        (drop_tokenizer, "its tokenizer cannot be loaded"),
        (other_weights, "its weights lack 9 tensors, such as model.layers.3"),
        (lambda folder: (folder / "config.json").write_text("{"), "its configuration cannot be used"),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "x1"}'),
            "its configuration cannot be used",
        ),
    ],
)
def test_damaged_folders(
    change: Callable[[Path], None], message: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        record(tmp_path / "t.npz", damaged(checkpoints["llama"], tmp_path / "m", change), settings=Settings(16, 16))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "t.npz").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(0), "--tokens 0: must be at least 1"),
        (Settings(16, context=0), "--context 0: must be at least 1"),
        (Settings(16, prompt=-1), "--prompt -1: must be at least 0"),
        (Settings(16, prompt=16), "--prompt 16: leaves nothing to decode of the shortest window, 16 tokens"),
        (Settings(17, 16, prompt=1), "--prompt 1: leaves nothing to decode of the shortest window, 1 tokens"),
        (Settings(16, signals=("inptu",)), "--signals inptu: no such signal; did you mean 'input'?"),
        (Settings(16, dtype="int3"), "--dtype int3: must be one of auto, float32"),
        (Settings(16, device="tpu9"), "--device tpu9: torch cannot use it here; usable: cpu"),
        (Settings(600, 512), "--context 512: llama reads windows of at most 256 tokens"),
        (Settings(200_000, 16), "--tokens asks for 200000; give a longer text"),
    ],
)
def test_impossible_settings(settings: Settings, message: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(SettingError) as caught:
        record(tmp_path / "t.npz", str(checkpoints["llama"]), settings=settings)
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_signals_that_a_model_without_a_gate_lacks(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="opt has no gate; it has input and glu"):
        record(tmp_path / "t.npz", str(checkpoints["opt"]), settings=Settings(16, 16, signals=("up",)))


def test_a_place_that_cannot_be_written(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        record(tmp_path / "no" / "t.npz", str(checkpoints["llama"]), settings=Settings(16, 16))


def test_values_that_are_no_numbers(tmp_path: Path) -> None:
    import torch

    model = make_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    save(model, tmp_path / "m")
    with pytest.raises(HwsimError, match="layers/001/up: the model produced NaN or infinity"):
        record(tmp_path / "t.npz", str(tmp_path / "m"), settings=Settings(16, 16))


def test_a_hub_id_is_found_in_the_hubs_cache(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of a hub name, without the hub: what an earlier download has left on disk."""
    import huggingface_hub

    revision = "0123456789abcdef0123456789abcdef01234567"
    home = tmp_path / "cache" / "models--some--tiny-llama"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(revision)
    shutil.copytree(checkpoints["llama"], home / "snapshots" / revision)
    real = huggingface_hub.snapshot_download

    def offline(hub_id: str, **options: Any) -> str:
        return real(hub_id, cache_dir=tmp_path / "cache", local_files_only=True, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    record(tmp_path / "hub.npz", "some/tiny-llama", settings=Settings(16, 16))
    record(tmp_path / "folder.npz", str(checkpoints["llama"]), settings=Settings(16, 16))
    with Trace(tmp_path / "hub.npz") as hub, Trace(tmp_path / "folder.npz") as folder:
        assert hub.header.model.name == "tiny-llama"
        assert hub.header.provenance["weights"]["origin"] == f"hub some/tiny-llama, revision {revision}"
        np.testing.assert_array_equal(hub.read(2, "up"), folder.read(2, "up"))
    with pytest.raises(ModelError, match="are not on this machine and the hub cannot be reached"):
        record(tmp_path / "t.npz", "phi3-medium", settings=Settings(16, 16))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("smollm2-135n", "did you mean 'smollm2-135m'?"),
        ("./nowhere", "no such file or folder"),
        ("nowhere.gguf", "no such file or folder"),
    ],
)
def test_models_that_are_nowhere(model: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        record(tmp_path / "t.npz", model, settings=Settings(16, 16))
    assert message in str(caught.value)


def test_files_that_are_no_model(tmp_path: Path) -> None:
    for name, message in (("a.txt", "is a file but no .gguf"), ("a.gguf", "is no GGUF file")):
        (tmp_path / name).write_text("something else")
        with pytest.raises(ModelError, match=message):
            record(tmp_path / "t.npz", str(tmp_path / name), settings=Settings(16, 16))


def test_a_cut_gguf(smollm2: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(smollm2.read_bytes()[:100_000])
    with pytest.raises(ModelError, match="--model cut: ") as caught:
        record(tmp_path / "t.npz", str(tmp_path / "cut.gguf"), settings=Settings(16, 16))
    assert "\n" not in str(caught.value)

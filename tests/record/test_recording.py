"""What a recording promises: it resumes, it is the same twice, it needs little memory, and it refuses clearly."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwsim.errors import HwsimError, ModelError, OutputError, SettingError
from hwsim.record import Settings, record
from hwsim.record.layerwise import load_layerwise
from hwsim.record.prepare import passes
from hwsim.trace import Encoding, Trace, convert
from tests.record.conftest import FAMILIES, make_model, make_tokenizer, save


def test_twice_gives_the_same_bytes(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        record(tmp_path / name, str(checkpoints["llama"]), settings=Settings(40, 16))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_header_tells_where_it_comes_from(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    record(tmp_path / "t.npz", str(checkpoints["qwen2"]), settings=Settings(40, 16, prompt=3))
    with Trace(tmp_path / "t.npz") as trace:
        header = trace.header
        assert [(s.tokens, s.prompt) for s in header.sequences] == [(16, 3), (16, 3), (8, 3)]
        assert header.origin == "recorded"
        assert header.model.tie_word_embeddings
        made = header.provenance
        assert made["weights"]["origin"] == "folder qwen2"
        assert made["command"]["dtype"] == "float32"
        assert str(tmp_path) not in json.dumps(header.model_dump())
        assert list(trace.verify())


@pytest.mark.parametrize("encoding", [Encoding(name="int8"), Encoding(name="top", share=0.75)], ids=str)
def test_recorded_in_an_encoding_is_what_is_converted_to_it(
    encoding: Encoding, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    model = str(checkpoints["llama"])
    record(tmp_path / "plain.npz", model, settings=Settings(40, 16))
    record(tmp_path / "t.npz", model, settings=Settings(40, 16, encoding=encoding))
    with Trace(tmp_path / "plain.npz") as plain:
        convert(plain, tmp_path / "converted.npz", encoding)
    with np.load(tmp_path / "t.npz") as one, np.load(tmp_path / "converted.npz") as other:
        assert one.files == other.files
        assert all(one[name].tobytes() == other[name].tobytes() for name in one.files if name != "header")
    assert record(tmp_path / "t.npz", model, settings=Settings(40, 16, encoding=encoding)).resumed == 40
    with pytest.raises(OutputError, match="exists and holds something else"):
        record(tmp_path / "t.npz", model, settings=Settings(40, 16))


KILLED = """
import os, signal, sys
from hwsim.record import Settings, record
def progress(phase, done, total):
    if phase == "recording" and done >= {at}:
        os.kill(os.getpid(), signal.SIGKILL)
record({path!r}, {model!r}, settings=Settings(80, 16), progress=progress)
"""


@pytest.mark.parametrize("at", [0, 38])  # before the first layer; in the middle of the third window
def test_killed_and_started_again(at: int, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    model = str(checkpoints["phi3"])
    script = KILLED.format(at=at, path=str(tmp_path / "t.npz"), model=model)
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "t.npz").exists()
    again = record(tmp_path / "t.npz", model, settings=Settings(80, 16))
    # the window before the kill may not have been safe on the disk yet, and is recorded anew then
    assert at // 16 * 16 - again.resumed in (0, 16) if at else again.resumed == 0
    record(tmp_path / "whole.npz", model, settings=Settings(80, 16))
    assert (tmp_path / "t.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.npz", "whole.npz"]


def test_killed_before_the_file_got_its_name(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hwsim.trace import TraceWriter

    def stop(self: TraceWriter, provenance: Any = None) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TraceWriter, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            record(tmp_path / "t.npz", str(checkpoints["llama"]), settings=Settings(32, 16))
    monkeypatch.setattr("hwsim.record.prepare.load_model", None)  # nothing is left to run
    assert record(tmp_path / "t.npz", str(checkpoints["llama"]), settings=Settings(32, 16)).resumed == 32


def test_a_finished_trace_is_recognised_and_never_lost(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    path, model = tmp_path / "t.npz", str(checkpoints["llama"])
    record(path, model, settings=Settings(32, 16))
    before = path.stat().st_mtime_ns
    assert record(path, model, settings=Settings(32, 16)).resumed == 32
    assert path.stat().st_mtime_ns == before
    with pytest.raises(OutputError, match="exists and holds something else; name another file with -o"):
        record(path, model, settings=Settings(16, 16))
    assert path.stat().st_mtime_ns == before
    record(path, model, settings=Settings(16, 16), overwrite=True)
    with Trace(path) as trace:
        assert trace.header.tokens == 16


def other_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1.0}))


def other_tokens(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:20]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def weights_of(seed: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        import torch

        model = make_model("llama")
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight.add_(seed)
        save(model, folder)

    return change


@pytest.mark.parametrize("change", [other_config, other_tokens, weights_of(1)])
def test_a_model_that_has_changed_is_another_recording(
    change: Callable[[Path], None], checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """Neither is its finished trace taken for done, nor an unfinished one continued."""
    model, path = tmp_path / "m", tmp_path / "t.npz"
    shutil.copytree(checkpoints["llama"], model)

    def stop(phase: str, done: int, total: int) -> None:
        if phase == "recording" and done >= 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(path, str(model), settings=Settings(48, 16), progress=stop)
    record(tmp_path / "whole.npz", str(model), settings=Settings(48, 16))
    change(model)
    with pytest.raises(OutputError, match="is the unfinished trace of another command"):
        record(path, str(model), settings=Settings(48, 16))
    with pytest.raises(OutputError, match="exists and holds something else"):
        record(tmp_path / "whole.npz", str(model), settings=Settings(48, 16))


def test_overwrite_keeps_the_old_trace_until_the_new_one_is_whole(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    path, model = tmp_path / "t.npz", str(checkpoints["llama"])
    record(path, model, settings=Settings(32, 16))
    before = path.read_bytes()

    def stop(phase: str, done: int, total: int) -> None:
        if phase == "recording" and done >= 20:
            assert path.read_bytes() == before
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(path, model, settings=Settings(48, 16), overwrite=True, progress=stop)
    assert path.read_bytes() == before
    record(path, model, settings=Settings(48, 16), overwrite=True)
    assert path.read_bytes() != before


def test_passes_cover_every_window_once() -> None:
    for tokens, context, from_disk in ((80, 16, False), (75, 16, True), (5, 16, True), (9000, 512, True)):
        settings = Settings(tokens, context)
        at = 0
        for start, windows, length in passes(0, settings, from_disk):
            assert start == at
            assert length == context or (windows == 1 and start + length == tokens)
            assert windows == 1 or from_disk
            at += windows * length
        assert at == tokens


LIMITED = """
import resource, sys
import psutil
from hwsim.record import Settings, record
from hwsim.record.extras import libraries
torch = libraries().torch
torch.set_num_threads(1)
torch.ones(64, 64) @ torch.ones(64, 64)
import transformers.models.llama.modeling_llama, accelerate, safetensors.torch
from pathlib import Path
used = psutil.Process().memory_info().data
resource.setrlimit(resource.RLIMIT_DATA, (used + {room}, used + {room}))
record({path!r}, {model!r}, settings=Settings(96, 32, signals=("input", "glu"), max_memory={memory}))
"""


def test_a_model_larger_than_memory(tmp_path: Path) -> None:
    """The process may take 100 MB, the weights take 210 MB: by themselves they go layer by layer, forced whole they fail.

    The signals are the same as those of a recording with all weights in memory.
    """
    shape = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 14, "num_attention_heads": 8}
    model = make_model("llama", **shape)
    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert size > 200e6
    save(model, tmp_path / "large", max_shard_size="30MB")

    def run(name: str, memory: int | None) -> subprocess.CompletedProcess[str]:
        script = LIMITED.format(
            room=100_000_000, path=str(tmp_path / name), model=str(tmp_path / "large"), memory=memory
        )
        return subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)

    whole = run("whole.npz", 10**12)
    assert whole.returncode == 1, "the limit does not limit"
    assert not (tmp_path / "whole.npz").exists()
    layered = run("layered.npz", None)
    assert layered.returncode == 0, layered.stderr[-2000:]
    record(tmp_path / "reference.npz", str(tmp_path / "large"), settings=Settings(96, 32, signals=("input", "glu")))
    with Trace(tmp_path / "layered.npz") as ours, Trace(tmp_path / "reference.npz") as theirs:
        for layer in range(14):
            for name in ("input", "glu"):
                a, b = ours.read(layer, name), theirs.read(layer, name)
                np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4 * float(np.abs(b).max()))
        first, second = ours.nll(), theirs.nll()
        assert first is not None
        assert second is not None
        np.testing.assert_allclose(first, second, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_layer_by_layer(
    family: str, checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same signals and losses as with all weights in memory; qwen2 has tied embeddings."""
    model = str(checkpoints[family])
    signals = ("input", "glu", "attn_output")
    record(tmp_path / "whole.npz", model, settings=Settings(40, 16, signals=signals))
    with pytest.raises(ModelError, match="even layer by layer it needs"):
        record(tmp_path / "t.npz", model, settings=Settings(40, 16, signals=signals, max_memory=1000))
    used = []

    def spy(*args: Any, **options: Any) -> Any:
        used.append(load_layerwise(*args, **options))
        return used[0]

    monkeypatch.setattr("hwsim.record.loading.load_layerwise", spy)
    record(tmp_path / "t.npz", model, settings=Settings(40, 16, signals=signals, max_memory=165_000))
    layers = {name for name, p in used[0].named_parameters() if p.device.type == "meta"}
    assert layers == {name for name, _ in used[0].named_parameters() if ".layers." in name}, "layers were kept"
    with Trace(tmp_path / "t.npz") as ours, Trace(tmp_path / "whole.npz") as theirs:
        for signal in signals:
            a, b = ours.read(2, signal), theirs.read(2, signal)
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4 * float(np.abs(b).max()))
        np.testing.assert_allclose(ours.nll(), theirs.nll(), rtol=1e-4)


def test_half_precision(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    record(tmp_path / "t.npz", str(checkpoints["llama"]), settings=Settings(32, 16, dtype="bfloat16"))
    with Trace(tmp_path / "t.npz") as trace:
        assert trace.header.provenance["command"]["dtype"] == "bfloat16"
        assert np.isfinite(trace.read(2, "glu")).all()


# ---------------------------------------------------------------------- texts


def test_text_is_read_as_a_whole_text_would_be(tmp_path: Path) -> None:
    """However little of a long file is read, its first tokens are those of the whole."""
    from hwsim.record.text import find_text, read_windows

    tokenizer = make_tokenizer()
    content = "Anne hoped she had outlived the age of blushing, é 漢字. " * 4000
    (tmp_path / "long.txt").write_text(content)
    whole = tokenizer(content)["input_ids"]
    for wanted in (1, 100, 20_000):
        tokens, prefix = read_windows(find_text(str(tmp_path / "long.txt")), tokenizer, wanted, wanted)
        assert prefix == []
        assert tokens.dtype == np.int32
        assert tokens.tolist() == whole[:wanted]


def test_every_window_begins_as_a_text_does(tmp_path: Path) -> None:
    """With BOS where the tokenizer has one: each window is a sequence of its own."""
    from tokenizers.processors import TemplateProcessing

    from hwsim.record.text import find_text, read_windows

    tokenizer = make_tokenizer()
    (tmp_path / "text.txt").write_text("Anne hoped she had outlived the age of blushing. " * 20)
    plain, _ = read_windows(find_text(str(tmp_path / "text.txt")), tokenizer, 100, 100)
    bos = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    tokenizer.backend_tokenizer.post_processor = bos
    tokens, prefix = read_windows(find_text(str(tmp_path / "text.txt")), tokenizer, 40, 16)
    assert prefix == [0]
    assert tokens.tolist() == [0, *plain[:15], 0, *plain[15:30], 0, *plain[30:37]]
    with pytest.raises(SettingError, match="--context 1: each window begins with 1 token"):
        read_windows(find_text(str(tmp_path / "text.txt")), tokenizer, 40, 1)


def test_a_file_comes_before_a_bundled_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hwsim.record.text import find_text

    monkeypatch.chdir(tmp_path)
    assert find_text("persuasion").name == "persuasion.txt"
    (tmp_path / "persuasion").write_text("mine")
    assert find_text("persuasion").name == "persuasion"


# ---------------------------------------------------------------------- what is refused


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


def test_experts_are_refused(tmp_path: Path) -> None:
    model = save(make_model("mixtral"), tmp_path / "m")
    with pytest.raises(ModelError, match="model type mixtral: its MLPs have a shape that hwsim does not know"):
        record(tmp_path / "t.npz", str(model), settings=Settings(16, 16))


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


def test_texts_that_are_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("caf\xe9 ".encode("latin-1") * 100)
    (tmp_path / "short.txt").write_text("Anne")
    for text, message in (
        ("latin.txt", "byte 3 is no UTF-8"),
        ("short.txt", "has [0-9]+ tokens, --tokens asks for 16"),
        ("emma.txt", "neither a file nor a bundled text"),
    ):
        with pytest.raises(SettingError, match=message):
            record(tmp_path / "t.npz", str(checkpoints["llama"]), str(tmp_path / text), Settings(16, 16))


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


# ---------------------------------------------------------------------- where models come from


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


# ---------------------------------------------------------------------- the command


def test_command(checkpoints: dict[str, Path], tmp_path: Path, hwsim: Any) -> None:
    command = ("record", "--model", checkpoints["llama"], "--tokens", 32, "--context", 16, "-o", "t.npz")
    done = hwsim(*command)
    assert done.returncode == 0, done.stderr
    assert "Recorded: 32 tokens of llama in 2 windows, signals input, up, gate" in done.stdout
    assert "Next: hwsim replay t.npz" in done.stdout
    assert done.stderr == ""
    again = hwsim(*command, "--json", "-")
    assert json.loads(again.stdout)["was_complete"]
    other = hwsim("record", "--model", checkpoints["llama"], "--tokens", 16, "-o", "t.npz")
    assert (other.returncode, other.stdout) == (1, "")
    assert other.stderr.startswith("hwsim: t.npz: exists and holds something else")
    assert other.stderr.count("\n") == 1


def test_without_the_extra_it_says_how_to_get_it(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['torch'] = None; from hwsim.cli import main; "
        f"sys.argv = ['hwsim', 'record', '--model', 'smollm2-135m', '-o', {str(tmp_path / 't.npz')!r}]; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "install them with: pip install 'hwsim[record]'" in done.stderr

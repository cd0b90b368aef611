"""What a recording promises: it resumes, it is the same twice, and it needs little memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwsim.errors import ModelError, OutputError
from hwsim.record import Settings, record
from hwsim.record.layerwise import load_layerwise
from hwsim.record.prepare import passes
from hwsim.trace import Encoding, Trace, convert
from tests.record.conftest import FAMILIES, make_model, save


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
from hwsim.record.extras import libraries
libraries()  # once for all that are killed
for at in {moments}:
    def progress(phase, done, total):
        if phase == "recording" and done >= at:
            os.kill(os.getpid(), signal.SIGKILL)
    child = os.fork()
    if not child:
        record(f"{{at}}.npz", {model!r}, settings=Settings(80, 16), progress=progress)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_and_started_again(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    model, moments = str(checkpoints["phi3"]), (0, 38)  # before the first layer; in the middle of the third window
    script = KILLED.format(moments=moments, model=model)
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob("*.npz"))
    record(tmp_path / "whole.npz", model, settings=Settings(80, 16))
    for at in moments:
        path = tmp_path / f"{at}.npz"
        assert Path(f"{path}.partial").exists()
        again = record(path, model, settings=Settings(80, 16))
        # the window before the kill may not have been safe on the disk yet, and is recorded anew then
        assert at // 16 * 16 - again.resumed in (0, 16) if at else again.resumed == 0
        assert path.read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.npz", "38.npz", "whole.npz"]


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
import os, resource, traceback
import psutil
from hwsim.record import Settings, record
from hwsim.record.extras import libraries
torch = libraries().torch
torch.set_num_threads(1)
torch.ones(64, 64) @ torch.ones(64, 64)
import transformers.models.llama.modeling_llama, accelerate, safetensors.torch
from pathlib import Path
used = psutil.Process().memory_info().data
for name, memory in (("whole", 10**12), ("layered", None)):
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_DATA, (used + {room}, used + {room}))
        try:
            record(f"{{name}}.npz", {model!r}, settings=Settings(96, 32, signals=("input", "glu"), max_memory=memory))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(name, os.WEXITSTATUS(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_model_larger_than_memory(tmp_path: Path) -> None:
    """A process may take 70 MB, the weights take 120 MB: by themselves they go layer by layer, forced whole they fail.

    The signals are the same as those of a recording with all weights in memory.
    """
    shape = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 8}
    model = make_model("llama", **shape)
    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert size > 115e6
    save(model, tmp_path / "large", max_shard_size="30MB")
    script = LIMITED.format(room=70_000_000, model=str(tmp_path / "large"))
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, cwd=tmp_path)
    ended = dict(line.split() for line in done.stdout.splitlines())
    assert ended["whole"] == "1", "the limit does not limit"
    assert not (tmp_path / "whole.npz").exists()
    assert ended["layered"] == "0", done.stderr[-2000:]
    record(tmp_path / "reference.npz", str(tmp_path / "large"), settings=Settings(96, 32, signals=("input", "glu")))
    with Trace(tmp_path / "layered.npz") as ours, Trace(tmp_path / "reference.npz") as theirs:
        for layer in range(8):
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

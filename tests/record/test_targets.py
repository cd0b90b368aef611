"""A recording spares what it reads, leaves nothing behind where nothing was recorded, and says what it keeps."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hwsim.errors import HwsimError, ModelError, OutputError, SettingError
from hwsim.record import Settings, record
from hwsim.trace import TraceWriter
from tests.record.conftest import make_model, save

Folder = Callable[[], dict[str, bytes]]


@pytest.fixture
def model(checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder ``m`` of our own and a text ``book.txt`` in the working folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(checkpoints["llama"], tmp_path / "m")
    Path("book.txt").write_text("It is a truth universally acknowledged. " * 40)
    return tmp_path / "m"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("target", ["book.txt", "./m/config.json", "m/model.safetensors", "m/tokenizer.json"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_no_input_is_overwritten(target: str, overwrite: bool, model: Path) -> None:
    before = contents(model.parent)
    with pytest.raises(OutputError, match="cannot be written: the command reads it; choose another name") as caught:
        record(target, "m", "book.txt", Settings(16, 16), overwrite=overwrite)
    assert str(caught.value).startswith(f"{Path(target)}: ")
    with pytest.raises(OutputError, match="cannot be written: the command reads it"):
        record("t.npz", "m", "book.txt", Settings(16, 16), writes=[Path(target)])
    assert contents(model.parent) == before


def test_no_gguf_is_overwritten(smollm2: Path, model: Path) -> None:
    link = model.parent / "model.gguf"
    link.symlink_to(smollm2)
    with pytest.raises(OutputError, match="the command reads it"):
        record(link, str(smollm2), settings=Settings(16, 16), overwrite=True)
    assert smollm2.read_bytes()[:4] == b"GGUF"


def test_a_text_where_the_unfinished_trace_would_lie(model: Path) -> None:
    text = Path("book.txt").read_text()
    Path("book.partial").write_text(text)
    with pytest.raises(OutputError, match=r"book\.partial: cannot be written: the command reads it"):
        record("book", "m", "book.partial", Settings(16, 16), overwrite=True)
    assert Path("book.partial").read_text() == text


def test_a_trace_in_the_models_own_folder(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model)
    record("m.npz", ".", settings=Settings(32, 16))
    assert record("m.npz", ".", settings=Settings(32, 16)).resumed == 32
    record("m.npz", ".", settings=Settings(16, 16), overwrite=True)


def test_json_and_trace_are_two_files(model: Path, hwsim: Any) -> None:
    for name in ("t.npz", "./t.npz", "t.npz.progress.json"):
        done = hwsim("record", "--model", "m", "--tokens", 16, "-o", "t.npz", "--json", name, cwd=model.parent)
        assert (done.returncode, done.stdout) == (1, "")
        assert "cannot be written: the command writes the trace to it" in done.stderr
        assert done.stderr.count("\n") == 1
    assert sorted(path.name for path in model.parent.iterdir()) == ["book.txt", "m"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_told_before_it_is_opened(model: Path) -> None:
    os.mkfifo("pipe")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=r"^pipe: cannot be written: it is there and is no regular file"):
            record("pipe", "m", settings=Settings(16, 16), overwrite=overwrite)
    assert Path("pipe").is_fifo()


# ---------------------------------------------------------------------- what is left behind


def test_a_failure_before_the_first_window_leaves_nothing(model: Path) -> None:
    before = contents(model.parent)
    with pytest.raises(
        ModelError, match=r"needs .*, --max-memory gives 1\.00 kB; choose a smaller --dtype, or give more"
    ):
        record("t.npz", "m", "book.txt", Settings(16, 16, max_memory=1000))
    assert contents(model.parent) == before
    record("t.npz", "m", "book.txt", Settings(16, 16, dtype="bfloat16"))


def test_values_that_are_no_numbers_leave_what_was_recorded(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure later on keeps the first windows; one in the first window keeps nothing."""
    import torch

    broken = make_model("llama")
    with torch.no_grad():
        broken.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    save(broken, Path("broken"))
    with pytest.raises(HwsimError, match="NaN or infinity"):
        record("t.npz", "broken", settings=Settings(16, 16))
    assert not list(Path().glob("t.npz*"))
    honest, calls = TraceWriter.write_nll, []

    def fails_later(self: TraceWriter, start: int, nats: Any) -> None:
        calls.append(start)
        if start:
            raise KeyboardInterrupt
        honest(self, start, nats)

    with monkeypatch.context() as patch:
        patch.setattr(TraceWriter, "write_nll", fails_later)
        with pytest.raises(KeyboardInterrupt):
            record("t.npz", "m", settings=Settings(32, 16))
    assert calls == [0, 16]
    assert sorted(path.name for path in Path().glob("t.npz*")) == ["t.npz.partial", "t.npz.progress.json"]
    with pytest.raises(OutputError, match=r"is the unfinished trace of another command; .*give --overwrite"):
        record("t.npz", "m", settings=Settings(16, 16))
    record("t.npz", "m", settings=Settings(16, 16), overwrite=True)
    assert sorted(path.name for path in Path().glob("t.npz*")) == ["t.npz"]


def test_an_unfinished_trace_without_a_token_is_in_nobodys_way(tmp_path: Path, model: Path) -> None:
    """What a kill before the first window leaves."""
    from tests.trace.test_trace import header

    TraceWriter("t.npz", header()).close()
    assert Path("t.npz.partial").exists()
    record("t.npz", "m", settings=Settings(16, 16))
    assert sorted(path.name for path in Path().glob("t.npz*")) == ["t.npz"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_interrupts_say_what_is_kept(model: Path) -> None:
    arguments = ["record", "--model", "m", "--tokens", "5000", "--context", "16", "-o", "t.npz"]
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from hwsim.cli import main; main()"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    progress = Path("t.npz.progress.json")
    for _ in range(1200):
        if progress.exists() and '"done": 0' not in progress.read_text():
            break
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (130, "")
    assert err == (
        "hwsim: interrupted; what is recorded so far is kept in t.npz.partial; give the same command again to go on\n"
    )
    assert Path("t.npz.partial").exists()


# ---------------------------------------------------------------------- texts


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (10**12, "has [0-9]+ tokens, --tokens asks for 1000000000000; give a longer text, or --tokens"),
        (10**30, "--tokens 10+: must be at most 1000000000000; no text has more"),
    ],
)
def test_more_tokens_than_any_text_has(tokens: int, message: str, model: Path) -> None:
    with pytest.raises(SettingError, match=message):
        record("t.npz", "m", "book.txt", Settings(tokens, 16))
    assert not list(Path().glob("t.npz*"))


def test_the_tokens_that_are_advised_can_be_recorded(model: Path) -> None:
    with pytest.raises(SettingError) as caught:
        record("t.npz", "m", "book.txt", Settings(10**6, 16))
    advised = int(str(caught.value).rpartition("--tokens ")[2])
    record("t.npz", "m", "book.txt", Settings(advised, 16))


def test_an_empty_text(model: Path) -> None:
    Path("empty.txt").write_text("")
    with pytest.raises(SettingError, match=r"^--text empty\.txt: is empty; give a text$"):
        record("t.npz", "m", "empty.txt", Settings(16, 16))


def test_the_next_command_is_quoted(model: Path, hwsim: Any) -> None:
    done = hwsim("record", "--model", "m", "--tokens", 16, "-o", "a b'c.npz", cwd=model.parent)
    assert done.returncode == 0, done.stderr
    assert """Next: hwsim replay 'a b'"'"'c.npz' --hw pixel8""" in done.stdout


def test_a_shape_that_is_none_is_told_as_a_rule() -> None:
    from hwsim.record.extras import told_as
    from hwsim.testing import SMALL_MODEL

    fields = SMALL_MODEL.model_dump()
    for change, message in (
        ({"num_key_value_heads": 99}, "--model m: num_key_value_heads 99 is more than the 4 heads"),
        ({"vocab_size": 0}, "--model m: vocab_size must be more than 0"),
    ):
        with pytest.raises(ModelError) as caught, told_as("--model m"):
            type(SMALL_MODEL).model_validate(fields | change)
        assert str(caught.value) == message

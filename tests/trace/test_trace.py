"""The trace file: what is written can be read, by hwsim and by numpy, and the commands that look into it."""

from __future__ import annotations

import json
import math
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from hwsim.errors import TraceError
from hwsim.model.shape import ModelShape
from hwsim.testing import SMALL_MODEL, RandomSignals
from hwsim.trace import Encoding, Sequence, Trace, TraceHeader, TraceWriter, convert
from tests.conftest import SEQUENCES, Hwsim, write_trace

TOKENS = sum(sequence.tokens for sequence in SEQUENCES)


def header(**fields: object) -> TraceHeader:
    data = {"origin": "recorded", "model": SMALL_MODEL, "signals": ["input", "up", "gate"], "sequences": SEQUENCES}
    return TraceHeader.model_validate(data | fields)


def fill(writer: TraceWriter, start: int, stop: int, source: RandomSignals | None = None) -> None:
    """Write tokens `start` to `stop` of everything, and commit them."""
    source = source or RandomSignals(SMALL_MODEL, TOKENS)
    for layer in range(SMALL_MODEL.num_hidden_layers):
        for name in writer.header.signals:
            writer.write(layer, name, start, source.read(layer, name, start, stop))
    writer.write_tokens(start, np.arange(start, stop))
    writer.write_nll(start, np.where(np.arange(start, stop) == 0, np.nan, 2.0))
    writer.commit(stop)


def write(path: Path, step: int = TOKENS, **fields: object) -> Path:
    with TraceWriter(path, header(**fields), tokens=True, nll=True) as writer:
        for start in range(0, TOKENS, step):
            fill(writer, start, min(start + step, TOKENS))
        writer.finish()
    return path


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


# ---------------------------------------------------------------------- round trip


def test_numpy_reads_what_is_written(tmp_path: Path) -> None:
    found = arrays(write(tmp_path / "t.npz"))
    source = RandomSignals(SMALL_MODEL, TOKENS)
    assert len(found) == 3 * 3 + 3
    for layer in range(3):
        for name in ("input", "up", "gate"):
            member = found[f"layers/{layer:03d}/{name}"]
            assert member.dtype == np.float16
            np.testing.assert_array_equal(member, source.read(layer, name).astype(np.float16))
    assert found["tokens"].dtype == np.int32
    assert found["nll"].dtype == np.float32
    told = json.loads(str(found["header"]))
    assert (told["format"], told["version"], told["origin"]) == ("hwsim-trace", 1, "recorded")
    assert told["provenance"] == {"clipped_values": 0}


def test_hwsim_reads_what_is_written(tmp_path: Path) -> None:
    source = RandomSignals(SMALL_MODEL, TOKENS)
    with Trace(write(tmp_path / "t.npz")) as trace:
        assert (trace.header.tokens, trace.header.decoded, trace.header.longest) == (65, 59, 40)
        block = trace.read(1, "up", 7, 30)
        assert block.dtype == np.float32
        np.testing.assert_array_equal(block, source.read(1, "up", 7, 30).astype(np.float16))
        assert trace.read(1, "up", 7, 7).shape == (0, 120)
        # glu is made from up and gate, in float32
        np.testing.assert_array_equal(trace.read(2, "glu"), trace.read(2, "up") * trace.read(2, "gate"))
        np.testing.assert_array_equal(trace.tokens(), np.arange(TOKENS))
        assert trace.perplexity() == pytest.approx(math.exp(2.0))  # the first token has none
        assert trace.has("glu")
        assert not trace.has("attn_input")
        with pytest.raises(TraceError, match="has no signal 'attn_input'; it holds input, up, gate"):
            trace.read(0, "attn_input")
        assert len(list(trace.verify())) == 12


def test_without_tokens_and_losses(trace: Trace) -> None:
    assert trace.tokens() is None
    assert trace.nll() is None
    assert trace.perplexity() is None


def test_payloads_can_be_mapped(tmp_path: Path) -> None:
    path = write(tmp_path / "t.npz")
    data = path.read_bytes()
    found = arrays(path)
    with Trace(path) as trace:
        for name, member in trace._members.items():
            assert member.offset % 64 == 0, name
            assert data[member.offset : member.offset + found[name].nbytes] == found[name].tobytes(), name


@pytest.mark.parametrize("extra", [{}, {"z": np.arange(3)}], ids=["plain", "with a member of somebody else's"])
def test_files_of_numpy_are_read_at_odd_offsets(extra: dict[str, np.ndarray], tmp_path: Path) -> None:
    found = arrays(write(tmp_path / "t.npz"))
    np.savez(tmp_path / "numpy.npz", **found, **extra)
    with Trace(tmp_path / "t.npz") as ours, Trace(tmp_path / "numpy.npz") as theirs:
        assert any(member.offset % 2 for member in theirs._members.values())
        for layer in range(3):
            for name in ("input", "up", "gate", "glu"):
                np.testing.assert_array_equal(theirs.read(layer, name, 3, 50), ours.read(layer, name, 3, 50))
        np.testing.assert_array_equal(theirs.nll(), ours.nll())
        assert theirs.header == ours.header
        list(theirs.verify())


def test_fields_of_later_versions_are_kept(tmp_path: Path) -> None:
    write(tmp_path / "t.npz", codec={"glu": "float16"})
    with Trace(tmp_path / "t.npz") as trace:
        assert trace.header.model_dump()["codec"] == {"glu": "float16"}


def test_names_beyond_ascii(tmp_path: Path) -> None:
    shape = SMALL_MODEL.model_copy(update={"name": "modèle-模型"})
    with Trace(write_trace(tmp_path / "tracé.npz", shape)) as trace:
        assert trace.model.name == "modèle-模型"
    with np.load(tmp_path / "tracé.npz") as file:
        assert json.loads(str(file["header"]))["model"]["name"] == "modèle-模型"


def test_the_hash_names_the_content(tmp_path: Path) -> None:
    def hash_of(path: Path) -> str:
        with Trace(path) as trace:
            return trace.hash

    one = hash_of(write(tmp_path / "a.npz"))
    assert hash_of(write(tmp_path / "b.npz", step=9)) == one
    np.savez(tmp_path / "c.npz", **arrays(tmp_path / "a.npz"))
    assert hash_of(tmp_path / "c.npz") == one  # where the members lie does not matter
    assert hash_of(write(tmp_path / "d.npz", provenance={"seed": 1})) != one
    changed = arrays(tmp_path / "a.npz")
    changed["layers/001/up"][3, 3] += 1
    np.savez(tmp_path / "e.npz", **changed)
    assert hash_of(tmp_path / "e.npz") != one


def test_more_than_4_gib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zip64, on a file that is nearly all hole; the checksum of the hole is left out, it takes most of the time."""
    honest = TraceWriter._crc
    monkeypatch.setattr(TraceWriter, "_crc", lambda self, slot: 0 if slot.size > 2**32 else honest(self, slot))
    hidden, tokens = 2048, 2**20 + 64
    if shutil.disk_usage(tmp_path).free < 5 * 2**30:
        pytest.skip("needs 5 GiB of free disk, though it takes hardly any")
    shape = ModelShape(
        name="big", num_hidden_layers=1, hidden_size=hidden, intermediate_size=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=1, vocab_size=1,
    )  # fmt: skip
    path = tmp_path / "big.npz"
    last = np.arange(hidden, dtype=np.float32)[None] / 8
    sequences = [Sequence(tokens=tokens)]
    with TraceWriter(path, header(model=shape, signals=["input", "glu"], sequences=sequences)) as writer:
        writer.write(0, "input", tokens - 1, last)
        writer.write(0, "glu", tokens - 1, np.full((1, 1), 5.0))
        writer.commit(tokens)
        if writer._partial.stat().st_blocks * 512 > 2**30:
            pytest.skip("the file system has no sparse files")
        writer.finish()
    with zipfile.ZipFile(path) as archive:
        big, small = archive.getinfo("layers/000/input.npy"), archive.getinfo("layers/000/glu.npy")
        assert big.file_size > 2**32
        assert small.header_offset > 2**32
        assert archive.open(small).read()[-2:] == np.float16(5.0).tobytes()
    with Trace(path) as trace:
        np.testing.assert_array_equal(trace.read(0, "input", tokens - 1), last)
        assert trace.read(0, "input", 0, 3).sum() == 0
        assert trace.read(0, "glu", tokens - 1)[0, 0] == 5
    path.unlink()


# ---------------------------------------------------------------------- values


def test_beyond_float16_is_clipped_and_counted(tmp_path: Path) -> None:
    values = np.zeros((TOKENS, 48), np.float32)
    values[3, :4] = [65504, 65505, -1e9, 65519.9]
    path = tmp_path / "t.npz"
    with TraceWriter(path, header(signals=["input"])) as writer:
        for layer in range(3):
            writer.write(layer, "input", 0, values)
        writer.commit(TOKENS)
        assert writer.clipped == 9
        writer.finish({"note": "n"})
    with Trace(path) as trace:
        assert trace.header.provenance == {"clipped_values": 9, "note": "n"}
        np.testing.assert_array_equal(trace.read(0, "input", 3, 4)[0, :5], [65504, 65504, -65504, 65504, 0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_is_refused_on_writing(value: float, tmp_path: Path) -> None:
    values = np.zeros((10, 48), np.float32)
    values[4, 7] = value
    with (
        TraceWriter(tmp_path / "t.npz", header()) as writer,
        pytest.raises(TraceError, match=r"^layers/002/input: .*NaN or infinity at token 24$"),
    ):
        writer.write(2, "input", 20, values)


def test_halves_are_what_is_stored(trace: Trace, tmp_path: Path) -> None:
    halves = trace.read_halves(1, "up", 3, 9)
    assert halves is not None
    assert halves.dtype == np.float16
    assert not halves.flags.writeable
    np.testing.assert_array_equal(halves.astype(np.float32), trace.read(1, "up", 3, 9))
    np.testing.assert_array_equal(halves, trace.read_halves(1, "up")[3:9])  # type: ignore[index]
    assert trace.read_halves(1, "glu") is None  # a product
    with pytest.raises(TraceError, match="has no layer 9"):
        trace.read_halves(9, "up")
    for name, share in (("int8", None), ("top", 0.5)):
        encoded = tmp_path / f"{name}.npz"
        convert(trace, encoded, Encoding(name=name, share=share))  # type: ignore[arg-type]
        with Trace(encoded) as other:
            assert other.read_halves(1, "up") is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_is_refused_on_reading(value: float, tmp_path: Path) -> None:
    found = arrays(write(tmp_path / "t.npz"))
    found["layers/001/up"][13, 2] = value
    np.savez(tmp_path / "nan.npz", **found)
    with Trace(tmp_path / "nan.npz") as trace:
        trace.read(1, "up", 0, 13)
        for name in ("up", "glu"):
            with pytest.raises(TraceError, match=r"nan\.npz: layers/001/up: token 13 holds NaN"):
                trace.read(1, name, 10, 20)
        assert trace.read_halves(1, "up", 0, 13) is not None
        with pytest.raises(TraceError, match=r"nan\.npz: layers/001/up: token 13 holds NaN"):
            trace.read_halves(1, "up", 10, 20)
        with pytest.raises(TraceError, match="layers/001/up: token 13"):
            list(trace.verify())


@pytest.mark.parametrize(
    ("layer", "start", "stop", "text"),
    [
        (3, 0, 1, "has no layer 3; it has 0 to 2"),
        (-1, 0, 1, "has no layer -1; it has 0 to 2"),
        (0, -1, 1, "has no tokens -1 to 1; give 0 <= start <= stop <= 65"),
        (0, 5, 4, "has no tokens 5 to 4; give"),
        (0, 0, TOKENS + 1, "has no tokens 0 to 66; give"),
        (0, TOKENS + 1, None, "has no tokens 66 to 65; give"),
    ],
)
def test_only_what_is_there_is_read(trace: Trace, layer: int, start: int, stop: int | None, text: str) -> None:
    for signal in ("input", "glu"):
        with pytest.raises(TraceError, match=text) as found:
            trace.read(layer, signal, start, stop)
        assert "\n" not in str(found.value)
        assert trace.read(0, signal, TOKENS, TOKENS).shape == (0, {"input": 48, "glu": 120}[signal])
    with pytest.raises(TraceError, match=r"has no signal '\.\./x'; it holds input, up, gate"):
        trace.read(0, "../x")


def test_reading_after_closing(tmp_path: Path) -> None:
    with Trace(write(tmp_path / "t.npz")) as trace:
        pass
    for read in (lambda: trace.read(0, "input"), trace.tokens, trace.nll, lambda: list(trace.verify())):
        with pytest.raises(TraceError, match=r"t\.npz: is closed; read it within"):
            read()


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("tokens", 100, "tokens: token 13 has 100; must be an id of the vocabulary, 0 to 99"),
        ("tokens", -1, "tokens: token 13 has -1; must be an id of the vocabulary, 0 to 99"),
        ("nll", -0.5, "nll: token 13 has -0.5; must be a finite loss from 0, or NaN"),
        ("nll", np.inf, "nll: token 13 has inf; must be a finite loss from 0, or NaN"),
    ],
)
def test_impossible_tokens_and_losses_are_refused(name: str, value: float, rule: str, tmp_path: Path) -> None:
    found = arrays(write(tmp_path / "t.npz"))
    found[name][13] = value
    np.savez(tmp_path / "bad.npz", **found)
    with Trace(tmp_path / "bad.npz") as trace:
        for read in (getattr(trace, name), lambda: list(trace.verify())):
            with pytest.raises(TraceError) as caught:
                read()
            assert str(caught.value) == f"{tmp_path / 'bad.npz'}: {rule}"


def test_losses_may_be_missing_anywhere_and_be_large(tmp_path: Path) -> None:
    found = arrays(write(tmp_path / "t.npz"))
    found["nll"][:] = [np.nan, 2, np.nan, *[2] * (TOKENS - 3)]
    np.savez(tmp_path / "gaps.npz", **found)
    with Trace(tmp_path / "gaps.npz") as trace:
        list(trace.verify())
        assert trace.perplexity() == pytest.approx(math.exp(2))
    found["nll"][1:] = 1000
    np.savez(tmp_path / "large.npz", **found)
    with Trace(tmp_path / "large.npz") as trace:
        assert trace.perplexity() == math.inf


@pytest.mark.parametrize(
    ("start", "shape"), [(0, (3, 47)), (0, (48,)), (-1, (3, 48)), (TOKENS - 2, (3, 48)), (0, (3, 48, 1))]
)
def test_wrong_shapes_are_refused(start: int, shape: tuple[int, ...], tmp_path: Path) -> None:
    with (
        TraceWriter(tmp_path / "t.npz", header()) as writer,
        pytest.raises(TraceError, match="layers/000/input: shape"),
    ):
        writer.write(0, "input", start, np.zeros(shape))


# ---------------------------------------------------------------------- the commands


def test_info(hwsim: Hwsim, tmp_path: Path) -> None:
    write(tmp_path / "t.npz", provenance={"text": {"name": "novel"}})
    shown = hwsim("trace", "info", "t.npz", "--layers")
    assert shown.returncode == 0, shown.stderr
    assert "65 in 2 sequences of 25-40 tokens, prompt 0-6; 59 are decoded" in shown.stdout
    assert "perplexity 7.389" in shown.stdout
    assert "text.name" in shown.stdout
    told = json.loads(hwsim("trace", "info", "t.npz", "--tokens", 30, "--json", "-").stdout)
    assert told["model"]["name"] == "small"
    assert told["sequences"] == [{"tokens": 40, "prompt": 6}, {"tokens": 25, "prompt": 0}]
    assert told["dense_perplexity"] == pytest.approx(math.exp(2))
    assert told["statistics"]["tokens"] == 30
    assert set(told["statistics"]["signals"]) == {"input", "up", "gate", "glu"}
    assert set(told["statistics"]["signals"]["glu"]["overlap"]) == {"0.5", "0.2"}


def test_verify(hwsim: Hwsim, tmp_path: Path) -> None:
    path = write(tmp_path / "t.npz")
    sound = hwsim("trace", "verify", "t.npz")
    assert (sound.returncode, sound.stderr) == (0, "")
    assert sound.stdout == f"sound: 12 members, {path.stat().st_size / 1000:.0f} kB\n"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    damaged = hwsim("trace", "verify", "t.npz", "--json", "-")
    assert damaged.returncode == 1
    assert damaged.stderr.count("\n") == 1
    assert "the file is damaged" in damaged.stderr
    told = json.loads(damaged.stdout)
    assert not told["sound"]
    assert f"hwsim: {told['error']}\n" == damaged.stderr
    missing = hwsim("trace", "verify", "none.npz")
    assert (missing.returncode, missing.stderr.count("\n")) == (1, 1)


def test_the_sample_by_name(hwsim: Hwsim) -> None:
    assert "sound: 63 members" in hwsim("trace", "verify", "sample").stdout

"""Compact encodings: what they may lose and what not, the same through every door, and what they cannot serve."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hwsim.analysis.calibration import calibrate
from hwsim.analysis.coactivation import order_trace
from hwsim.errors import SettingError, TraceError
from hwsim.policy import Policy
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.simulation.settings import Settings
from hwsim.testing import SMALL_MODEL, RandomSignals
from hwsim.trace import FLOAT16, Encoding, Trace, TraceWriter, convert
from hwsim.trace.encoding import RowError, largest
from hwsim.trace.synth import bundled
from hwsim.trace.synth.fit import Fitter
from hwsim.util.kernels import kept, top_k
from tests.conftest import Hwsim, flat_profile
from tests.runs import replay
from tests.trace.test_trace import TOKENS, arrays, fill, header, write

INT8, TOP = Encoding(name="int8"), Encoding(name="top", share=0.75)
ENCODINGS = [FLOAT16, INT8, TOP, Encoding(name="top", share=0.01), Encoding(name="int8", share=0.5)]
ROWS = hnp.arrays(
    np.float16,
    st.tuples(st.integers(0, 4), st.integers(1, 21)),
    elements=st.floats(-65504, 65504, width=16) | st.sampled_from([0.0, -0.0, 1.0, -1.0, 6e-8, 65504.0]),
)


def stored(encoding: Encoding, values: np.ndarray) -> dict[str, np.ndarray]:
    """The parts as a file holds them."""
    types = encoding.parts(values.shape[1])
    parts = {part: found.astype(types[part][1]) for part, found in encoding.encode(values).items()}
    assert {part: found.shape[1:] for part, found in parts.items()} == {
        part: shape for part, (shape, _) in types.items()
    }
    return parts


def roundtrip(encoding: Encoding, values: np.ndarray) -> np.ndarray:
    found = encoding.decode(stored(encoding, values), values.shape[1])
    assert (found.dtype, found.shape) == (np.float32, values.shape)
    return found


# ---------------------------------------------------------------------- rows


@given(ROWS)
def test_float16_loses_nothing(rows: np.ndarray) -> None:
    np.testing.assert_array_equal(roundtrip(FLOAT16, rows.astype(np.float32)), rows.astype(np.float32))


@given(ROWS)
def test_int8_is_off_by_half_a_step_at_most(rows: np.ndarray) -> None:
    values = rows.astype(np.float32)
    found = roundtrip(INT8, values)
    bound = np.abs(values.astype(np.float64)).max(axis=1, initial=0) / 254
    error = np.abs(found.astype(np.float64) - values)
    assert (error <= (bound * (1 + 1e-4))[:, None]).all()  # what float32 rounds is far less than the margin
    # plain twin, value by value
    for row, numbers in zip(values, stored(INT8, values)[""], strict=True):
        scale = np.float32(max(abs(float(value)) for value in row)) / np.float32(127)
        expected = [max(-127, min(127, round(float(value / scale)))) if scale else 0 for value in row]
        assert numbers.tolist() == expected


@given(ROWS, st.floats(0.01, 0.99))
def test_top_keeps_the_largest_exactly_and_nothing_else(rows: np.ndarray, share: float) -> None:
    encoding, values = Encoding(name="top", share=share), rows.astype(np.float32)
    count = kept(share, values.shape[1])
    found = roundtrip(encoding, values)
    for row, read in zip(values, found, strict=True):
        there = top_k(np.abs(row), count)
        np.testing.assert_array_equal(read, np.where(there, row, np.float32(0)))
        for k in range(1, count + 1):  # a mask of up to as many units is the same
            np.testing.assert_array_equal(top_k(np.abs(read), k), top_k(np.abs(row), k))


@given(ROWS, st.data())
def test_the_largest_as_the_kernel_takes_them(rows: np.ndarray, data: st.DataObject) -> None:
    values = rows.astype(np.float32)
    count = data.draw(st.integers(1, values.shape[1]))
    expected = [top_k(np.abs(row), count) for row in values]
    np.testing.assert_array_equal(largest(values, count), np.array(expected).reshape(values.shape))


@given(ROWS, st.sampled_from(ENCODINGS))
def test_all_begin_from_float16(rows: np.ndarray, encoding: Encoding) -> None:
    """So that recording in an encoding and converting to it are the same."""
    values = np.clip(rows.astype(np.float64) * (1 + 2.0**-13), -65504, 65504)
    first, second = stored(encoding, values), stored(encoding, values.astype(np.float16).astype(np.float32))
    for part, found in first.items():
        np.testing.assert_array_equal(found, second[part])


@pytest.mark.parametrize(
    ("encoding", "parts", "row", "part", "words"),
    [
        (FLOAT16, {"": np.array([[0, 1], [np.nan, 1]], "f2")}, 1, "", "NaN or infinity"),
        (INT8, {"": np.zeros((2, 2), "i1"), "_scale": np.array([0, -1], "f4")}, 1, "_scale", "from 0 to 515.78"),
        (INT8, {"": np.zeros((2, 2), "i1"), "_scale": np.array([np.nan, 1], "f4")}, 0, "_scale", "has nan"),
        (INT8, {"": np.zeros((2, 2), "i1"), "_scale": np.array([1, np.inf], "f4")}, 1, "_scale", "has inf"),
        (INT8, {"": np.zeros((2, 2), "i1"), "_scale": np.array([516, 1], "f4")}, 0, "_scale", "has 516"),
        (INT8, {"": np.array([[0, -128]], "i1"), "_scale": np.ones(1, "f4")}, 0, "", "holds -128"),
        (TOP, {"": np.full((1, 1), np.inf, "f2"), "_places": np.array([[128]], "u1")}, 0, "", "NaN or infinity"),
        (TOP, {"": np.ones((2, 1), "f2"), "_places": np.array([[128], [192]], "u1")}, 1, "_places", "names 2 indices"),
        (TOP, {"": np.ones((1, 1), "f2"), "_places": np.array([[0]], "u1")}, 0, "_places", "names 0 indices"),
        (TOP, {"": np.ones((1, 1), "f2"), "_places": np.array([[32]], "u1")}, 0, "_places", "beyond the width, 2"),
    ],
)
def test_rows_that_no_encoder_wrote(
    encoding: Encoding, parts: dict[str, np.ndarray], row: int, part: str, words: str
) -> None:
    with pytest.raises(RowError, match=words) as caught:
        encoding.decode(parts, 2)
    assert (caught.value.row, caught.value.part) == (row, part)


# ---------------------------------------------------------------------- files


def test_the_default_writes_what_it_always_wrote(tmp_path: Path) -> None:
    """The sample was written before there were encodings."""
    with Trace(bundled()) as sample:
        known = sample.header.provenance.copy()
        assert known.pop("clipped_values") == 0
        begun = sample.header.model_copy(update={"provenance": known})
        with TraceWriter(tmp_path / "t.npz", begun, tokens=True, nll=True) as writer:
            for layer in range(30):
                for signal in sample.header.signals:
                    writer.write(layer, signal, 0, sample.read(layer, signal))
            writer.write_tokens(0, sample.tokens())
            writer.write_nll(0, sample.nll())
            writer.commit(sample.header.tokens)
            writer.finish()
    assert (tmp_path / "t.npz").read_bytes() == bundled().read_bytes()


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_files(encoding: Encoding, tmp_path: Path) -> None:
    source = RandomSignals(SMALL_MODEL, TOKENS)
    path = write(tmp_path / "t.npz", step=13, encoding=encoding)
    assert path.read_bytes() == write(tmp_path / "again.npz", encoding=encoding).read_bytes()
    found, data = arrays(path), path.read_bytes()
    with Trace(path) as trace:
        assert trace.header.encoding == encoding
        assert len(list(trace.verify())) == len(found)
        for layer in range(3):
            for signal in ("input", "up", "gate"):
                expected = roundtrip(encoding, source.read(layer, signal))
                np.testing.assert_array_equal(trace.read(layer, signal), expected)
                np.testing.assert_array_equal(trace.read(layer, signal, 7, 30), expected[7:30])
        np.testing.assert_array_equal(trace.read(1, "glu"), trace.read(1, "up") * trace.read(1, "gate"))
        for name, member in trace._members.items():  # plain arrays, aligned
            assert member.offset % 64 == 0
            assert data[member.offset : member.offset + found[name].nbytes] == found[name].tobytes()
    np.savez(tmp_path / "numpy.npz", **found)
    with Trace(tmp_path / "numpy.npz") as theirs, Trace(path) as ours:
        np.testing.assert_array_equal(theirs.read(2, "gate", 3, 50), ours.read(2, "gate", 3, 50))


def test_members_and_sizes(tmp_path: Path) -> None:
    found = arrays(write(tmp_path / "int8.npz", encoding=INT8))
    assert (found["layers/001/up"].dtype, found["layers/001/up"].shape) == (np.int8, (TOKENS, 120))
    assert (found["layers/001/up_scale"].dtype, found["layers/001/up_scale"].shape) == (np.float32, (TOKENS,))
    assert json.loads(str(found["header"]))["encoding"] == {"name": "int8"}
    found = arrays(write(tmp_path / "top.npz", encoding=TOP))
    assert (found["layers/001/up"].dtype, found["layers/001/up"].shape) == (np.float16, (TOKENS, 90))
    assert (found["layers/001/up_places"].dtype, found["layers/001/up_places"].shape) == (np.uint8, (TOKENS, 15))
    assert json.loads(str(found["header"]))["encoding"] == {"name": "top", "share": 0.75}
    assert "encoding" not in json.loads(str(arrays(write(tmp_path / "t.npz"))["header"]))


@pytest.mark.parametrize("encoding", [INT8, TOP], ids=str)
def test_goes_on_where_it_stopped(encoding: Encoding, tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.npz", encoding=encoding).read_bytes()
    for start, stop in ((0, 20), (20, TOKENS)):
        with TraceWriter(tmp_path / "t.npz", header(encoding=encoding), tokens=True, nll=True) as writer:
            assert writer.done == start
            fill(writer, start, stop)
            if stop == TOKENS:
                writer.finish()
    assert (tmp_path / "t.npz").read_bytes() == whole


def test_clipped_and_refused_as_ever(tmp_path: Path) -> None:
    values = np.zeros((TOKENS, 48), np.float32)
    values[3, :3] = [1e9, -65505, 1]
    with TraceWriter(tmp_path / "t.npz", header(signals=["input"], encoding=INT8)) as writer:
        for layer in range(3):
            writer.write(layer, "input", 0, values)
        assert writer.clipped == 6
        with pytest.raises(TraceError, match="layers/000/input: the model produced NaN or infinity at token 5"):
            writer.write(0, "input", 5, values[:1] * np.nan)
        with pytest.raises(TraceError, match=r"layers/000/input: shape \(1, 47\) at token 5; needs \(1, 48\)"):
            writer.write(0, "input", 5, values[:1, :47])
        writer.commit(TOKENS)
        writer.finish()
    with Trace(tmp_path / "t.npz") as trace:
        np.testing.assert_allclose(trace.read(0, "input", 3, 4)[0, :2], [65504, -65504], rtol=1e-6)


# ---------------------------------------------------------------------- converting


@pytest.mark.parametrize("encoding", [INT8, TOP], ids=str)
def test_converted_is_what_would_have_been_recorded(encoding: Encoding, tmp_path: Path) -> None:
    recorded, plain = arrays(write(tmp_path / "r.npz", encoding=encoding)), write(tmp_path / "t.npz")
    with Trace(plain) as source:
        told = convert(source, tmp_path / "c.npz", encoding)
        assert told.provenance["converted_from"] == {"encoding": {"name": "float16"}, "hash": source.hash}
    converted = arrays(tmp_path / "c.npz")
    assert converted.keys() == recorded.keys()
    for name in converted.keys() - {"header"}:
        assert converted[name].tobytes() == recorded[name].tobytes()
    with Trace(tmp_path / "c.npz") as trace:
        assert trace.header.sequences == header().sequences
        assert trace.header.provenance["clipped_values"] == 0


def test_what_is_lost_stays_lost_and_is_told(tmp_path: Path) -> None:
    with Trace(write(tmp_path / "t.npz", encoding=TOP)) as source:
        for name in ("float16", "int8"):
            told = convert(source, tmp_path / f"{name}.npz", Encoding(name=name))
            assert told.encoding == Encoding(name=name, share=0.75)
        with pytest.raises(SettingError, match=r"--keep-share 0.8: .*t\.npz keeps 0.75 of each row.*give at most 0.75"):
            convert(source, tmp_path / "more.npz", Encoding(name="top", share=0.8))
        convert(source, tmp_path / "less.npz", Encoding(name="top", share=0.5))
        with Trace(tmp_path / "float16.npz") as back:
            np.testing.assert_array_equal(back.read(1, "up"), source.read(1, "up"))
            told = convert(back, tmp_path / "anew.npz", TOP)
        assert told.provenance["converted_from"]["converted_from"]["hash"] == source.hash
    less, direct = (
        arrays(tmp_path / "less.npz"),
        arrays(write(tmp_path / "d.npz", encoding=Encoding(name="top", share=0.5))),
    )
    assert less["layers/002/gate"].tobytes() == direct["layers/002/gate"].tobytes()
    with Trace(tmp_path / "anew.npz") as one, Trace(tmp_path / "t.npz") as other:
        np.testing.assert_array_equal(one.read(0, "gate"), other.read(0, "gate"))


def test_signals_norms_and_losses(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "t.npz", header(), tokens=True, nll=True, norms=True) as writer:
        for layer in range(3):
            writer.write_norm(layer, "norm_input", np.arange(48.0))
            writer.write_norm(layer, "norm_down", np.arange(120.0))
        fill(writer, 0, TOKENS)
        writer.finish()
    with Trace(tmp_path / "t.npz") as source:
        convert(source, tmp_path / "c.npz", INT8, signals=["glu", "input"])
        with Trace(tmp_path / "c.npz") as trace:
            assert trace.header.signals == ["input", "glu"]
            assert trace.header.provenance["converted_from"]["signals"] == ["input", "up", "gate"]
            np.testing.assert_array_equal(trace.read(1, "glu"), roundtrip(INT8, source.read(1, "glu")))
            np.testing.assert_array_equal(trace.norm(2, "norm_down"), np.arange(120))
            np.testing.assert_array_equal(trace.nll(), source.nll())
            np.testing.assert_array_equal(trace.tokens(), source.tokens())
        with pytest.raises(TraceError, match="has no signal 'attn_input'; it holds input, up, gate"):
            convert(source, tmp_path / "d.npz", INT8, signals=["attn_input"])
        with pytest.raises(SettingError, match="--signals inputs: no such signal; did you mean 'input'"):
            convert(source, tmp_path / "d.npz", INT8, signals=["inputs"])
        convert(source, tmp_path / "top.npz", TOP)
    with Trace(tmp_path / "top.npz") as top, pytest.raises(TraceError, match="the product of up and gate, needs all"):
        convert(top, tmp_path / "d.npz", TOP, signals=["glu"])
    assert not (tmp_path / "d.npz").exists()


# ---------------------------------------------------------------------- who can use them


def run(path: Path, policy: str | Policy, **parameters: object) -> object:
    name, made = POLICIES.make(policy, parameters) if isinstance(policy, str) else ("mine", policy)
    block = parameters.pop("block", 1)
    with Trace(path) as trace:
        rule = EVICTIONS.make("lru")[1]
        return replay(trace, flat_profile(), made, rule, Settings(dram="70%", block=block), policy_name=name)


def test_masks_that_top_holds_are_the_same(tmp_path: Path) -> None:
    plain = write(tmp_path / "t.npz", signals=["input", "glu"])
    with Trace(plain) as source:
        convert(source, tmp_path / "top.npz", TOP)
        convert(source, tmp_path / "back.npz", INT8)
    one, other = run(plain, "dip"), run(tmp_path / "top.npz", "dip")
    assert [group.hits for group in one.groups] == [group.hits for group in other.groups]
    assert one.throughput_tok_s == other.throughput_tok_s
    assert any("keeps the largest 0.75 of each row" in note for note in other.notes)
    assert not any("keeps the largest" in note for note in one.notes)
    assert any("in 8 bits" in note for note in run(tmp_path / "back.npz", "dip").notes)


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (("dip", {"density": 0.8}), "group input, takes 40 of 48 units, of which 36 are there"),
        (("approximate-caching", {}), "group input, makes its masks itself"),
        (("relu", {}), "group neurons, makes its masks itself"),
        (("oracle", {}), "group neurons, needs glu, a product of two that were cut one by one"),
    ],
)
def test_policies_that_need_more_are_refused(policy: tuple[str, dict[str, object]], words: str, tmp_path: Path) -> None:
    path = write(tmp_path / "t.npz", encoding=TOP)
    with pytest.raises(TraceError) as caught:
        run(path, policy[0], **policy[1])
    text = str(caught.value)
    assert text.startswith(f"{path}: keeps only the largest 0.75 of each row, but policy {policy[0]}, {words}")
    assert text.endswith("; give the trace that it was made from, or record one without --encoding top")
    assert "\n" not in text


def test_what_else_needs_all_values(tmp_path: Path) -> None:
    with Trace(write(tmp_path / "t.npz", encoding=TOP)) as trace:
        for use in (calibrate, order_trace, Fitter):
            with pytest.raises(TraceError, match=r"keeps only the largest 0.75 of each row, and an? [a-z ]+ needs all"):
                use(trace)


# ---------------------------------------------------------------------- headers and commands


@pytest.mark.parametrize(
    ("encoding", "words"),
    [
        ({"name": "int4"}, "header.encoding.name: "),
        ({"name": "top"}, "header.encoding: encoding top needs a share, more than 0 and less than 1"),
        ({"name": "top", "share": 0}, "header.encoding.share: "),
        ({"name": "top", "share": 1.0}, "header.encoding.share: "),
        ({"name": "top", "share": "0.5"}, "header.encoding.share: "),
        ({"name": "int8", "scale": 3}, "header.encoding.scale is not a known key"),
        ("int8", "header.encoding: "),
        (None, "header.encoding: "),
        ({"name": "int8"}, "layers/000/input: type float16, a trace needs int8"),
        ({"name": "top", "share": 0.5}, "layers/000/input: shape (65, 48), the header says (65, 24)"),
    ],
)
def test_headers_that_are_refused(encoding: object, words: str, tmp_path: Path) -> None:
    found = arrays(write(tmp_path / "t.npz"))
    told = json.loads(str(found["header"])) | {"encoding": encoding}
    np.savez(tmp_path / "bad.npz", **found | {"header": np.array(json.dumps(told))})
    with pytest.raises(TraceError) as caught:
        Trace(tmp_path / "bad.npz")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_commands(hwsim: Hwsim, tmp_path: Path) -> None:
    write(tmp_path / "t.npz", signals=["input", "glu"])
    done = hwsim("trace", "convert", "t.npz", "-o", "s.npz", "--encoding", "int8")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("s.npz: 65 tokens, signals input, glu, int8; ")
    assert "signals      input, glu; int8" in hwsim("trace", "info", "s.npz").stdout
    assert json.loads(hwsim("trace", "info", "s.npz", "--json", "-").stdout)["encoding"] == {"name": "int8"}
    assert hwsim("trace", "verify", "s.npz").stdout.startswith("sound: 15 members")
    there = hwsim("trace", "convert", "t.npz", "-o", "s.npz", "--encoding", "top")
    assert (there.returncode, there.stderr) == (
        1,
        "hwsim: s.npz: exists; name another file with -o, or give --overwrite\n",
    )
    told = hwsim(
        "trace",
        "convert",
        "t.npz",
        "-o",
        "s.npz",
        "--overwrite",
        "--encoding",
        "top",
        "--keep-share",
        0.5,
        "--json",
        "-",
    )
    assert json.loads(told.stdout)["encoding"] == {"name": "top", "share": 0.5}
    for arguments, words in (
        (("-o", "t.npz", "--overwrite"), "t.npz: cannot be written: the command reads it; choose another name"),
        (("-o", "n.npz", "--keep-share", "0.5"), "--keep-share 0.5: float16 keeps all; leave it out"),
        (
            ("-o", "n.npz", "--keep-share", "nan", "--encoding", "top"),
            "--keep-share nan: must be more than 0 and less than",
        ),
        (("-o", "n.npz", "--signals", ","), "--signals: names none"),
    ):
        failed = hwsim("trace", "convert", "t.npz", *arguments)
        assert (failed.returncode, failed.stderr.count("\n")) == (1, 1)
        assert words in failed.stderr
    assert not (tmp_path / "n.npz").exists()

"""Files that are damaged, foreign or lie: a TraceError of one line, never a traceback of another kind, never wrong data."""

from __future__ import annotations

import json
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hwsim.errors import TraceError
from hwsim.model.shape import ModelShape
from hwsim.trace import FLOAT16, Encoding, Sequence, Trace, TraceHeader, TraceWriter
from hwsim.trace.header import parse_header
from tests.conftest import Hwsim
from tests.trace.test_trace import arrays

TINY = ModelShape(
    name="tiny", num_hidden_layers=2, hidden_size=3, intermediate_size=5, num_attention_heads=1,
    num_key_value_heads=1, head_dim=3, vocab_size=7,
)  # fmt: skip
TOKENS = 4


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of a few kB: small enough to break it in every place."""
    return make_tiny(tmp_path_factory.mktemp("damage") / "tiny.npz", FLOAT16)


@pytest.fixture(scope="module", params=[Encoding(name="int8"), Encoding(name="top", share=0.7)], ids=str)
def compact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in the compact encodings."""
    return make_tiny(tmp_path_factory.mktemp("damage") / "compact.npz", request.param)


def make_tiny(path: Path, encoding: Encoding) -> Path:
    header = TraceHeader(
        origin="recorded",
        model=TINY,
        signals=["input", "glu"],
        sequences=[Sequence(tokens=3, prompt=1), Sequence(tokens=1)],
        encoding=encoding,
        provenance={"text": "some"},
    )
    rng = np.random.default_rng(0)
    with TraceWriter(path, header, tokens=True, nll=True) as writer:
        for layer in range(2):
            writer.write(layer, "input", 0, rng.normal(size=(TOKENS, 3)))
            writer.write(layer, "glu", 0, rng.normal(size=(TOKENS, 5)))
        writer.write_tokens(0, np.arange(TOKENS))
        writer.write_nll(0, np.array([np.nan, 1, 2, np.nan]))
        writer.commit(TOKENS)
        writer.finish()
    return path


@pytest.fixture(scope="module")
def tiny_content(tiny: Path) -> Any:
    return content(tiny)


def content(path: Path) -> Any:
    """All that a trace says, once it was verified."""
    with Trace(path) as trace:
        list(trace.verify())
        signals = [trace.read(layer, name).tobytes() for layer in range(2) for name in ("input", "glu")]
        tokens, nll = trace.tokens(), trace.nll()
        return (
            trace.header.model_dump(),
            trace.hash,
            signals,
            None if tokens is None else tokens.tobytes(),
            None if nll is None else nll.tobytes(),
        )


def refused(path: Path) -> str:
    """The one line with which a file is refused, on opening or on verifying it."""
    with pytest.raises(TraceError) as caught:
        content(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


def savez(path: Path, found: dict[str, Any]) -> Path:
    np.savez(path, **found)
    return path


def with_header(path: Path, tiny: Path, change: dict[str, Any] | str) -> Path:
    """A copy whose header is changed, or is some other text."""
    found = arrays(tiny)
    text = change if isinstance(change, str) else json.dumps(json.loads(str(found["header"])) | change)
    return savez(path, found | {"header": np.array(text)})


# ---------------------------------------------------------------------- by chance


def test_cut_off_anywhere(tiny: Path, tmp_path: Path) -> None:
    data = tiny.read_bytes()
    path = tmp_path / "cut.npz"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        refused(path)


def test_cut_off_at_the_front(tiny: Path, tmp_path: Path) -> None:
    data = tiny.read_bytes()
    path = tmp_path / "cut.npz"
    for length in range(1, len(data), 7):
        path.write_bytes(data[length:])
        refused(path)


def test_a_flip_in_every_byte(tiny: Path, tiny_content: Any, tmp_path: Path) -> None:
    """What is checked is found; padding, dates and attributes, which nobody reads, change nothing."""
    data = bytearray(tiny.read_bytes())
    with Trace(tiny) as trace:
        checked = {i for each in trace._members.values() for i in range(each.start, each.start + each.size)}
    path = tmp_path / "flipped.npz"
    for place in range(len(data)):
        data[place] ^= 1 << place % 8
        path.write_bytes(data)
        if place in checked:
            refused(path)
        else:
            _same_or_refused(path, tiny_content)
        data[place] ^= 1 << place % 8


@settings(max_examples=500, deadline=None)
@given(changes=st.dictionaries(st.integers(-2000, 10_000), st.integers(1, 255), min_size=1, max_size=6))
@example(changes={-4: 255, -5: 255, -6: 255, -7: 255})
def test_changed_bytes_are_found_or_harmless(
    changes: dict[int, int], tiny: Path, tiny_content: Any, tmp_path_factory: Any
) -> None:
    data = bytearray(tiny.read_bytes())
    for place, mask in changes.items():
        data[place % len(data)] ^= mask
    path = tmp_path_factory.getbasetemp() / "changed.npz"
    path.write_bytes(data)
    _same_or_refused(path, tiny_content)


def _same_or_refused(path: Path, wanted: Any) -> None:
    try:
        found = content(path)
    except TraceError as error:
        assert "\n" not in str(error)
    else:
        assert found == wanted


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=300))
def test_any_bytes_are_no_trace(data: bytes, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any.npz"
    path.write_bytes(data)
    refused(path)


# ---------------------------------------------------------------------- by somebody else


def test_what_is_no_trace(tmp_path: Path) -> None:
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "text.npz").write_text("tokens,loss\n1,2\n")
    np.save(tmp_path / "array.npy", np.arange(5))
    savez(tmp_path / "arrays.npz", {"a": np.arange(5)})
    with zipfile.ZipFile(tmp_path / "foreign.zip", "w") as archive:
        archive.writestr("README.txt", "hello")
    with zipfile.ZipFile(tmp_path / "none.zip", "w"):
        pass
    for name, words in {
        "missing.npz": "cannot be opened: No such file or directory",
        ".": "cannot be opened: Is a directory",
        "empty.npz": "no zip directory",
        "text.npz": "no zip directory",
        "array.npy": "no zip directory",
        "arrays.npz": "has no member 'header'",
        "foreign.zip": "README.txt: is no .npy array",
        "none.zip": "has no member 'header'",
    }.items():
        assert words in refused(tmp_path / name)


def test_compressed_and_pickled(tiny: Path, tmp_path: Path) -> None:
    found = arrays(tiny)
    np.savez_compressed(tmp_path / "small.npz", **found)
    assert "is compressed" in refused(tmp_path / "small.npz")
    objects = np.array([{"a": 1}], dtype=object)
    assert "pickles" in refused(savez(tmp_path / "objects.npz", found | {"tokens": objects}))


def test_missing_and_duplicate_members(tiny: Path, tmp_path: Path) -> None:
    found = arrays(tiny)
    for name in ("layers/001/glu", "header"):
        less = {key: value for key, value in found.items() if key != name}
        assert f"has no member {name!r}" in refused(savez(tmp_path / "less.npz", less))
    path = savez(tmp_path / "twice.npz", found)
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("layers/000/input.npy", archive.read("layers/000/glu.npy"))
    assert "has two members 'layers/000/input'" in refused(path)


def test_names_that_would_break_a_message(tiny: Path, tmp_path: Path) -> None:
    path = savez(tmp_path / "t.npz", arrays(tiny) | {"two\nlines": np.arange(3)})
    assert r"has a member 'two\nlines'" in refused(path)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("layers/000/input", np.zeros((TOKENS, 4), np.float16), r"shape (4, 4), the header says (4, 3)"),
        ("layers/000/input", np.zeros((5, 3), np.float16), "shape (5, 3)"),
        ("layers/000/input", np.zeros(12, np.float16), "shape (12,)"),
        ("layers/000/input", np.zeros((TOKENS, 3), np.float32), "type float32, a trace needs float16"),
        ("layers/000/input", np.zeros((TOKENS, 3), ">f2"), "type >f2"),
        ("layers/000/input", np.zeros((TOKENS, 3), np.int16), "type int16"),
        ("layers/000/input", np.asfortranarray(np.zeros((TOKENS, 3), np.float16)), "stored by columns"),
        ("tokens", np.zeros(TOKENS, np.int64), "type int64, a trace needs int32"),
        ("tokens", np.zeros(3, np.int32), "shape (3,)"),
        ("nll", np.zeros(TOKENS, np.float16), "type float16, a trace needs float32"),
        ("header", np.array([1, 2]), "no member 'header' of text"),
        ("header", np.array(["{}"]), "no member 'header' of text"),
        ("header", np.array(b"{}"), "no member 'header' of text"),
    ],
)
def test_members_that_lie(name: str, value: np.ndarray, words: str, tiny: Path, tmp_path: Path) -> None:
    assert words in refused(savez(tmp_path / "t.npz", arrays(tiny) | {name: value}))


def test_compact_traces_with_changed_bytes(compact: Path, tmp_path: Path) -> None:
    data, wanted = bytearray(compact.read_bytes()), content(compact)
    path = tmp_path / "flipped.npz"
    for place in range(0, len(data), 5):
        data[place] ^= 1 << place % 8
        path.write_bytes(data)
        _same_or_refused(path, wanted)
        data[place] ^= 1 << place % 8
        path.write_bytes(data[:place])
        refused(path)


@pytest.mark.parametrize(
    ("share", "name", "value", "words"),
    [
        (None, "layers/000/glu", np.zeros((TOKENS, 5), np.uint8), "layers/000/glu: type uint8, a trace needs int8"),
        (None, "layers/000/glu", np.zeros((TOKENS, 5), np.float16), "type float16, a trace needs int8"),
        (None, "layers/001/glu", np.full((TOKENS, 5), -128, np.int8), "layers/001/glu: token 0 holds -128"),
        (None, "layers/000/glu_scale", np.ones(TOKENS, np.float16), "type float16, a trace needs float32"),
        (None, "layers/000/glu_scale", np.ones((TOKENS, 1), np.float32), "shape (4, 1), the header says (4,)"),
        (
            None,
            "layers/000/glu_scale",
            np.array([0, 1, np.nan, 1], np.float32),
            "glu_scale: token 2 has nan; must be a",
        ),
        (
            None,
            "layers/000/glu_scale",
            np.array([0, np.inf, 0, 1], np.float32),
            "glu_scale: token 1 has inf; must be a",
        ),
        (
            None,
            "layers/000/glu_scale",
            np.array([0, 1, 2, -1], np.float32),
            "scale: token 3 has -1.0; must be a scale from 0",
        ),
        (0.7, "layers/000/glu", np.zeros((TOKENS, 5), np.float16), "shape (4, 5), the header says (4, 3)"),
        (
            0.7,
            "layers/000/glu",
            np.full((TOKENS, 3), np.inf, np.float16),
            "layers/000/glu: token 0 holds NaN or infinity",
        ),
        (0.7, "layers/000/glu_places", np.zeros((TOKENS, 1), np.int8), "type int8, a trace needs uint8"),
        (0.7, "layers/000/glu_places", np.zeros((TOKENS, 2), np.uint8), "shape (4, 2), the header says (4, 1)"),
        (
            0.7,
            "layers/000/glu_places",
            np.full((TOKENS, 1), 0b11100001, np.uint8),
            "names an index beyond the width, 5",
        ),
        (
            0.7,
            "layers/000/glu_places",
            np.full((TOKENS, 1), 0b11110000, np.uint8),
            "names 4 indices; share 0.7 keeps 3",
        ),
    ],
)
def test_compact_members_that_lie(
    share: float | None, name: str, value: np.ndarray, words: str, tmp_path: Path
) -> None:
    encoding = Encoding(name="int8") if share is None else Encoding(name="top", share=share)
    found = arrays(make_tiny(tmp_path / "whole.npz", encoding))
    assert words in refused(savez(tmp_path / "t.npz", found | {name: value}))
    less = {key: array for key, array in found.items() if key != name}
    assert f"has no member {name!r}, which its header promises" in refused(savez(tmp_path / "less.npz", less))


def test_a_payload_that_is_shorter_than_its_header_says(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    found = arrays(tiny)
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in found.items():
            np.lib.format.write_array(stream := archive.open(f"{name}.npy", "w"), value)
            if name == "layers/001/input":
                stream.write(b"\0\0")
            stream.close()
    assert "layers/001/input: shape (4, 3) of float16 takes 24 bytes, the file has 26" in refused(path)


def test_a_size_beyond_the_file(tiny: Path, tmp_path: Path) -> None:
    data = bytearray(tiny.read_bytes())
    entry = data.find(b"PK\x01\x02")
    struct.pack_into("<II", data, entry + 20, 10**6, 10**6)
    (tmp_path / "t.npz").write_bytes(data)
    assert "claims 1000000 bytes, more than the file has; it is truncated" in refused(tmp_path / "t.npz")


# ---------------------------------------------------------------------- headers


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "other"}, 'no format: "hwsim-trace"'),
        ({"version": 2}, "header.version is 2, this hwsim reads version 1; record the trace again or update hwsim"),
        ({"version": "1"}, "header.version is '1'"),
        ({"origin": "guessed"}, "header.origin: "),
        ({"signals": []}, "header.signals: "),
        ({"signals": ["input", "input"]}, "name one twice"),
        ({"signals": ["input", "output"]}, "header.signals.1: "),
        ({"signals": ["input", "up"]}, "has no member 'layers/000/up'"),
        ({"sequences": []}, "header.sequences: "),
        ({"sequences": [{"tokens": 0}]}, "header.sequences.0.tokens: "),
        ({"sequences": [{"tokens": 4, "prompt": 4}]}, "prompt 4 leaves nothing to decode"),
        ({"sequences": [{"tokens": 4.5}]}, "header.sequences.0.tokens: "),
        ({"sequences": [{"tokens": 5}]}, "shape (4, 3), the header says (5, 3)"),
        ({"sequences": [{"tokens": 10**30}]}, "the header says"),
        ({"model": TINY.model_dump() | {"num_hidden_layers": 3}}, "has no member 'layers/002/input'"),
        ({"model": TINY.model_dump() | {"hidden_size": -3}}, "header.model.hidden_size: "),
        ({"model": TINY.model_dump() | {"more\nlines": 1}}, "header.model.more lines is not a known key"),
        ({"model": None}, "header.model: "),
        ("", "header is not JSON"),
        ("{", "header is not JSON"),
        ("[" * 100_000, "header is not JSON"),
        ("[]", "no format"),
        ('{"format": "hwsim-trace", "version": 1}', "header.origin is missing"),
    ],
)
def test_headers_that_are_refused(change: dict[str, Any] | str, words: str, tiny: Path, tmp_path: Path) -> None:
    assert words in refused(with_header(tmp_path / "t.npz", tiny, change))


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", '"\\ud800"'])
def test_headers_that_only_python_would_read(value: str, tiny: Path, tmp_path: Path) -> None:
    text = str(arrays(tiny)["header"]).replace('"some"', value)
    assert "header is not JSON" in refused(with_header(tmp_path / "t.npz", tiny, text))


@pytest.mark.parametrize("code", [0xD800, 0x110000, 0xFFFFFFFF])
def test_headers_beyond_unicode(code: int, tiny: Path, tmp_path: Path) -> None:
    found = arrays(tiny)
    codes = np.frombuffer(found["header"].tobytes(), np.uint32).copy()
    codes[-1] = code
    header = codes.view(f"<U{len(codes)}")
    path = tmp_path / "t.npz"
    savez(path, found | {"header": header.reshape(())})
    refused(path)


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    ),
    st.sampled_from(["version", "origin", "model", "signals", "sequences", "provenance", "more"]),
)
def test_any_value_in_a_header(value: Any, field: str) -> None:
    data = {
        "format": "hwsim-trace",
        "version": 1,
        "origin": "recorded",
        "model": TINY.model_dump(),
        "signals": ["input"],
        "sequences": [{"tokens": 2, "prompt": 0}],
    }
    text = json.dumps(data | {field: value})
    try:
        header = parse_header(text, "file")
    except TraceError as error:
        assert "\n" not in str(error)
    else:
        json.dumps(header.model_dump(), allow_nan=False, ensure_ascii=False).encode()


# ---------------------------------------------------------------------- while it is open


def test_a_file_that_shrinks_while_it_is_read(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    path.write_bytes(tiny.read_bytes())
    with Trace(path) as trace:
        path.write_bytes(path.read_bytes()[:300])
        with pytest.raises(TraceError, match="layers/001/glu: the file ends in the middle of it"):
            trace.read(1, "glu")


@pytest.mark.parametrize("command", ["info", "verify"])
def test_commands_tell_it_in_one_line(command: str, hwsim: Hwsim, tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no trace\n")
    done = hwsim("trace", command, "text.npz")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "hwsim: text.npz: no zip directory; the file is truncated, or no hwsim trace\n"

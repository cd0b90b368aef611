"""Imported router traces: their arrays against the rows, read in the plainest way."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import hwsim
from hwsim.errors import OutputError, SettingError
from hwsim.trace import Sequence, Trace
from hwsim.trace.importing import FORMATS, import_trace, lines
from tests.measured import excerpt, measured, write_conformance
from tests.trace.routes import FORMS, Route, read_bigmoe, routes, write

HEAD = """\
# route_trace v1
# model=/data/my models/small-8x2.gguf arch=qwen3moe n_layer=2 n_expert=8 n_expert_used=2
# layer=0 expert_bytes=100 dense_bytes=11
# layer=1 expert_bytes=200 dense_bytes=12
turn,phase,step,layer,slot,expert,weight,residency,expert_bytes"""
# a prompt of two tokens, layer by layer, of which the last layer sees one; then two decoded tokens
ROWS = """\
0,0,0,0,0,3,0.75,0,100
0,0,0,0,1,5,0.25,0,100
0,0,1,0,0,5,0.6,0,0
0,0,1,0,1,2,0.4,0,100
0,0,1,1,0,7,0.9,0,200
0,0,1,1,1,0,0.1,0,200
0,1,2,0,0,3,0.8,1,0
0,1,2,0,1,4,0.2,0,100
0,1,2,1,0,7,0.5,2,0
0,1,2,1,1,6,0.5,0,200
0,1,3,0,0,1,0.6,0,100
0,1,3,0,1,3,0.4,1,0
0,1,3,1,0,2,0.7,0,200
0,1,3,1,1,7,0.3,1,0"""


@pytest.fixture
def route(tmp_path: Path) -> Path:
    path = tmp_path / "small.route.csv"
    path.write_text(f"{HEAD}\n{ROWS}\n")
    return path


def check_bigmoe(path: Path, out: Path) -> None:
    """All arrays of an imported route_trace without dropped experts, against its rows."""
    rows, prompts = read_bigmoe(path)
    with Trace(out) as trace:
        experts = trace.model.experts
        assert experts is not None
        first = 0
        for turn, sequence in enumerate(trace.header.sequences):
            assert sequence.prompt == prompts.get(turn, 0)
            for token in range(sequence.tokens):
                for layer in trace.model.layers_with("experts"):
                    own = rows.pop((turn, token, layer), [])
                    row = trace.read(layer, "experts", first + token, first + token + 1)[0].tolist()
                    assert row == [int(cell["expert"]) for cell in own] + [-1] * (experts.used - len(own))
                    if own:
                        weights = trace.read(layer, "expert_weights", first + token, first + token + 1)[0]
                        assert weights.tolist() == [np.float32(cell["weight"]) for cell in own]
                        flags = trace.residency(layer, first + token, first + token + 1)
                        assert flags is not None
                        assert flags[0].tolist() == [int(cell["residency"]) > 0 for cell in own]
            first += sequence.tokens
        assert not rows
        assert len(list(trace.verify())) == 1 + 3 * len(trace.model.layers_with("experts"))


def test_a_route_trace_of_bigmoe(route: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.npz"
    imported = import_trace(route, out)
    check_bigmoe(route, out)
    header = imported.header
    assert header.sequences == [Sequence(tokens=4, prompt=2)]
    assert header.model.name == "small-8x2"
    assert [(layer.dense_bytes, layer.experts and layer.experts.bytes) for layer in header.model.layers] == [
        (11, 100),
        (12, 200),
    ]
    assert header.model.by_bytes
    assert header.origin == "recorded"
    assert header.provenance["imported"] == {
        "file": "small.route.csv", "format": "bigmoe", "preamble": {"arch": "qwen3moe"},
        "sha256": hashlib.sha256(route.read_bytes()).hexdigest(),
    }  # fmt: skip
    assert imported.notes == [
        "layer 1 has experts for the last token of a prompt only, as llama.cpp computes it",
        "1 experts were found because a prefetch had read them; they count as cached",
    ]


def test_the_same_file_gives_the_same_bytes_anywhere(route: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "folder"
    elsewhere.mkdir()
    (elsewhere / route.name).write_bytes(route.read_bytes())
    import_trace(route, tmp_path / "a.npz")
    import_trace(elsewhere / route.name, tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert not list(tmp_path.glob("*.partial"))


def test_the_excerpt_of_a_phone(tmp_path: Path) -> None:
    """A real file: its prompt is written layer by layer, and the last layer sees its last token only."""
    imported = import_trace(excerpt(), tmp_path / "x.npz")
    check_bigmoe(excerpt(), tmp_path / "x.npz")
    assert imported.header.sequences == [Sequence(tokens=101, prompt=85)]
    assert imported.header.model.name == "gpt-oss-120b-Q4_K_M"


@pytest.mark.parametrize(("name", "prompt", "tokens"), [("qwen", 28, 156), ("gptoss", 85, 149)])
def test_the_whole_trace_of_a_phone(name: str, prompt: int, tokens: int, tmp_path: Path) -> None:
    path = measured("bigmoe", f"2026-07-15-route-trace_{name}.route.csv")
    imported = import_trace(path, tmp_path / "x.npz")
    assert imported.header.sequences == [Sequence(tokens=tokens, prompt=prompt)]
    check_bigmoe(path, tmp_path / "x.npz")


def test_blocks_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_trace(excerpt(), tmp_path / "a.npz")
    monkeypatch.setattr(lines, "_BLOCK", 4_096)
    import_trace(excerpt(), tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_numpy_reads_as_the_cell_by_cell_reading_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_trace(excerpt(), tmp_path / "a.npz")
    monkeypatch.setattr("hwsim.trace.importing.cells.Cells._quick", lambda *_: None)
    import_trace(excerpt(), tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_conversation_goes_on_at_any_position(route: Path, tmp_path: Path) -> None:
    """A second turn that keeps the first one's context: steps are positions in the context."""
    second = [line.split(",") for line in ROWS.splitlines()]
    text = "\n".join(",".join(["1", row[1], str(int(row[2]) + 4), *row[3:]]) for row in second)
    route.write_text(f"{HEAD}\n{ROWS}\n{text}\n")
    imported = import_trace(route, tmp_path / "x.npz")
    assert imported.header.sequences == [Sequence(tokens=4, prompt=2)] * 2
    assert imported.header.provenance["imported"]["continued_at"] == [4]
    assert "sequences that continue a conversation: 1;" in imported.notes[-1]
    with Trace(tmp_path / "x.npz") as trace:
        for layer in range(2):
            assert np.array_equal(trace.read(layer, "experts", 0, 4), trace.read(layer, "experts", 4, 8))


def _dropped(route: Path, flags: str) -> Path:
    """The small route with a column `dropped`, whose flags of the decoded rows are `flags`."""
    rows, marks = ROWS.splitlines(), "0" * 6 + flags
    text = "\n".join(f"{row},{mark}" for row, mark in zip(rows, marks, strict=True))
    route.write_text(f"{HEAD},dropped\n{text}\n")
    return route


def test_dropped_experts_need_a_choice(route: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.npz"
    with pytest.raises(SettingError) as told:
        import_trace(_dropped(route, "10010000"), out)
    assert str(told.value) == (
        f"{route}: line 12: dropped is 1, the device left this expert out; choose --dropped router (what the router "
        "chose, without the flags of the cache) or --dropped device (what the device used)"
    )
    imported = import_trace(route, out, dropped="router")
    assert imported.header.provenance["imported"]["dropped"] == "router"
    with Trace(out) as trace:
        assert trace.residency(0) is None
        assert not trace.has_residency
        assert trace.read(0, "experts", 2, 3).tolist() == [[3, 4]]
    import_trace(route, out, dropped="device", overwrite=True)
    with Trace(out) as trace:
        assert trace.read(0, "experts", 2, 3).tolist() == [[4, -1]]
        assert trace.read(0, "expert_weights", 2, 3).tolist() == [[np.float32(0.2), 0]]
        assert trace.read(1, "experts", 2, 3).tolist() == [[7, -1]]
        flags = trace.residency(1, 2, 3)
        assert flags is not None
        assert flags.tolist() == [[True, False]]
        list(trace.verify())


def test_a_choice_without_dropped_experts_changes_nothing(route: Path, tmp_path: Path) -> None:
    import_trace(route, tmp_path / "a.npz")
    import_trace(route, tmp_path / "b.npz", dropped="router")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_weights_that_bigmoe_could_not_see(route: Path, tmp_path: Path) -> None:
    rows = [line.split(",") for line in ROWS.splitlines()]
    text = "\n".join(",".join([*row[:6], "nan", *row[7:]]) for row in rows)
    route.write_text(f"{HEAD}\n{text}\n")
    imported = import_trace(route, tmp_path / "x.npz")
    assert imported.header.signals == ["experts"]
    assert "weight is nan in all rows: the trace has no expert_weights" in imported.notes


# ------------------------------------------------------------------ the general form


def check_general(route: Route, out: Path, columns: list[str]) -> None:
    """All arrays of an imported route, against what was drawn."""
    with Trace(out) as trace:
        header = trace.header
        assert [sequence.prompt for sequence in header.sequences] == route.prompts
        assert [sequence.tokens for sequence in header.sequences] == [len(tokens) for tokens in route.tokens]
        assert ("expert_weights" in header.signals) == ("weight" in columns)
        assert trace.model.layers_with("experts") == [layer for layer, size in enumerate(route.sizes) if size]
        assert [layer.dense_bytes for layer in trace.model.layers] == route.dense
        tokens = [layers for sequence in route.tokens for layers in sequence]
        for layer in trace.model.layers_with("experts"):
            nothing = [(-1, 0.0, 0)] * route.used
            chosen = np.array([layers.get(layer, nothing) for layers in tokens], np.float64)
            assert np.array_equal(trace.read(layer, "experts"), chosen[:, :, 0])
            if "weight" in columns:
                assert np.array_equal(trace.read(layer, "expert_weights"), chosen[:, :, 1].astype(np.float32))
            flags = trace.residency(layer)
            assert (flags is not None) == ("residency" in columns)
            assert flags is None or np.array_equal(flags, chosen[:, :, 2] > 0)
        accepted = trace.accepted()
        assert (accepted is not None) == ("accepted" in columns)
        assert accepted is None or accepted.tolist() == [flag for sequence in route.accepted for flag in sequence]
        list(trace.verify())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(route=routes(), form=FORMS)
def test_a_general_file_is_read_as_it_was_drawn(route: Route, form: dict, tmp_path: Path) -> None:
    path = write(route, tmp_path / "drawn", form)
    imported = import_trace(path, tmp_path / "x.npz", overwrite=True)
    assert imported.header.provenance["imported"]["format"] == form["form"]
    check_general(route, tmp_path / "x.npz", form["columns"])


def test_one_size_for_all_layers_and_no_dense_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(
        "# made by hand\n# model = mine n_layer = 2\n# n_expert=4 n_expert_used=1 expert_bytes=9 author=somebody else\n"
        "sequence,phase,token,layer,expert\n0,decode,0,0,3\n0,decode,0,1,2\n"
    )
    imported = import_trace(path, tmp_path / "x.npz")
    assert [layer.experts.bytes for layer in imported.header.model.layers if layer.experts] == [9, 9]
    assert imported.header.provenance["imported"]["preamble"] == {"author": "somebody else"}
    assert imported.notes == ["dense_bytes is not given: 0 in every layer, so reads of all other weights are left out"]


def test_json_may_say_true_and_ends_without_a_line_end(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    rows = [
        {"sequence": 0, "phase": "decode", "token": 0, "layer": 0, "expert": 1, "residency": True, "accepted": False}
    ]
    head = {
        "model": "m",
        "n_layer": 1,
        "n_expert": 2,
        "n_expert_used": 1,
        "expert_bytes": 5,
        "dense_bytes": 0,
        "seed": 3,
    }
    path.write_text("\n".join(json.dumps(row) for row in [head, *rows]))
    path.write_text("\ufeff" + path.read_text().replace(":", " :  "))
    imported = import_trace(path, tmp_path / "x.npz")
    assert imported.header.provenance["imported"]["preamble"] == {"seed": 3}
    with Trace(tmp_path / "x.npz") as trace:
        assert trace.residency(0) is not None
        assert trace.accepted() is not None


def test_the_conformance_trace(tmp_path: Path) -> None:
    imported = import_trace(write_conformance(tmp_path / "c.csv"), tmp_path / "c.npz")
    assert imported.header.sequences == [Sequence(tokens=5, prompt=0)]
    with Trace(tmp_path / "c.npz") as trace:
        for layer in range(3):
            assert trace.read(layer, "experts").tolist() == [[0, 1], [0, 2], [0, 1], [0, 3], [0, 1]]


def test_a_format_may_be_forced(route: Path, tmp_path: Path) -> None:
    assert FORMATS == ("bigmoe", "csv", "jsonl")
    import_trace(route, tmp_path / "x.npz", format="bigmoe")
    with pytest.raises(SettingError, match=r"^format json: no such format; did you mean 'jsonl'\?"):
        import_trace(route, tmp_path / "y.npz", format="json")


def test_what_is_there_is_not_replaced(route: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.npz"
    import_trace(route, out)
    before = out.read_bytes()
    with pytest.raises(OutputError, match="exists; name another file with -o, or give --overwrite"):
        import_trace(route, out)
    with pytest.raises(OutputError, match="the command reads it; choose another name"):
        import_trace(route, route, overwrite=True)
    with pytest.raises(OutputError, match="does not exist"):
        import_trace(route, tmp_path / "none" / "x.npz")
    assert out.read_bytes() == before
    assert hwsim.import_trace(route, out, overwrite=True).header.tokens == 4


def test_ten_thousand_sequences(tmp_path: Path) -> None:
    """Short sequences are no slower by orders of magnitude, and memory holds the arrays and one block."""
    path = tmp_path / "x.csv"
    head = "# model=m n_layer=2 n_expert=4 n_expert_used=1 expert_bytes=9 dense_bytes=0\nsequence,phase,token,layer,expert\n"
    rows = "".join(f"{number},decode,0,{layer},{number % 4}\n" for number in range(10_000) for layer in range(2))
    path.write_text(head + rows)
    began = time.perf_counter()
    imported = import_trace(path, tmp_path / "x.npz")
    assert time.perf_counter() - began < 20
    assert len(imported.header.sequences) == 10_000

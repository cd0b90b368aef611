"""Router traces that are wrong: each is refused in one line that names the file, the line and the rule."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hwsim.errors import TraceError
from hwsim.trace.importing import import_trace, lines
from tests.trace.test_importing import HEAD, ROWS

CSV = """\
# model=m n_layer=2 n_expert=4 n_expert_used=2
# layer=0 expert_bytes=10 dense_bytes=1
# layer=1 expert_bytes=20 dense_bytes=2
sequence,phase,token,layer,expert,weight,residency,accepted
0,prompt,0,0,1,0.7,0,0
0,prompt,0,0,2,0.3,0,0
0,prompt,0,1,3,0.7,0,0
0,prompt,0,1,2,0.3,0,0
0,decode,1,0,1,0.7,1,1
0,decode,1,0,3,0.3,0,1
0,decode,1,1,0,0.7,0,1
0,decode,1,1,1,0.3,1,1
"""
BIGMOE = f"{HEAD}\n{ROWS}\n"
OBJECTS = [
    {"model": "m", "n_layer": 1, "n_expert": 4, "n_expert_used": 2, "expert_bytes": [10], "dense_bytes": 1},
    {"sequence": 0, "phase": "decode", "token": 0, "layer": 0, "expert": 1, "weight": 0.5, "residency": 1},
    {"sequence": 0, "phase": "decode", "token": 0, "layer": 0, "expert": 2, "weight": 0.5, "residency": 0},
]
JSON = "".join(json.dumps(row) + "\n" for row in OBJECTS)


def swap(old: str, new: str, text: str = CSV, count: int = 1) -> str:
    assert old in text
    return text.replace(old, new, count)


def line(number: int, new: str | None, text: str = CSV) -> str:
    """`text` with another line in place of one; None: without it."""
    parts = text.splitlines()
    parts[number - 1 : number] = [] if new is None else new.split("\n")
    return "\n".join(parts) + "\n"


def obj(number: int, without: str = "", **new: object) -> str:
    rows = [dict(row) for row in OBJECTS]
    rows[number - 1].pop(without, None)
    rows[number - 1] |= new
    return "".join(json.dumps(row) + "\n" for row in rows)


BAD: dict[str, tuple[str | bytes, str]] = {
    # the file
    "empty": ("", "is empty; it must have a preamble and rows"),
    "not UTF-8": (CSV.replace("n_expert=4", "n_expert=4 by=Jos\xe9").encode("latin-1"), "line 1: holds the byte 0xe9, which is not UTF-8; save the file as UTF-8"),
    "truncated in a row": (CSV[:-5], "the last line has no line end, so it may be cut off; end it with one if it is whole"),
    "truncated bigmoe": (BIGMOE[:-5], "the last line has no line end, so it was cut off; delete the rows of its token"),
    "truncated JSON": (JSON[:-5], "line 3: is no whole JSON object: '{\"sequence\": 0, \"phase\": \"decode\", \"token\": 0, \"layer\": ..."),
    "a zip": (b"PK\x03\x04\x00\x00\n\x00\n", "line 1: unknown column 'PK\\x03\\x04\\x00\\x00'. Known: accepted, expert, layer, phase, residency, sequence, slot, token, weight"),
    "preamble alone": ("# model=m n_layer=2\n", "ends after the preamble; it must name the columns, and have rows"),
    "no rows": ("".join(CSV.splitlines(True)[:4]), "has no rows"),
    "no JSON rows": (JSON.splitlines(True)[0], "has no rows"),
    "another version": (swap("v1", "v2", BIGMOE), "line 1: is '# route_trace v2'; this hwsim reads '# route_trace v1'"),
    # columns
    "unknown column": (swap(",weight", ",wieght"), "line 4: unknown column 'wieght'; did you mean 'weight'? Known: accepted, expert, layer, phase, residency, sequence, slot, token, weight"),
    "column twice": (swap("accepted", "weight"), "line 4: column 'weight' is named twice; delete one"),
    "missing column": (line(4, "sequence,phase,token,layer,weight,residency,accepted"), "line 4: column 'expert' is missing; the file must have it"),
    "bigmoe column": (swap("expert_bytes\n0", "expert_bytes,nprobs\n0", BIGMOE), "line 5: unknown column 'nprobs'. Known: dropped, expert, expert_bytes, layer, phase, residency, slot, step, turn, weight"),
    "no names of columns": (line(4, None), "line 4: unknown column '0'. Known: accepted, expert, layer, phase, residency, sequence, slot, token, weight"),
    "a cell too few": (line(6, "0,prompt,0,0,2,0.3,0"), "line 6: has 7 cells, the columns are 8"),
    "an empty line": (line(6, "0,prompt,0,0,2,0.3,0,0\n"), "line 7: is empty; every line after the names of the columns must be a row"),
    "a late comment": (line(6, "# here, too"), "line 6: '# here, too' is a comment among the rows; move it to the top"),
    "an open quote": (line(6, '0,prompt,0,0,2,0.3,0,"0'), "line 6: is no row of CSV: unexpected end of data"),
    # values
    "a fraction": (swap("0,prompt,0,0,2,", "0,prompt,0,0,2.0,"), "line 6: expert is '2.0'; must be a whole number from 0 to 1000000000000000"),
    "a negative expert": (swap("0,prompt,0,0,2,", "0,prompt,0,0,-2,"), "line 6: expert is '-2'; must be a whole number from 0 to 1000000000000000"),
    "an expert of thousands of digits": (swap("0,prompt,0,0,2,", f"0,prompt,0,0,{'2' * 5000},"), f"line 6: expert is '{'2' * 56}...; must be a whole number from 0 to 1000000000000000"),
    "an expert beyond n_expert": (swap("0,prompt,0,0,2,", "0,prompt,0,0,4,"), "line 6: expert is 4; n_expert is 4, so it must be at most 3"),
    "a layer beyond n_layer": (swap("0,prompt,0,0,2,", "0,prompt,0,2,2,"), "line 6: layer is 2; n_layer is 2, so it must be at most 1"),
    "a layer of 10^12": (swap("0,prompt,0,0,2,", "0,prompt,0,1000000000000,2,"), "line 6: layer is 1000000000000; n_layer is 2, so it must be at most 1"),
    "a dense layer": (swap("expert_bytes=20", "expert_bytes=0"), "line 7: layer is 1; the preamble gives it no experts (expert_bytes=0)"),
    "an unknown phase": (swap("0,decode,1,0,1", "0,decoded,1,0,1"), "line 9: phase is 'decoded'; must be prompt or decode, or 0 or 1"),
    "NaN": (swap("0.3", "nan"), "line 6: weight is nan; must be a finite number from 0"),
    "infinity": (swap("0.3", "inf"), "line 6: weight is inf; must be a finite number from 0"),
    "a weight beyond float32": (swap("0.3", "1e39"), "line 6: weight is 1e+39; must be a finite number from 0"),
    "a negative weight": (swap("0.3", "-0.1"), "line 6: weight is -0.1; must be a finite number from 0"),
    "no number": (swap("0.3", "0.3.1"), "line 6: weight is '0.3.1'; must be a number"),
    "NaN in some rows": (swap("0.6,0,0", "nan,0,0", BIGMOE), "line 8: weight is nan, line 6 has one; all must be numbers, or all nan"),
    "residency of 2": (swap("0,decode,1,0,1,0.7,1", "0,decode,1,0,1,0.7,2"), "line 9: residency is '2'; must be from 0 to 1"),
    "residency in some rows": (swap("0,decode,1,0,1,0.7,1", "0,decode,1,0,1,0.7,"), "line 9: residency is empty; must be from 0 to 1; give it in every row, or leave the column out"),
    "accepted differs": (swap("0.3,0,1\n", "0.3,0,0\n"), "line 10: accepted differs from other rows of this token; it is one flag a token"),
    "bytes of a row": (swap("0.2,0,100", "0.2,0,101", BIGMOE), "line 13: expert_bytes is 101; must be 0, or that of the layer in the preamble, 100"),
    "a step below 0": (swap("0,1,2,0,0", "0,1,-1,0,0", BIGMOE), "line 12: step is '-1'; must be a whole number from 0 to 1000000000000000"),
    "a slot beyond n_expert_used": (swap("0,1,2,0,1,", "0,1,2,0,2,", BIGMOE), "line 13: slot is 2; n_expert_used is 2, so it must be at most 1"),
    # order
    "twice the same expert": (swap("0,decode,1,1,1,", "0,decode,1,1,0,"), "line 12: expert is 0 for the second time in this token and layer"),
    "a slot missing": (line(13, None, BIGMOE), "line 15: step is 3 in layer 0, but step 2 of this layer has only 1 of 2 experts"),
    "the last slot missing": (line(12, None), "sequence 0 ends with the file, but token 1 of layer 1 has 1 of 2 experts"),
    "a slot twice": (swap("0,1,2,0,1,", "0,1,2,0,0,", BIGMOE), "line 13: slot is 0 in step 2 of layer 0, must be 1; the 2 experts of a token are in the order of their slots"),
    "an expert too many": (line(10, "0,decode,1,0,3,0.3,0,1\n0,decode,1,0,2,0.3,0,1"), "line 11: token is 1 in layer 0, which has 2 experts of that token already; n_expert_used is 2"),
    "a layer missing in the last token": ("".join(CSV.splitlines(True)[:-2]), "sequence 0 ends with the file, but its decoded token 1 has no rows of layer 1; every layer must have rows of every token"),
    "a layer missing": ("".join(part for part in BIGMOE.splitlines(True) if not part.startswith("0,1,2,1")), "line 16: step is 3 in layer 1, must be 2; rows of that token are missing, or not in order"),
    "a layer missing in the prompt": ("".join(part for part in CSV.splitlines(True) if not part.startswith("0,prompt,0,0")), "line 7: sequence 0 ends before this line, but its prompt token 0 has no rows of layer 0; every layer must have rows of every token"),
    "a step missing": ("".join(part for part in BIGMOE.splitlines(True) if not part.startswith("0,1,2,")), "line 12: step is 3 in layer 0, must be 2; rows of that token are missing, or not in order"),
    "steps not in order": ("".join([*BIGMOE.splitlines(True)[:11], *BIGMOE.splitlines(True)[15:], *BIGMOE.splitlines(True)[11:15]]), "line 12: step is 3 in layer 0, must be 2; rows of that token are missing, or not in order"),
    "a step again": (swap("0,1,3,0,0", "0,1,1,0,0", BIGMOE), "line 16: step is 1 in layer 0, must be 3; tokens of a layer must be in order"),
    "a token of 10^12": (swap("0,decode,1,0,1", "0,decode,1000000000000,0,1"), "line 9: token is 1000000000000 in layer 0, must be 1; rows of that token are missing, or not in order"),
    "prompt after decode": (line(11, "0,prompt,1,1,0,0.7,0,1"), "line 11: sequence 0 has a row of the prompt after decoded ones; the prompt must come first"),
    "prompt after decode, complete": (CSV + "0,prompt,2,0,1,0.7,1,1\n", "line 13: sequence 0 has a row of the prompt after decoded ones; the prompt must come first"),
    "only a prompt": ("".join(CSV.splitlines(True)[:8]), "sequence 0 has no decoded tokens, only a prompt; leave it out"),
    "only a prompt, then another": (CSV.replace("0,decode,1", "1,decode,0"), "line 9: sequence 0 has no decoded tokens, only a prompt; leave it out"),
    "a sequence missing": (CSV + "2,decode,0,0,1,0.7,1,1\n", "line 13: sequence is 2, must be 1; sequences are numbered from 0 without a gap, one after the other"),
    "the first sequence is 1": (line(5, "1,prompt,0,0,1,0.7,0,0"), "line 5: sequence is 1, must be 0; sequences are numbered from 0 without a gap, one after the other"),
    "a sequence does not begin at 0": (line(5, "0,prompt,1,0,1,0.7,0,0"), "line 5: token is 1, must be 0 in the first row of a sequence"),
    "the first turn does not begin at 0": (swap("0,0,0,0,0,", "0,0,5,0,0,", BIGMOE), "line 6: step is 5, must be 0 in the first row of a sequence"),
    "the last layer has the first token": (swap("0,0,1,1,0,7,0.9,0,200\n0,0,1,1,1", "0,0,0,1,0,7,0.9,0,200\n0,0,0,1,1", BIGMOE), "line 12: turn 0 ends before this line, but its prompt step 1 has no rows of layer 1; every layer must have rows of every token"),
    "the last layer has half a token": (line(11, None, BIGMOE), "line 11: turn 0 ends before this line, but layer 1 has 1 rows of the prompt, at step 1; it must have all tokens, or all 2 rows of the last one, 1"),
    "the last layer has a wrong token": (swap("0,0,1,1,", "0,0,3,1,", BIGMOE, 2), "line 12: turn 0 ends before this line, but layer 1 has 2 rows of the prompt, at step 3; it must have all tokens, or all 2 rows of the last one, 1"),
    # the preamble
    "no model": (swap("model=m ", ""), "the preamble names no model; add model=NAME to it"),
    "no n_layer": (swap("n_layer=2 ", ""), "the preamble has no n_layer; add n_layer=NUMBER to it, it cannot be seen in the rows"),
    "no n_expert": (swap("n_expert=4 ", ""), "the preamble has no n_expert; add n_expert=NUMBER to it, it cannot be seen in the rows"),
    "no n_expert_used": (swap(" n_expert_used=2", ""), "the preamble has no n_expert_used; add n_expert_used=NUMBER to it, it cannot be seen in the rows"),
    "n_layer is no number": (swap("n_layer=2", "n_layer=two"), "line 1: n_layer is 'two'; must be a whole number from 1 to 1000"),
    "10^9 layers": (swap("n_layer=2", "n_layer=1000000000"), "line 1: n_layer is '1000000000'; must be a whole number from 1 to 1000"),
    "10^9 experts": (swap("n_expert=4", "n_expert=1000000000"), "line 1: n_expert is '1000000000'; must be a whole number from 1 to 32767"),
    "more used than there are": (swap("n_expert_used=2", "n_expert_used=5"), "n_expert_used is 5, more than n_expert, which is 4"),
    "more experts a token than the file has bytes": (swap("n_expert=4 n_expert_used=2", "n_expert=32767 n_expert_used=32767"), "one token has 65534 rows by n_layer and n_expert_used, the file only 379 bytes"),
    "a layer line too few": (line(3, None), "expert_bytes of layer 1 is missing, n_layer is 2; give it for every layer"),
    "a layer line too many": (line(3, "# layer=1 expert_bytes=20 dense_bytes=2\n# layer=2 expert_bytes=20 dense_bytes=2"), "line 4: gives bytes of layer 2, n_layer is 2; layers are numbered from 0"),
    "a layer line twice": (line(3, "# layer=0 expert_bytes=20 dense_bytes=2"), "line 3: gives layer 0 again; delete one"),
    "dense_bytes of some layers": (swap(" dense_bytes=2", ""), "dense_bytes of layer 1 is missing, n_layer is 2; give it for every layer"),
    "bytes of all layers and of each": (swap("n_layer=2", "n_layer=2 expert_bytes=5"), "line 2: gives expert_bytes of a layer, line 1 that of all layers; give one of both"),
    "no expert_bytes": (swap("expert_bytes=10 ", "").replace("expert_bytes=20 ", ""), "the preamble has no expert_bytes; add it for each layer, or once if all layers are alike"),
    "no experts at all": (swap("expert_bytes=10 ", "expert_bytes=0 ").replace("expert_bytes=20 ", "expert_bytes=0 "), "expert_bytes is 0 in every layer; a layer with experts needs their bytes"),
    "expert_bytes of 10^16": (swap("expert_bytes=10 ", f"expert_bytes={10**16} "), "line 2: expert_bytes is '10000000000000000'; must be a whole number from 0 to 1000000000000000"),
    "an unknown key of a layer": (swap("dense_bytes=2", "dense_byte=2"), "line 3: unknown key 'dense_byte' of a layer; did you mean 'dense_bytes'? Known: dense_bytes, expert_bytes"),
    "a key twice": (swap("n_layer=2", "n_layer=2 n_layer=3"), "line 1: gives n_layer twice; delete one"),
    "a key again": (line(2, "# n_layer=2\n# layer=0 expert_bytes=10 dense_bytes=1"), "line 2: gives n_layer again after line 1; delete one"),
    "bigmoe without dense_bytes": (swap(" dense_bytes=12", "", BIGMOE), "layer 1 has no dense_bytes in the preamble; give both for every layer"),
    # JSON
    "no preamble": ("".join(JSON.splitlines(True)[1:]), "line 1: is a row; the first object must be the preamble, with model, n_layer and n_expert"),
    "unknown key": (obj(2, wieght=1), "line 2: unknown key 'wieght'; did you mean 'weight'? Known: accepted, expert, layer, phase, residency, sequence, slot, token, weight"),
    "unknown key later": (obj(3, wieght=1), "line 3: unknown key 'wieght'; did you mean 'weight'? Known: accepted, expert, layer, phase, residency, sequence, slot, token, weight"),
    "missing key": (obj(2, "expert"), "line 2: expert is missing; every row must have it"),
    "residency in some objects": (obj(3, "residency"), "line 3: lacks residency, which line 2 has; give it in every row, or in none"),
    "accepted in some objects": (obj(3, accepted=1), "line 3: has accepted, which line 2 lacks; give it in every row, or in none"),
    "expert missing later": (obj(3, "expert"), "line 3: lacks expert, which line 2 has; give it in every row"),
    "a text": (obj(3, expert="2"), 'line 3: expert is "2"; must be a whole number from 0 to 1000000000000000'),
    "true": (obj(3, expert=True), "line 3: expert is true; must be a whole number from 0 to 1000000000000000"),
    "a JSON fraction": (obj(3, expert=2.0), "line 3: expert is 2.0; must be a whole number from 0 to 1000000000000000"),
    "10^400": (obj(3, expert=10**400), f"line 3: expert is 1{'0' * 56}...; must be a whole number from 0 to 1000000000000000"),
    "JSON NaN": (obj(3, weight=float("nan")), "line 3: weight is nan; must be a finite number from 0"),
    "JSON null": (obj(3, weight=None), "line 3: weight is null; must be a number"),
    "JSON phase": (obj(3, phase=2), "line 3: phase is 2; must be prompt or decode, or 0 or 1"),
    "a key twice in an object": (swap('"weight": 0.5, ', '"weight": 0.5, "weight": 0.6, ', JSON), "line 2: names 'weight' twice; delete one"),
    "a list": (JSON + "[]\n", "line 4: is no whole JSON object: '[]'"),
    "deep": (JSON + "[" * 100_000 + "\n", f"line 4: is no whole JSON object: '{'[' * 56}..."),
    "an empty JSON line": (JSON + "\n", "line 4: is empty; every line must be a JSON object"),
    "bytes for too few layers": (obj(1, n_layer=2), "expert_bytes of layer 1 is missing, n_layer is 2; give it for every layer"),
    "bytes for too many layers": (obj(1, expert_bytes=[1, 2]), "line 1: gives bytes of layer 1, n_layer is 1; layers are numbered from 0"),
    "bytes are a fraction": (obj(1, expert_bytes=[1.5]), "line 1: expert_bytes is 1.5; must be a whole number from 0 to 1000000000000000"),
    "a preamble with an object": (obj(1, made={"by": "me"}), "line 1: 'made' is {'by': 'me'}; must be a text or a number"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "rule"), BAD.values(), ids=BAD)
def test_a_bad_file_is_one_line(text: str | bytes, rule: str, tmp_path: Path) -> None:
    path = tmp_path / "bad"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(TraceError) as told:
        import_trace(path, tmp_path / "x.npz")
    assert str(told.value) == f"{path}: {rule}"
    assert [entry.name for entry in tmp_path.iterdir()] == ["bad"]


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda path: None, "cannot be read: No such file or directory"),
        (lambda path: path.mkdir(), "is no regular file; the import reads it twice, so save it as one first"),
    ],
)
def test_what_is_no_file(make: Callable[[Path], object], rule: str, tmp_path: Path) -> None:
    path = tmp_path / "bad"
    make(path)
    with pytest.raises(TraceError) as told:
        import_trace(path, tmp_path / "x.npz")
    assert str(told.value) == f"{path}: {rule}"


def test_a_line_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "_BLOCK", 1000)
    path = tmp_path / "bad"
    path.write_text(CSV + "0" * 5000 + "\n")
    with pytest.raises(TraceError, match=r"line 13: is longer than 1000 bytes; this is no file of rows$"):
        import_trace(path, tmp_path / "x.npz")


@pytest.mark.parametrize(
    "comment",
    ["a=x" + " " * 10**6 + "y", "a=1 " + "b " * 10**6, "x " * 10**6, " ".join(f"k{n}=1" for n in range(10**5))],
    ids=["spaces", "words", "no keys", "keys"],
)
def test_long_comments_take_no_longer_than_their_length(comment: str, tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_text(f"# {comment}\n" + CSV)
    began = time.perf_counter()
    import_trace(path, tmp_path / "x.npz")
    assert time.perf_counter() - began < 20  # a search by pairs would take hours


def test_a_file_that_grows_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "bad"
    path.write_text(CSV)

    def grow(phase: str, done: int, total: int) -> None:
        if phase == "checking rows":
            path.write_text(CSV.replace("0.3", "0.2"))

    with pytest.raises(TraceError, match="was changed while it was read; import it again when it is complete"):
        import_trace(path, tmp_path / "x.npz", progress=grow)
    assert [entry.name for entry in tmp_path.iterdir()] == ["bad"]


def test_all_experts_dropped(tmp_path: Path) -> None:
    path = tmp_path / "bad"
    rows = [row + (",1" if row.startswith("0,1,2,0") else ",0") for row in ROWS.splitlines()]
    path.write_text(f"{HEAD},dropped\n" + "\n".join(rows) + "\n")
    with pytest.raises(
        TraceError, match=r"line 12: all experts of this token and layer are dropped; one must be used$"
    ):
        import_trace(path, tmp_path / "x.npz", dropped="device")

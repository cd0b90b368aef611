"""What other commands print and write is what is committed: tables, statistics, layouts, caches, timelines, traces.

The golden is written by ``python -m tests.system.golden.make outputs`` and never by a test. As for replays, versions
and hashes of sources are left out. A file of arrays is compared by the hash of its arrays, which needs a machine on
which numpy rounds as on that of the golden.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import hwsim
from hwsim.trace import Trace, TraceWriter
from tests.system import compare
from tests.system.replays import FILES, JSONS, TEXTS
from tests.system.run import INPUTS, decided, read, run, run_json, written

GOLDEN = read("outputs.json")
SAME = GOLDEN.pop("arithmetic") == compare.arithmetic()
MASKS = GOLDEN.pop("masks")
RELATIVE = 0.0 if SAME else compare.RELATIVE
PRINTED = read("texts.json")
RESULTS = read("replays.json")


def test_every_output_has_a_golden_one() -> None:
    assert list(GOLDEN) == [*JSONS, *FILES]
    assert list(PRINTED) == TEXTS


@pytest.mark.parametrize("line", TEXTS, ids=TEXTS)
def test_the_text_is_the_golden_one(line: str) -> None:
    assert run(line.split()).splitlines() == PRINTED[line]


@pytest.mark.parametrize("line", JSONS, ids=JSONS)
def test_the_json_is_the_golden_one(line: str) -> None:
    compare.check(GOLDEN[line], run_json(line), RELATIVE)


@pytest.mark.parametrize("line", FILES, ids=FILES)
def test_the_file_is_the_golden_one(line: str, tmp_path: Path) -> None:
    golden, now = GOLDEN[line], written(line, tmp_path / "here")
    if not SAME and not {"synth", "calibrate"}.isdisjoint(line.split()):
        pytest.skip("numpy rounds otherwise here than where the golden file was written")
    compare.check(golden, now, RELATIVE)


@pytest.mark.parametrize("name", ["small.npz", "plain.npz"])
def test_a_trace_of_the_same_signals_has_the_same_bytes(name: str, tmp_path: Path) -> None:
    """Written in pieces, by a writer that was closed in the middle and opened again."""
    with Trace(INPUTS / name) as trace:
        header = trace.header.model_copy(update={"provenance": {"made": "for tests"}})
        norms = [norm for norm in ("norm_input", "norm_down") if name == "small.npz"]
        for start, stop in ((0, 17), (17, header.tokens)):
            with TraceWriter(tmp_path / name, header, norms=bool(norms)) as writer:
                assert writer.done == start
                for layer in range(header.model.num_hidden_layers):
                    for signal in header.signals:
                        writer.write(layer, signal, start, trace.read(layer, signal, start, stop))
                    for norm in norms if start == 0 else ():
                        writer.write_norm(layer, norm, trace.norm(layer, norm))
                writer.commit(stop)
                if stop == header.tokens:
                    writer.finish()
    assert (tmp_path / name).read_bytes() == (INPUTS / name).read_bytes()


def test_python_gives_the_results_of_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """`hwsim.load` and `hwsim.replay`, with the options of four golden replays."""
    monkeypatch.chdir(INPUTS)
    rich = "small.npz --hw rich.yaml --policy"
    with hwsim.load("small.npz") as trace:
        for line, policy, options in (
            (f"{rich} dip", "dip", {}),
            (f"{rich} dense --overlap group", "dense", {"overlap": "group"}),
            (f"{rich} dip --density 0.45 --dram 60% --packed --merge 2KiB --gap auto", "dip",
             {"density": 0.45, "dram": "60%", "packed": True, "merge": "2KiB", "gap": "auto"}),
            (f"{rich} dip-ca --density 0.4 --set gamma=0.3 --dram 62% --eviction steady_eviction.py", "dip-ca",
             {"density": 0.4, "gamma": 0.3, "dram": "62%", "eviction": "steady_eviction.py"}),
        ):  # fmt: skip
            result = hwsim.replay(trace, "rich.yaml", policy, threads=1, **options)
            compare.check(RESULTS[line], result.plain(), RELATIVE)


def test_the_masks_of_a_policy_are_the_golden_ones() -> None:
    compare.check(MASKS, decided())

"""The page about sweeps is run."""

from __future__ import annotations

from hwsim.studies.sweep.cells import expand
from hwsim.studies.sweep.spec import read_spec
from tests.conftest import REPOSITORY
from tests.docs.blocks import blocks

PAGE = REPOSITORY / "docs" / "howto" / "sweep.md"


def test_its_files_describe_sweeps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example = (REPOSITORY / "docs" / "examples" / "sliding_top.py").read_text()
    (tmp_path / "mine.py").write_text(example)
    found = []
    for number, text in enumerate(blocks(PAGE, "yaml")):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        found.append(len(list(expand(read_spec(path)))))
    # for each device, size and rule (one lfu, two s3fifo): dense, two dip, four dip-ca, mine
    assert found == [2 * 2 * 3 * 8, 6 + 4]


def test_its_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(PAGE, "python")
    # where processes are started, the main module must be one that can be imported
    exec(code.replace("jobs=2", "jobs=1"), {})
    assert capsys.readouterr().out.split()[0] == "dip-ca"

"""Every command and every piece of Python that the pages show is run, page by page, in the order of the page.

* A ``text`` fence right after a ``sh`` or ``python`` fence is its output, and must be it to the letter.
* A fence with a title is a file, written before what comes after it.
* Where a page asks a real model, a small random one with the same kinds of layers stands in for it, and trainings are
  short: that the commands work is tested, not what comes out. What the README shows of the real model is compared in
  `.ci/run`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hwsim.api import load
from hwsim.cli.app import app
from hwsim.trace import Sequence
from tests.conftest import REPOSITORY
from tests.docs.blocks import Block, fences
from tests.sparse import write_sparse

PAGES = [
    page
    for page in [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
    if any(block.language in ("sh", "python") for block in fences(page))
]
# what is no command of hwsim, or needs what a test has not
_LEFT_OUT = re.compile(r"pip |git |sqlite3 |fio |mkdocs |python |\.ci/|make |#|.* --address |pre-commit ")
_EXTRAS = {
    "--plot": "plotly", "hwsim report": "jinja2", "fit device": "scipy", "to_frame": "pandas", "hwsim tune": "optuna",
    "train lora": "peft", "--tasks": "lm_eval",
}  # fmt: skip
_SMALL = ("llama", "phi3", "mixtral")
_SMALLER = [
    (r"--model (smollm2-135m|\./my-finetuned-llama)", "--model ./llama"),
    (r"record --model \./my-qwen3-moe", "record --model ./mixtral"),
    (r"record --model phi3-medium", "record --model ./phi3"),
    (r"(train lora .*)", r"\1 --tokens 1024 --validation 512"),
    (r"(train predictor .*)", r"\1 --epochs 1"),
    (r"(tune .*)", r"\1 --trials 3"),
    (r"(sweep grid.yaml) ", r"\1 --hw pixel8 --dram 60% --density 0.5 "),  # some of its two hundred runs
    (r"(sweep (?!.*--jobs).*)", r"\1 --jobs 1"),  # no processes: they are tested elsewhere
    (r"--chat ", ""),  # the small models have no template
]


def _asks_a_model(page: Path) -> bool:
    return any(word in "".join(block.text for block in fences(page)) for word in ("--model", "closed_loop("))


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a page is run: with the files that it takes for granted."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.setenv("COLUMNS", "110")
    monkeypatch.setenv("NO_COLOR", "1")
    page: Path = request.getfixturevalue("page")
    text = page.read_text(encoding="utf-8")
    for words, module in _EXTRAS.items():
        if any(words in block.text for block in fences(page)):
            pytest.importorskip(module, reason="the page needs an extra")
    (tmp_path / "docs").mkdir()
    shutil.copytree(REPOSITORY / "docs" / "examples", tmp_path / "docs" / "examples")
    shutil.copytree(REPOSITORY / "tests" / "closed_loop" / "tasks", tmp_path / "tests" / "closed_loop" / "tasks")
    with load("sample") as sample:
        trace = Path(sample.path)
    if _asks_a_model(page):
        trace = request.getfixturevalue("small_models") / "small.npz"
        for name in _SMALL:
            (tmp_path / name).symlink_to(trace.parent / name)
        book = (REPOSITORY / "hwsim" / "record" / "texts" / "persuasion.txt").read_text(encoding="utf-8")
        for name in ("book.txt", "mybook.txt", "other.txt"):
            (tmp_path / name).write_text(book[:60_000], encoding="utf-8")
    for name in ("book.npz", "smollm2.npz", "other.npz"):
        if f"-o {name}" not in text:
            (tmp_path / name).symlink_to(trace)
    if "experts.npz" in text and "-o experts.npz" not in text:
        write_sparse(tmp_path / "experts.npz", [Sequence(tokens=24, prompt=4)])
    policy = next(block for block in fences(REPOSITORY / "docs" / "howto" / "policy.md") if block.title == "mine.py")
    (tmp_path / "mine.py").write_text(policy.text, encoding="utf-8")
    (tmp_path / "fio.json").write_text(json.dumps(_like_fio()), encoding="utf-8")
    yield tmp_path
    sys.modules.pop("mine", None)  # that a page imported


def _like_fio() -> dict[str, object]:
    """Synthetic: what fio would write of a device with 80 us of latency that ends at 2 GB/s."""
    jobs = []
    for size, depth in itertools.product((4, 16, 64, 256, 1024), (1, 8, 32)):
        rate = min(2e9, depth * size * 1024 / (80e-6 + size * 1024 / 2e9))
        options = {"bs": f"{size}k", "iodepth": str(depth)}
        jobs.append({"jobname": f"{size}k-{depth}", "job options": options, "read": {"bw_bytes": rate}})
    return {"jobs": jobs}


@pytest.fixture(scope="session")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random checkpoints, and a trace of one of them."""
    pytest.importorskip("torch", reason="recording needs the extra `record`")
    pytest.importorskip("transformers", reason="recording needs the extra `record`")
    from hwsim.record import Settings, record
    from tests.record.conftest import make_model, save

    root = tmp_path_factory.mktemp("models")
    for name in _SMALL:
        save(make_model(name, max_position_embeddings=1024, num_hidden_layers=4), root / name)
    record(root / "small.npz", str(root / "llama"), settings=Settings(1024, 256))
    return root


def _lines(block: Block) -> list[str]:
    """The commands of a fence."""
    joined = block.text.replace("\\\n", " ").replace("&&\n", "\n")
    return [line.strip().removesuffix("&&").strip() for line in joined.splitlines() if line.strip()]


def _run(line: str) -> str:
    words = shlex.split(line)
    assert words[0] == "hwsim", f"neither run nor left out: {line}"
    done = CliRunner().invoke(app, words[1:], prog_name="hwsim")
    assert done.exit_code == 0, f"{line}\n{done.output}\n{done.exception}"
    return done.stdout


def _smaller(line: str) -> str:
    for pattern, put in _SMALLER:
        line = re.sub(pattern, put, line)
    return line if importlib.util.find_spec("kaleido") else line.replace("latex,svg", "latex")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_a_page_does_what_it_says(page: Path, folder: Path) -> None:
    shown = fences(page)
    names: dict[str, object] = {"__name__": "page"}
    for block, after in zip(shown, [*shown[1:], None], strict=True):
        place = f"{page.relative_to(REPOSITORY)}:{block.line}"
        output = ""
        if block.title:
            (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.title).write_text(block.text, encoding="utf-8")
            continue
        if block.language == "sh" and not block.command:
            for line in _lines(block):
                if not _LEFT_OUT.match(line):
                    output += _run(_smaller(line))
        elif block.language == "python":
            told = io.StringIO()
            with contextlib.redirect_stdout(told):
                exec(compile(block.text.replace('"smollm2-135m"', '"./llama"'), place, "exec"), names)
            output = told.getvalue()
        else:
            continue
        if after is None or after.language != "text" or after.command:
            continue
        if os.environ.get("HWSIM_WRITE_OUTPUTS"):
            text = page.read_text(encoding="utf-8")
            fresh = f"{block.text}```\n\n```text\n" + "\n".join(_plain(output)) + "\n```"
            page.write_text(text.replace(f"{block.text}```\n\n```text\n{after.text}```", fresh), encoding="utf-8")
        else:
            assert _plain(output) == _plain(after.text), f"{place}: HWSIM_WRITE_OUTPUTS=1 writes what it is now"


def _plain(text: str) -> list[str]:
    """Lines without the spaces at their ends, and without empty ones around."""
    return "\n".join(line.rstrip() for line in text.splitlines()).strip("\n").splitlines()

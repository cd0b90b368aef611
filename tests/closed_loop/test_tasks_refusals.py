"""Tasks in the closed loop: what is refused, and the command."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="tasks need the extra `record`")
pytest.importorskip("lm_eval", reason="tasks need the extra `tasks`")

from hwsim.closed_loop.harness import load_tasks
from hwsim.errors import HwsimError, ModelError, SettingError
from tests.closed_loop.taskruns import TASKS, own_cache, run

__all__ = ["own_cache"]


# ---------------------------------------------------------------------- what is refused


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A copy of the tasks, to be changed."""
    shutil.copytree(TASKS, tmp_path / "mine")
    yield tmp_path / "mine"


@pytest.mark.filterwarnings("ignore")
def test_what_is_refused(checkpoints: dict[str, Path], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(kind: type[HwsimError], message: str, *names: str, **options: Any) -> None:
        with pytest.raises(kind, match=message) as caught:
            run(checkpoints["llama"], names, {"dip": {}}, **({"folder": folder} | options))
        assert "\n" not in str(caught.value)

    names = (folder / "names.yaml").read_text()
    (folder / "endless.yaml").write_text(names.replace("_names", "_endless").replace("_toks: 8", "_toks: 500"))
    (folder / "beams.yaml").write_text(names.replace("_names", "_beams").replace("do_sample: false", "num_beams: 2"))
    (folder / "lost.yaml").write_text(names.replace("_names", "_lost").replace("names.jsonl", "none.jsonl"))
    (folder / "wrong.yaml").write_text(names.replace("_names", "_wrong").replace("generate_until", "guess"))
    refused(SettingError, "--tasks names no task")
    refused(SettingError, "--limit 0: must be at least 1", "persuasion_names", limit=0)
    refused(SettingError, "nowhere: is no folder; give one with", "persuasion_names", folder=folder / "nowhere")
    refused(
        SettingError, "the future cannot serve persuasion_names, which generates", "persuasion_names", eviction="belady"
    )
    refused(SettingError, "none of these does; leave it out", "persuasion_letters", dense_prompt=True)
    refused(SettingError, "_endless: generates up to 500 tokens, the model reads at most 256", "persuasion_endless")
    refused(ModelError, "several texts at once, such as beams", "persuasion_beams")
    refused(ModelError, r"--tasks persuasion_lost: cannot be loaded: FileNotFoundError", "persuasion_lost")
    refused(ModelError, r"--tasks persuasion_wrong: cannot be loaded", "persuasion_wrong")
    with monkeypatch.context() as patched:

        def unreachable(*args: Any, **options: Any) -> None:
            raise ConnectionError("Couldn't reach 'some/set' on the Hub")

        patched.setattr("datasets.load_dataset", unreachable)
        refused(SettingError, "its data set is not on this machine and the hub cannot be reached", "persuasion_names")
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "lm_eval", None)
        refused(
            SettingError,
            r"needs lm-eval, which is not installed; install it with: pip install 'hwsim\[tasks\]'",
            "persuasion_names",
        )


@pytest.mark.filterwarnings("ignore")
def test_names_that_are_unknown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval's own thousands of tasks are left out here: reading them takes many seconds."""
    from lm_eval.tasks import TaskManager

    made = TaskManager.__init__

    def without(self: Any, *args: Any, **options: Any) -> None:
        made(self, *args, **(options | {"include_defaults": False}))

    monkeypatch.setattr(TaskManager, "__init__", without)

    def refused(name: str, path: Path | None) -> str:
        with pytest.raises(SettingError) as caught:
            load_tasks([name], path, None, lambda done, total: None)
        return str(caught.value)

    assert "did you mean 'persuasion_names'?" in refused("persuasion_name", folder)
    assert "mine has persuasion_endings, persuasion_letters, persuasion_names" in refused("zzz", folder)
    assert "lm-eval has no such task; name a folder with --tasks-path" in refused("zzz", None)
    (folder / "broken.yaml").write_text("task: [mine\n")
    assert "no such task; broken.yaml cannot be read: while parsing" in refused("zzz", folder)


def test_command(checkpoints: dict[str, Path], tmp_path: Path, hwsim: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path.parent / "datasets"))
    common = ("eval", "--model", checkpoints["llama"], "--hw", "pixel8", "--dram", "60%", "--policy", "dip,dip-ca")
    mine = ("--tasks", "persuasion_endings,persuasion_names", "--tasks-path", TASKS, "--limit", 2)
    done = hwsim(*common, *mine, "--json", "t.json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "Result written to t.json\n"
    assert done.stdout.count("(no mask)") == 3
    for text in ("persuasion_endings", "acc_norm", "exact_match", "against", "tokens/s", "hit"):
        assert text in done.stdout
    first, second = json.loads((tmp_path / "t.json").read_text())["results"]
    assert first["lm_eval"]["dense_results"] == second["lm_eval"]["dense_results"]
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]
    for options, message in (
        ((*mine, "--context", 24), "--context: does not go with --tasks"),
        ((*mine, "--save-masks", "m.npz"), "--save-masks: does not go with --tasks"),
        (("--limit", 2), "--limit: is for --tasks"),
    ):
        refused = hwsim(*common, *options)
        assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
        assert message in refused.stderr

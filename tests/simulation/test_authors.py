"""The path of an author: a starting file, its check, a package of one's own."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hwsim.cli.app import app
from tests.conftest import REPOSITORY

THIRD_PARTY = REPOSITORY / "tests" / "third_party"


def run(*arguments: object, code: int = 0) -> tuple[str, str]:
    """Run hwsim in this process: (standard output, standard error)."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.stdout, done.stderr


# ---------------------------------------------------------------------- a starting file


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", ["policy", "eviction"])
def test_what_is_written_works_at_once(kind: str, empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands that it prints are the ones that are run here."""
    out, _ = run(f"new-{kind}", "my_own")
    assert sorted(path.name for path in empty.iterdir()) == ["my_own.py", "test_my_own.py"]
    assert len((empty / "my_own.py").read_text().splitlines()) <= 30
    written, _, following = out.partition("next:")
    assert written.split() == ["wrote", "my_own.py", "wrote", "test_my_own.py"]
    check, test, replay = following.strip().splitlines()
    shown, _ = run(*check.split()[1:])
    assert "my-own keeps every rule of the contract." in shown
    assert test.split()[:3] == ["python", "-m", "pytest"]
    monkeypatch.syspath_prepend(str(empty))
    tests = importlib.import_module(test.split()[3].removesuffix(".py"))  # `.ci/starters` runs it by pytest
    for name in ("my_own", "test_my_own"):
        sys.modules.pop(name)
    found = [function for name, function in vars(tests).items() if name.startswith("test_")]
    assert len(found) == 2
    for function in found:
        function()
    assert "my-own" in run(*replay.split()[1:])[0]


def test_a_policy_for_experts_works_at_once(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample has no experts, so the replay that is printed is one of a trace of the author's."""
    following = run("new-policy", "calm", "--experts")[0].partition("next:")[2].strip().splitlines()
    assert len((empty / "calm.py").read_text().splitlines()) <= 30
    assert "calm keeps every rule of the contract." in run(*following[0].split()[1:])[0]
    assert following[2].split()[:3] == ["hwsim", "replay", "TRACE"]
    monkeypatch.syspath_prepend(str(empty))
    tests = importlib.import_module("test_calm")
    for name in ("calm", "test_calm"):
        sys.modules.pop(name)
    found = [function for name, function in vars(tests).items() if name.startswith("test_")]
    assert len(found) == 2
    for function in found:
        function()


@pytest.mark.skipif(shutil.which("ruff") is None, reason="ruff is not installed")
@pytest.mark.parametrize("kind", ["policy", "policy --experts", "eviction"])
def test_what_is_written_is_kept_as_this_repository_is(kind: str, empty: Path) -> None:
    """By ruff with the rules of this repository; `.ci/starters` has mypy, too."""
    parts = re.split(r"(?m)^(?=\[)", (REPOSITORY / "pyproject.toml").read_text())
    rules = "".join(part for part in parts if part.startswith("[tool.ruff"))
    rules = rules.replace("[tool.ruff]\n", "").replace("[tool.ruff.", "[").replace('"tests/*"', '"test_*"')
    (empty / "ruff.toml").write_text(rules)
    run(*f"new-{kind}".split(), "my_own")
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(["ruff", *command, "."], cwd=empty, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("kind", ["policy", "eviction"])
def test_a_package_names_its_entry_point(kind: str, empty: Path) -> None:
    out, _ = run(f"new-{kind}", "my_own", "-o", "a folder", "--package")
    data = tomllib.loads((empty / "a folder" / "pyproject.toml").read_text())
    group = {"policy": "hwsim.policies", "eviction": "hwsim.evictions"}[kind]
    assert data["project"]["entry-points"] == {group: {"my-own": "my_own:MyOwn"}}
    assert data["project"]["name"] == "hwsim-my-own"
    assert data["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"] == ["my_own.py"]
    commands = out.partition("next:")[2].strip().splitlines()
    assert commands[0].strip() == "python -m pip install -e 'a folder/'"
    assert commands[1].strip() == "hwsim plugin check my-own"
    assert commands[3].endswith(f"--{kind} my-own")


@pytest.mark.parametrize("existing", ["mine.py", "test_mine.py", "pyproject.toml"])
def test_nothing_is_overwritten(existing: str, empty: Path) -> None:
    (empty / existing).write_text("mine")
    _, err = run("new-policy", "mine", "--package", code=1)
    assert err == f"hwsim: {existing}: is there already, and is not overwritten; choose another name or -o\n"
    assert [path.name for path in empty.iterdir()] == [existing]
    assert (empty / existing).read_text() == "mine"


def test_a_dangling_link_is_something_too(empty: Path) -> None:
    (empty / "mine.py").symlink_to("nowhere.py")
    assert "is there already" in run("new-policy", "mine", code=1)[1]
    assert not (empty / "nowhere.py").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("my-policy", "must be a Python name of lower-case letters, digits and _, such as my_policy"),
        ("Mine", "must be a Python name of lower-case letters, digits and _, such as mine"),
        ("2nd", "must be a Python name of lower-case letters, digits and _, such as nd"),
        ("_mine", "must be a Python name"),
        ("a/b", "must be a Python name of lower-case letters, digits and _, such as a_b"),
        ("mine\n", "must be a Python name"),
        ("größe", "must be a Python name"),
        ("", "must be a Python name of lower-case letters, digits and _; choose"),
        ("x" * 300 + "!", "must be a Python name of lower-case letters, digits and _; choose"),
        ("class", "is a word of Python's own"),
        ("match", "is a word of Python's own"),
        ("dip", "there is a policy of that name: hwsim_policies.dip"),
        ("dip_ca", "there is a policy of that name: hwsim_policies.dip_ca"),
        ("json", "is a module that Python knows already"),
        ("numpy", "is a module that Python knows already"),
        ("hwsim", "is a module that Python knows already"),
        ("conftest", "is a module that Python knows already"),
        ("group", "its class would be Group, a name that the file itself needs"),
        ("model_shape", "its class would be ModelShape, a name that the file itself needs"),
    ],
)
def test_names_that_cannot_be(name: str, text: str, empty: Path) -> None:
    out, err = run("new-policy", name, code=1)
    assert out == ""
    assert len(err.splitlines()) == 1
    assert text in err
    assert err.endswith("choose another name\n")
    assert not list(empty.iterdir())


def test_names_are_those_of_its_kind(empty: Path) -> None:
    assert "there is an eviction rule of that name: hwsim.evictions.lru" in run("new-eviction", "lru", code=1)[1]
    assert "a name that the file itself needs" in run("new-eviction", "use", code=1)[1]
    run("new-eviction", "dip")  # a policy's name is free for a rule


def test_a_folder_that_cannot_be(empty: Path) -> None:
    (empty / "file").write_text("")
    for folder in ("file", "file/below", "x" * 300):
        _, err = run("new-policy", "mine", "-o", folder, code=1)
        assert len(err.splitlines()) == 1
        assert "cannot be written" in err
    assert [path.name for path in empty.iterdir()] == ["file"]


# ---------------------------------------------------------------------- a package of somebody else


def test_a_package_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As CI installs it with pip, here without: its module and the metadata that its pyproject.toml asks for."""
    data = tomllib.loads((THIRD_PARTY / "pyproject.toml").read_text())
    (module,) = data["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    shutil.copy(THIRD_PARTY / module, tmp_path)
    info = tmp_path / "hwsim_third_party-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hwsim-third-party\nVersion: 0.1.0\n")
    points = data["project"]["entry-points"]
    (info / "entry_points.txt").write_text(
        "".join(f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in names.items()) for group, names in points.items())
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "hwsim_third_party", raising=False)
    for command, name in (("policies", "every-other"), ("evictions", "least-admitted")):
        assert re.search(rf"^{name} ", run(command)[0], re.MULTILINE)
        assert f"{name} keeps every rule of the contract." in run("check", name)[0]
    hw = ["--hw", "pixel8", "--dram", "90%"]
    out, _ = run("replay", "sample", *hw, "--policy", "every-other", "--eviction", "least-admitted", "--json", "-")
    result = json.loads(out)
    assert result["provenance"]["policy"]["name"] == "every-other"
    # at odd tokens it reads what it has just read, and a cache that holds a mask gives all of it
    assert result["hit_rate"] > 0.5

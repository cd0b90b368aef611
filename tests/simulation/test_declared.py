"""An option is declared once: a made-up one, added to the model of the settings, is found wherever options are named."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

import hwsim
from hwsim.api import generate
from hwsim.api.generate import FILE, source
from hwsim.cli import options as command_options
from hwsim.cli.declared import Derived, declared
from hwsim.cli.options import Chosen
from hwsim.cli.runoptions import RunOptions, parameters
from hwsim.errors import SettingError
from hwsim.simulation import settings as module
from hwsim.simulation.provenance import provenance
from hwsim.simulation.settings import Settings
from hwsim.studies.sweep.spec import spec_of
from hwsim.trace import Trace
from hwsim.util import option as options_of
from hwsim.util.option import Option
from tests.conftest import REPOSITORY, flat_profile
from tests.runs import run_of


class WithMadeUp(Settings):
    """The settings, and one option that hwsim does not have."""

    made_up: Annotated[
        int | None,
        Option(
            "Number of wonders.", given=int, least=2, most=9, unit="wonders", shown="none", commands=("replay", "sweep")
        ),
    ] = None


@pytest.fixture
def with_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """hwsim reads its options from the extended model."""
    monkeypatch.setattr(module, "Settings", WithMadeUp)


def test_on_the_command_line() -> None:
    assert "made_up" in [each.name for each in parameters("replay", WithMadeUp)]
    assert "made_up" not in [each.name for each in parameters("eval", WithMadeUp)]
    given: list[RunOptions] = []
    Run = Annotated[RunOptions, Derived(lambda name: parameters(name, WithMadeUp), RunOptions)]

    def replay(run: Run) -> None:  # type: ignore[valid-type]
        given.append(run)

    replay.__annotations__["run"] = Run
    app = typer.Typer()
    app.command()(declared(replay, "replay"))
    assert CliRunner().invoke(app, ["--made-up", "3"]).exit_code == 0
    assert given[0]["made_up"] == 3
    assert CliRunner().invoke(app, ["--made-up", "1"]).exit_code == 2
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "120"}).stdout
    assert "--made-up" in shown and "Number of wonders." in shown and "2<=x<=9" in shown


def test_in_the_yaml_of_a_sweep() -> None:
    grid = spec_of(WithMadeUp).model_validate({"trace": "t", "hw": "h", "policy": "p", "made_up": [3, "none"]})
    assert [each["made_up"] for each in grid.settings] == [3, None]
    assert spec_of(Settings).model_fields.keys() == spec_of(WithMadeUp).model_fields.keys() - {"made_up"}


@pytest.mark.usefixtures("with_made_up")
def test_in_a_file_of_settings(tmp_path: Path) -> None:
    class Context:
        def get_parameter_source(self, name: str) -> Any:
            return type("Source", (), {"name": "DEFAULT"})

    path = tmp_path / "s.yaml"
    chosen = Chosen(None, None, None, "lfu", RunOptions({"made_up": None, "dram": None}))
    context: Any = Context()
    path.write_text(yaml.safe_dump({"made_up": 4}))
    assert command_options.with_settings(context, path, chosen).run["made_up"] == 4
    path.write_text(yaml.safe_dump({"made_up": "four"}))
    with pytest.raises(SettingError, match="made_up: 'four' is no value of this key"):
        command_options.with_settings(context, path, chosen)


def test_in_the_python_interface(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "Settings", Settings)
    written = tmp_path / "functions_with_made_up.py"
    written.write_text(source(WithMadeUp))
    monkeypatch.syspath_prepend(str(tmp_path))
    functions = importlib.import_module(written.stem)
    for function in (functions.replay, functions.closed_loop):
        parameter = inspect.signature(function).parameters["made_up"]
        assert (parameter.annotation, parameter.default, parameter.kind) == ("int | None", None, parameter.KEYWORD_ONLY)
        assert "made_up: Number of wonders." in function.__doc__
    with pytest.raises(SettingError, match="setting made_up=1: must be a whole number from 2 to 9, or None"):
        functions.replay("sample", "pixel8", "dip", made_up=1)


def test_in_what_a_result_tells(trace: Trace) -> None:
    policy, rule = (importlib.import_module("hwsim.simulation.plugins").POLICIES.make("dip")[1],
                    importlib.import_module("hwsim.simulation.plugins").EVICTIONS.make("lru")[1])  # fmt: skip
    told = provenance(run_of(trace, flat_profile(), policy, rule, WithMadeUp(made_up=7)))
    assert told["settings"]["made_up"] == 7
    silent = provenance(run_of(trace, flat_profile(), policy, rule, WithMadeUp()))
    assert "made_up" not in silent["settings"]


def test_on_the_reference_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "docs"))
    page = importlib.import_module("options").page
    (row,) = [line for line in page(WithMadeUp).splitlines() if "--made-up" in line]
    assert row == (
        "| `--made-up` | Number of wonders. | whole number from 2 to 9 | wonders | none | `replay`, `sweep` |"
    )
    assert "made-up" not in page()


def test_bounds_are_told_in_one_line() -> None:
    with pytest.raises(SettingError, match=r"^setting made_up='x': must be a whole number from 2 to 9, or None$"):
        WithMadeUp(made_up="x")
    with pytest.raises(SettingError, match=r"^made_upp: is no setting; did you mean 'made_up'\?"):
        WithMadeUp(made_upp=3)  # type: ignore[call-arg]


# ------------------------------------------------------------------ the options that there are


def test_the_written_interface_is_that_of_the_settings() -> None:
    assert FILE.read_text(encoding="utf-8") == source(), "run python -m hwsim.api.generate"


@pytest.mark.parametrize("function", [hwsim.replay, hwsim.closed_loop])
def test_signatures_show_every_option(function: Any) -> None:
    shown = inspect.signature(function).parameters
    for name, option in options_of.declared(Settings).items():
        assert shown[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert shown[name].annotation == option.python_type
        assert shown[name].default == option.plain_default


def test_a_plain_default_is_read_as_the_default() -> None:
    options = options_of.declared(Settings)
    assert Settings(**{name: option.plain_default for name, option in options.items()}) == Settings()


def test_type_checkers_see_each_option(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "user.py").write_text(
        "import hwsim\n"
        'one = hwsim.replay("sample", "pixel8", "dip", dram="50%", kv_tokens=400)\n'
        "reveal_type(one)\n"
        'several = hwsim.replay("sample", "pixel8", ["dip"], block=4, gamma=0.2)\n'
        "reveal_type(several)\n"
        'hwsim.replay("sample", "pixel8", "dip", block="four")\n'
    )
    words = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--follow-imports=silent",
        "--cache-dir",
        str(tmp_path),
        "user.py",
    ]
    surroundings = {"MYPYPATH": f"{REPOSITORY}:{REPOSITORY / 'policies'}", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(words, cwd=tmp_path, env=surroundings, capture_output=True, text=True, check=False)
    assert 'user.py:3: note: Revealed type is "hwsim.simulation.metrics.Result"' in done.stdout, (
        done.stdout + done.stderr
    )
    assert "user.py:5: note: Revealed type is" in done.stdout and "Results[" in done.stdout
    assert "user.py:6: error: No overload variant" in done.stdout

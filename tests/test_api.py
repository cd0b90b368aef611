"""The interface for Python: the same numbers, defaults and errors as the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import hwsim
from hwsim.cli.app import app
from hwsim.device.profile import load_profile
from hwsim.errors import HwsimError, SettingError
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.studies.sweep.spec import Grid
from hwsim.util.units import show_number
from tests.conftest import REPOSITORY, write_trace
from tests.docs.blocks import blocks


@pytest.fixture
def here(tmp_path, monkeypatch):
    write_trace(tmp_path / "t.npz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments):
    """(JSON, standard error) of a command."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return (json.loads(done.stdout) if done.exit_code == 0 else None), done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, []),
        ({"density": 0.7, "dram": "60%"}, ["--density", "0.7", "--dram", "60%"]),
        (
            {"gamma": 0.5, "eviction": "lru", "overlap": "group"},
            ["--set", "gamma=0.5", "--eviction", "lru", "--overlap", "group"],
        ),
        ({"per_token": True, "bits": "mlp=8", "seed": 3}, ["--per-token", "--bits", "mlp=8", "--seed", "3"]),
        (
            {"block": 2, "kv_tokens": 100, "timing": "closed-form"},
            ["--block", "2", "--kv-tokens", "100", "--timing", "closed-form"],
        ),
        ({"cache_scope": "layer", "eviction": "lru"}, ["--cache-scope", "layer", "--eviction", "lru"]),
        ({"cache_shares": "traffic", "admission": "bypass"}, ["--cache-shares", "traffic", "--admission", "bypass"]),
    ],
)
def test_a_replay_is_that_of_the_command_line(here, options, words):
    expected, _ = command("replay", "t.npz", "--hw", "pixel8", "--policy", "dip-ca", "--json", "-", *words)
    found = hwsim.replay("t.npz", hw="pixel8", policy="dip-ca", **options)
    assert json.loads(found.to_json()) == expected


def test_several_policies_give_several_results(here):
    pytest.importorskip("pandas")
    trace = hwsim.load("t.npz")
    found = hwsim.replay(trace, "pixel8", ["dense", "dip", "dip-ca"], density=0.5, dram="60%", gamma=0.5)
    expected, _ = command(
        "replay",
        "t.npz",
        "--hw",
        "pixel8",
        "--policy",
        "dense,dip,dip-ca",
        "--density",
        0.5,
        "--dram",
        "60%",
        "--set",
        "gamma=0.5",
        "--json",
        "-",
    )
    assert [json.loads(each.to_json()) for each in found] == expected["results"]
    assert list(found.to_frame().policy) == ["dense", "dip", "dip-ca"]
    trace.read(0, "input")  # what was given open stays open


def test_parts_may_be_names_files_classes_and_instances(here):
    kind, rule = POLICIES.find("dip")[1], EVICTIONS.find("lru")[1]
    by_name = hwsim.replay("t.npz", "pixel8", "dip", density=0.6, eviction="lru")
    for policy in (kind, kind(density=0.6)):
        density = None if isinstance(policy, kind) else 0.6
        for eviction in (rule, rule()):
            found = hwsim.replay("t.npz", load_profile("pixel8"), policy, density=density, eviction=eviction)
            assert found.throughput_tok_s == by_name.throughput_tok_s
            assert found.provenance["policy"]["parameters"] == by_name.provenance["policy"]["parameters"]
    file = REPOSITORY / "docs" / "examples" / "sliding_top.py"
    assert hwsim.replay("t.npz", "pixel8", file, memory=0.8).provenance["policy"]["parameters"]["memory"] == 0.8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"policy": "dipp"}, ["--policy", "dipp"]),
        ({"hw": "pixel9"}, ["--hw", "pixel9"]),
        ({"dram": "5"}, ["--dram", "5"]),
        ({"density": 2.0}, ["--density", "2.0"]),
        ({"policy": "dense", "bits": "mlp=x"}, ["--policy", "dense", "--bits", "mlp=x"]),
        ({"eviction": "lruu"}, ["--eviction", "lruu"]),
        ({"lora_merged": True}, ["--lora-merged"]),
        ({"gamma": 3}, ["--set", "gamma=3"]),
        ({"cache_shares": "nothing.json"}, ["--cache-shares", "nothing.json"]),
        ({"pin": "nothing.npz"}, ["--pin", "nothing.npz"]),
    ],
)
def test_errors_are_those_of_the_command_line(here, options, words):
    given = {"hw": "pixel8", "policy": "dip-ca"}
    line = [word for key, value in given.items() if f"--{key}" not in words for word in (f"--{key}", value)]
    _, told = command("replay", "t.npz", *line, *words)
    with pytest.raises(HwsimError) as caught:
        hwsim.replay("t.npz", **(given | options))
    assert told == f"hwsim: {caught.value}\n"


def test_an_unknown_option_is_told(here):
    with pytest.raises(
        SettingError, match=r"^gama: is no option, and no policy here has such a parameter; did you mean 'gamma'\?"
    ):
        hwsim.replay("t.npz", "pixel8", "dip-ca", gama=0.5)
    with pytest.raises(SettingError, match=r"^gamma: is no option"):
        hwsim.replay("t.npz", "pixel8", POLICIES.find("dip-ca")[1](), gamma=0.5)  # it has its own


def test_frames_hold_the_numbers_of_the_result(here):
    pytest.importorskip("pandas")
    found = hwsim.replay("t.npz", "pixel8", "dip", dram="60%", per_token=True)
    (summary,) = found.to_frame().to_dict("records")
    assert summary["throughput_tok_s"] == found.throughput_tok_s
    assert summary["latency_s_p95"] == found.latency_s.p95
    assert (summary["device"], summary["policy.density"]) == ("Google Pixel 8", 0.5)
    groups = found.to_frame("groups")
    assert groups.hits.sum() == found.unit_hits
    assert len(groups) == len(found.groups)
    tokens = found.to_frame("tokens")
    assert np.array_equal(tokens.latency_s, [each.latency_s for each in found.per_token])
    with pytest.raises(SettingError, match="single tokens were not kept"):
        hwsim.replay("t.npz", "pixel8", "dip").to_frame("tokens")
    with pytest.raises(SettingError, match="must be one of summary, groups, tokens"):
        found.to_frame("layers")


def test_notebooks_see_a_table_and_the_notes_with_nothing_that_runs(here):
    (here / "bad.py").write_text((REPOSITORY / "docs" / "examples" / "sliding_top.py").read_text())
    found = hwsim.replay("t.npz", "pixel8", "bad.py")
    (here / "evil.yaml").write_text(
        "name: <script>alert(1)</script>\ndram: {budget: 1 GB, bandwidth: 1 GB/s}\nflash: {read_bandwidth: 1 GB/s}\n"
    )
    shown = hwsim.replay("t.npz", "evil.yaml", "bad.py")._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert f"<td>{show_number(found.throughput_tok_s)}</td>" in found._repr_html_()
    assert "<li>The trace is synthetic: no model produced it.</li>" in found._repr_html_()


def test_importing_loads_little():
    code = "import sys, hwsim; print(sorted({'numpy', 'simpy', 'torch', 'pandas', 'typer'} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout
        == "[]\n"
    )
    code = "import sys, hwsim; hwsim.replay; print(sorted({'torch', 'pandas', 'typer', 'transformers'} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout
        == "[]\n"
    )


def test_it_has_no_other_attributes():
    with pytest.raises(AttributeError, match="module 'hwsim' has no attribute 'relay'"):
        hwsim.relay  # noqa: B018


def test_options_are_those_of_a_sweep():
    """One list of names in three places."""
    from hwsim.simulation.settings import Settings

    assert Settings.model_fields.keys() < Grid.model_fields.keys()


def test_the_page_is_run(here):
    pytest.importorskip("pandas")
    for text in blocks(REPOSITORY / "docs" / "howto" / "python.md", "python"):
        if "closed_loop(" not in text:
            exec(text, {})


NOTEBOOK = REPOSITORY / "docs" / "examples" / "notebook.py"
JUPYTER = all(find_spec(name) for name in ("jupytext", "nbclient", "ipykernel"))


@pytest.mark.skipif(not JUPYTER, reason="needs jupytext, nbclient and ipykernel")
def test_the_notebook_runs_in_jupyter(here):
    """As a notebook, by jupytext and a kernel: every cell, and the table that a result shows itself as."""
    pytest.importorskip("pandas")
    import jupytext
    import nbclient

    notebook = jupytext.read(NOTEBOOK)
    assert len(notebook.cells) > 3
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(here)}}
    ).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("<table" in output.get("data", {}).get("text/html", "") for output in outputs)
    assert not [output for output in outputs if output.output_type == "error"]
    assert Path("policies.html").read_text().startswith("<table>")


@pytest.mark.skipif(JUPYTER, reason="runs in Jupyter")
def test_the_notebook_is_run(here):
    pytest.importorskip("pandas")
    exec(compile(NOTEBOOK.read_text(), "notebook.py", "exec"), {})
    assert Path("policies.html").read_text().startswith("<table>")

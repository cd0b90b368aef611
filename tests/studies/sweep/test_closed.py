"""Sweeps of closed loops: the results of single ones, with a shared dense pass, kept by the model's weights and the text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import hwsim
from hwsim.studies.sweep import Store, make_spec, sweep
from hwsim.studies.sweep.cells import expand
from hwsim.studies.sweep.sweeping import _tasks
from hwsim.studies.sweep.work import Task, perform

pytest.importorskip("torch")
pytest.importorskip("transformers")


def grid(folder, **change):
    least = {
        "model": str(folder), "tokens": 64, "context": 32, "hw": "pixel8", "policy": ["dip", "dip-ca"],
        "density": [0.5, 0.7], "set": {"gamma": [0.3, 0.6]}, "dram": "60%",
    }  # fmt: skip
    return [make_spec(least | change, "here")]


def swept(path, specs, **options):
    with Store(Path(path)) as store:
        found = sweep(specs, store, **options)
        return found, list(store.results(found.keys))


def test_results_are_those_of_single_closed_loops(checkpoints, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = checkpoints["llama"]
    found, results = swept("runs.db", grid(folder))
    assert (found.done, found.failed) == (6, [])
    assert swept("processes.db", grid(folder), jobs=2) == (found, results)
    common = {"tokens": 64, "context": 32, "dram": "60%"}
    one = hwsim.closed_loop(folder, "pixel8", "dip-ca", density=0.7, gamma=0.6, **common)
    assert results[5] == json.loads(one.to_json())
    assert results[0]["perplexity"] == hwsim.closed_loop(folder, "pixel8", "dip", density=0.5, **common).perplexity
    again, _ = swept("runs.db", grid(folder))
    assert (again.done, again.stored) == (0, 6)
    assert swept("runs.db", grid(folder, tokens=96, policy="dip", set={}))[0].done == 2
    assert swept("runs.db", grid(checkpoints["mistral"], policy="dip", set={}))[0].done == 2


def test_those_that_differ_in_the_policy_only_share_a_dense_pass(checkpoints):
    runs = {str(number): run for number, run in enumerate(expand(grid(checkpoints["llama"], dram=["50%", "60%"])))}
    tasks = _tasks(runs)
    assert sorted(len(task.runs) for task in tasks) == [2, 2, 4, 4]
    assert all(len({run.settings["dram"] for _, run in task.runs}) == 1 for task in tasks)


def test_a_policy_that_changes_under_the_sweep_is_told(checkpoints, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = next(expand(grid(checkpoints["llama"], policy="dip", set={})))
    (outcome,) = perform(Task((("another key", run),)))
    assert outcome.error.endswith("it, or another file of this run, changed under the sweep")


def test_one_that_is_impossible_does_not_spoil_the_others(checkpoints, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.py").write_text(
        "from hwsim.policy import *\nclass Bad(Policy):\n    '''Bad.'''\n"
        "    def groups(self, model):\n        return [Group('down', axis='neuron', slices=['down.column'], keep=0.5, needs=['glu'])]\n"
        "    def score(self, ctx):\n        raise RuntimeError('no such luck')\n"
    )
    found, results = swept("runs.db", grid(checkpoints["llama"], policy=["bad.py", "dip"], set={}))
    assert (found.done, len(results)) == (2, 2)
    assert [error for _, error in found.failed if "no such luck" in error]

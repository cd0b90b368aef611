"""What people met who tried hwsim for the first time: each has its line now, or cannot happen."""

import json
from pathlib import Path

import pytest

from hwsim.report.page.digest import answers, name
from tests.cli.run import here, refused, replay, run

__all__ = ["here"]


@pytest.mark.parametrize(
    ("arguments", "begins"),
    [
        (replay("--json", "story.txt"), "{ or ["),
        (replay("--timeline", "story.txt"), "{"),
    ],
)
def test_a_file_of_another_kind_is_not_replaced(here, arguments, begins):
    Path("story.txt").write_text("It is a truth universally acknowledged")
    said = refused(*arguments)
    assert said.startswith(f"story.txt: exists, is no output of this kind (it does not begin with {begins})")
    assert Path("story.txt").read_text() == "It is a truth universally acknowledged"
    Path("story.txt").write_text(' {"old": 1}')  # of that kind it is replaced, as ever
    run(*arguments)
    assert json.loads(Path("story.txt").read_text()) != {"old": 1}


def test_a_report_replaces_reports_alone(here):
    pytest.importorskip("plotly")
    pytest.importorskip("jinja2")
    run(*replay("--json", "r.json"))
    Path("story.html").write_text("It is a truth universally acknowledged")
    assert "story.html: exists, is no output of this kind" in refused("report", "r.json", "-o", "story.html")
    run("report", "r.json", "-o", "new.html")
    run("report", "r.json", "-o", "new.html")


def test_spaces_beside_commas_do_not_count(here):
    run(*replay("--json", "a.json", policy="dip,dip-ca"))
    run(*replay("--json", "b.json", policy="dip, dip-ca ,"))
    assert Path("a.json").read_bytes() == Path("b.json").read_bytes()


def test_a_share_in_percent_says_how_densities_are_written(here):
    _, said = run(*replay("--density", "50%"), code=2)
    assert "give a share such as 0.5" in " ".join(said.replace("│", " ").split())


def test_a_store_and_a_folder_are_told_as_what_they_are(here):
    run("sweep", "--trace", "t.npz", "--hw", "flat.yaml", "--policy", "dip", "--jobs", 1, "-o", "runs.db")
    assert refused(*replay(trace="runs.db")).endswith("no zip directory; is a store of runs; hwsim runs shows it")
    Path("model").mkdir()
    assert "hwsim record --model FOLDER makes a trace" in refused(*replay(trace="model"))


def test_a_policy_that_is_there_is_told_as_such(here):
    run("new-policy", "mine")
    assert refused("new-policy", "mine").startswith("mine.py: is there already, and is not overwritten")


def test_a_signal_that_a_group_does_not_need_is_told_as_such(here):
    Path("two.py").write_text("""
import numpy as np
from hwsim.policy import Group, Policy


class Two(Policy):
    \"\"\"Asks for what its first group does not need.\"\"\"

    def groups(self, model):
        first = [f"{matrix}.column" for matrix in model.mlp if matrix != "down"]
        return [
            Group("input", axis="hidden", slices=first, keep=0.5, needs=["input"]),
            Group("down", axis="neuron", slices=["down.column"], keep=0.5, needs=["glu"]),
        ]

    def score(self, ctx):
        return np.abs(ctx.signals["glu"])
""")
    said = refused(*replay(policy="./two.py"))
    assert "signal 'glu' is not among what this group needs (input); name it in the group's needs" in said


def test_the_answer_is_not_a_policy_that_is_slower_than_dense(here):
    run(*replay("--json", "r.json", policy="dense,dip"))
    rows = json.loads(Path("r.json").read_text())["results"]
    rows[0]["throughput_tok_s"], rows[1]["throughput_tok_s"] = 10.0, 4.0
    (said,) = answers(name(rows))
    assert "nothing beats the dense model's 10 tokens/s; of the others" in said
    assert "4 tokens/s, 0.4 x of it" in said
    rows[1]["throughput_tok_s"] = 20.0
    (said,) = answers(name(rows))
    assert "is fastest: 20 tokens/s, 2.00 x the dense model's 10" in said


def test_what_is_written_anew_is_replaced(here):
    """Outputs that are no JSON are replaced where that was asked for."""
    run("layout", "t.npz", "-o", "n.npz")
    assert "exists; name another file with -o, or give --overwrite" in refused("layout", "t.npz", "-o", "n.npz")
    run("layout", "t.npz", "-o", "n.npz", "--overwrite")
    assert "the command reads it" in refused("layout", "t.npz", "-o", "t.npz", "--overwrite")

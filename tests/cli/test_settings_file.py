"""A file of settings has the rules of the command line: bounds, words and combinations; its messages name the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.run import here, refused, run  # noqa: F401

pytestmark = pytest.mark.usefixtures("here")

REPLAY = ["replay", "sample", "--hw", "pixel8", "--policy", "dip", "--dram", "50%"]
BOUND = "must be a whole number from 1 to"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("block: 0", f"block: 0 {BOUND} 100000000"),
        ("block: 100000001", f"block: 100000001 {BOUND} 100000000"),
        ("kv_tokens: 1000000001", f"kv_tokens: 1000000001 {BOUND} 1000000000, or None"),
        ("kv_window: 9999999999999999999", f"kv_window: 9999999999999999999 {BOUND} 1000000000, or None"),
        ("seed: -1", "seed: -1 must be a whole number from 0"),
        ("timing: x", "timing: 'x' must be one of events, closed-form"),
        ("overlap: x", "overlap: 'x' must be one of none, group, pipeline, prefetch"),
        ("admission: x", "admission: 'x' must be one of always, bypass, or None"),
        ("block: true", "block: True is no value of this key"),
        ("blok: 2", "blok is not a known key; did you mean 'block'?"),
    ],
)
def test_mistakes_name_the_file(text, message):
    Path("s.yaml").write_text(text)
    assert refused(*REPLAY, "--settings", "s.yaml").startswith(f"s.yaml: {message}")


def test_tokens_without_a_json_are_refused_as_on_the_command_line():
    Path("s.yaml").write_text("per_token: true")
    message = refused(*REPLAY, "--settings", "s.yaml")
    assert message == refused(*REPLAY, "--per-token")
    assert message.startswith("--per-token: single tokens are in the JSON only")
    run(*REPLAY, "--settings", "s.yaml", "--json", "r.json")
    assert json.loads(Path("r.json").read_text())["tokens"]


def test_an_option_of_another_command_is_named():
    Path("s.yaml").write_text("merge: 4KiB")
    run(*REPLAY, "--settings", "s.yaml")
    message = refused("eval", "--model", "m", "--hw", "pixel8", "--policy", "dip", "--settings", "s.yaml")
    assert message == "s.yaml: merge: this command has no such option, only replay, sweep; leave the key out"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("kv_tokens", 10**30, "kv_tokens: must be at most 1e+09"),
        ("block", 10**30, "block: must be at most 1e+08"),
        ("merge", 65536, "merge: must be text"),
        ("lora", 5, "lora: must be text"),
        ("layout", 5, "layout: must be text"),
        ("engine", 5, "engine: must be text"),
    ],
)
def test_a_sweep_refuses_before_any_run(key, value, message):
    Path("s.yaml").write_text(f"trace: sample\nhw: pixel8\npolicy: dip\n{key}: {value}\n")
    assert refused("sweep", "s.yaml", "-o", "r.db").startswith(f"s.yaml: {message}")
    assert not Path("r.db").exists()


def test_the_command_line_has_the_same_bounds():
    _, err = run(*REPLAY, "--kv-window", "9999999999999999999", code=2)
    assert "--kv-window" in err

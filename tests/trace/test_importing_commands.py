"""Commands on imported router traces: the flags of the device, and one line from those that need what is unknown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Hwsim
from tests.measured import CONFORMANCE, excerpt, measured, write_conformance

PHONE = ("--hw", "oneplus15r", "--policy", "router", "--eviction", "lru", "--cache-scope", "global")


def run(hwsim: Hwsim, *words: object) -> str:
    done = hwsim(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def imported(hwsim: Hwsim, file: Path, folder: Path) -> Path:
    run(hwsim, "trace", "import", file, "-o", folder / "x.npz")
    return folder / "x.npz"


def replayed(hwsim: Hwsim, *words: object) -> dict[str, Any]:
    return json.loads(run(hwsim, "replay", *words, "--json", "-"))


@pytest.fixture
def phone(hwsim: Hwsim, tmp_path: Path) -> Path:
    """The excerpt, imported."""
    return imported(hwsim, excerpt(), tmp_path)


def test_the_flags_of_the_excerpt_are_reproduced(hwsim: Hwsim, phone: Path) -> None:
    result = replayed(hwsim, phone, *PHONE, "--cache", "3000MiB")
    assert result["device_flags"] == {"rows": 16 * 36 * 2, "agree": 16 * 36 * 2}
    assert result["tokens"] == 16
    assert result["prompt"]["tokens"] == 85
    assert result["kv_cache_bytes"] == 0
    assert any("only bytes are known" in note for note in result["notes"])
    other = replayed(hwsim, phone, *PHONE, "--cache", "1000MiB")["device_flags"]
    assert other["agree"] < other["rows"]


@pytest.mark.parametrize(
    ("name", "mebibytes", "rows", "hit_rate"), [("qwen", 4000, 36_864, 0.803), ("gptoss", 3000, 4608, 0.448)]
)
def test_the_flags_of_a_whole_trace_are_reproduced(
    hwsim: Hwsim, tmp_path: Path, name: str, mebibytes: int, rows: int, hit_rate: float
) -> None:
    path = imported(hwsim, measured("bigmoe", f"2026-07-15-route-trace_{name}.route.csv"), tmp_path)
    result = replayed(hwsim, path, *PHONE, "--cache", f"{mebibytes}MiB")
    assert result["device_flags"] == {"rows": rows, "agree": rows}
    assert result["hit_rate"] == pytest.approx(hit_rate, abs=0.0005)


def test_the_conformance_trace_through_the_command_line(hwsim: Hwsim, tmp_path: Path) -> None:
    path = imported(hwsim, write_conformance(tmp_path / "c.csv"), tmp_path)
    expected = json.loads((CONFORMANCE / "manifest.json").read_text(encoding="utf-8"))["expected"]
    result = replayed(
        hwsim, path, "--hw", "pixel8", "--policy", "router", "--eviction", "lru", "--cache", "6B", "--cache-scope", "layer"
    )  # fmt: skip
    assert result["unit_hits"] == expected["hits"] == 12
    assert result["unit_requests"] - result["unit_hits"] == expected["misses"] == 18


def test_what_import_prints(hwsim: Hwsim, tmp_path: Path) -> None:
    done = hwsim("trace", "import", excerpt(), "-o", "x.npz")
    lines = done.stdout.splitlines()
    assert lines[0].endswith(": 101 tokens in 1 sequence, 16 decoded; experts, expert_weights, residency")
    assert lines[1] == (
        "gpt-oss-120b-Q4_K_M: 128 in 36 of 36 layers, 2 used; 13.2 MB each, 60.9 GB in all, 952 MB a token; "
        "828 MB that every token reads"
    )
    assert done.stderr == "layer 35 has experts for the last token of a prompt only, as llama.cpp computes it\n"
    data = json.loads(run(hwsim, "trace", "import", excerpt(), "-o", "x.npz", "--overwrite", "--json", "-"))
    assert data["signals"] == ["experts", "expert_weights"]
    assert data["flags"] == ["residency"]
    assert data["decoded"] == 16


def test_info_and_verify_and_convert(hwsim: Hwsim, phone: Path, tmp_path: Path) -> None:
    shown = " ".join(run(hwsim, "trace", "info", phone, "--layers").split())
    assert "36 layers, of which only bytes are known" in shown
    assert "flags residency, whether the device had the expert in its cache" in shown
    run(hwsim, "trace", "verify", phone)
    run(hwsim, "trace", "convert", phone, "-o", "ids.npz", "--signals", "experts")
    result = replayed(hwsim, tmp_path / "ids.npz", *PHONE, "--cache", "3000MiB")
    assert result["device_flags"]["agree"] == 16 * 36 * 2
    assert "experts" in run(hwsim, "trace", "curve", phone, "--policy", "router")
    assert "static" in run(hwsim, "trace", "locality", phone, "--policy", "router", "--dram", "60%")


REFUSALS = {
    "dip": (
        "replay X --hw pixel8 --policy dip",
        "policy dip: group 'input': gpt-oss-120b-Q4_K_M has no MLP that every token reads; choose a policy that "
        "decides experts, such as router",
    ),
    "dense": ("replay X --hw pixel8 --policy dense", "choose a policy for experts, such as router"),
    "dip-experts": (
        "replay X --hw pixel8 --policy dip-experts",
        "of the experts of gpt-oss-120b-Q4_K_M only bytes are",
    ),
    "logits": ("replay X --hw pixel8 --policy cache-prior", "X: was imported without router, which the policy needs"),
    "bits": (
        "replay X --hw pixel8 --policy router --cache 1GB --bits mlp=8",
        "--bits: of gpt-oss-120b-Q4_K_M only bytes are known, they say how large its weights are; leave --bits out",
    ),
    "stored bits": ("replay X --hw pixel8 --policy router --cache 1GB --bits stored", "leave --bits out"),
    "a window": (
        "replay X --hw pixel8 --policy router --cache 1GB --kv-window 8",
        "--kv-window: of gpt-oss-120b-Q4_K_M only bytes are known, so it has no KV cache; leave --kv-window out",
    ),
    "KV tokens": ("replay X --hw pixel8 --policy router --cache 1GB --kv-tokens 200", "leave --kv-tokens out"),
    "thresholds": ("fit thresholds X -o y.npz", "is a mixture of experts, and a calibration needs one MLP"),
    "layout": ("fit layout X -o y.npz", "is a mixture of experts, and an order of neurons needs one MLP"),
    "synth": ("synth --model phi3-mini --like X -o y.npz", "is a mixture of experts, and a synthetic trace needs one"),
    "predictor": ("train predictor X -o y.npz", "X: has no signal 'input'; it holds experts, expert_weights"),
    "curve": ("trace curve X --policy dip", "has no MLP that every token reads"),
    "drafts": ("replay X --hw pixel8 --policy router --cache 1GB --speculate 1 --accept trace", "give a probability"),
}


@pytest.mark.parametrize(("command", "text"), REFUSALS.values(), ids=REFUSALS)
def test_what_needs_more_than_a_router_trace_is_refused_in_one_line(
    hwsim: Hwsim, phone: Path, command: str, text: str, tmp_path: Path
) -> None:
    done = hwsim(*[str(phone) if word == "X" else word for word in command.split()])
    assert done.returncode != 0
    assert text.replace("X:", f"{phone}:") in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "y.npz").exists()


def test_a_bad_file_is_one_line_on_the_terminal(hwsim: Hwsim, tmp_path: Path) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text(excerpt().read_text(encoding="utf-8").replace("n_expert=128", "n_expert=1000000000"))
    done = hwsim("trace", "import", bad, "-o", "x.npz")
    assert done.returncode != 0
    assert done.stderr == f"hwsim: {bad}: line 2: n_expert is '1000000000'; must be a whole number from 1 to 32767\n"
    assert not (tmp_path / "x.npz").exists()

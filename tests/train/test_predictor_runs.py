"""What `hwsim train predictor` writes is what `replay`, `eval` and `generate` take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the closed loop needs the extra `record`")

from hwsim.util.arrayfile import read_arrays
from tests.cli.run import refused, run
from tests.device.test_profile import LEAST


@pytest.mark.parametrize("family", ["llama", "phi3", "opt"])
def test_trained_nets_run_open_and_closed(
    family: str, checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("flat.yaml").write_text(LEAST)
    model, nets = str(checkpoints[family]), ["--density", "0.7", "--set", "predictor=nets.npz"]
    device = ["--hw", "flat.yaml", "--policy", "predictor", "--dram", "70%", "--json", "-", *nets]
    reading = ["--tokens", "120", "--context", "24"]
    run("record", "--model", model, "-o", "t.npz", *reading)
    run("train", "predictor", "t.npz", "--density", "0.7", "--rank", "3", "-o", "nets.npz")
    header = read_arrays(Path("nets.npz"), "hwsim-predictor").header
    assert (header["model"]["name"], header["text"]["name"]) == (family, "persuasion.txt")
    assert len(header["weights_sha256"]) == 64
    density = header["share"] + header["k"] / header["model"]["intermediate_size"]
    results = {
        "replay": json.loads(run("replay", "t.npz", *device)[0]),
        "eval": json.loads(run("eval", "--model", model, *reading, *device)[0]),
        "generate": json.loads(run("generate", "--model", model, "--prompt", "It is", "--tokens", "4", *device)[0]),
    }
    for name, result in results.items():
        assert result["mlp_density"] == pytest.approx(density), name
        requests = header["k"] * len(header["layers"]) * result["tokens"]
        assert result["unit_requests"] == requests, name
    told = "nets.npz: was trained for density 0.7, asked is 0.6"
    other = ["--hw", "flat.yaml", "--policy", "predictor", "--density", "0.6", "--set", "predictor=nets.npz"]
    for command in (
        ["replay", "t.npz"],
        ["eval", "--model", model, *reading],
        ["generate", "--model", model, "--prompt", "a"],
    ):
        assert told in refused(*command, *other)


def test_the_bundled_trace_is_found_by_its_name() -> None:
    told = refused("train", "predictor", "sample", "-o", "nets.npz")
    assert "has one sequence of 78 tokens; training holds whole sequences out" in told

"""Are the quantiles and means of a calibration those of the trace, and does one file serve every density?"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hwsim.analysis import calibration as module
from hwsim.analysis.calibration import KIND, LEVELS, calibrate
from hwsim.trace import Trace
from hwsim.util.arrayfile import read_arrays
from hwsim.util.kernels import magnitude_counts, magnitude_quantiles, threshold
from tests.conftest import Hwsim, write_trace

VALUES = arrays.arrays(np.float16, st.integers(1, 300), elements=st.floats(-1000, 1000, width=16))


def exact(values: np.ndarray, shares: list[float]) -> list[float]:
    """The smallest magnitudes that so many of the values do not exceed: from a sorted list."""
    ordered = [0.0, *sorted(abs(float(value)) for value in values.ravel())]
    return [ordered[math.ceil(share * (len(ordered) - 1) - 1e-9)] for share in shares]


@given(VALUES, st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_quantiles_are_those_of_a_sorted_list(values: np.ndarray, shares: list[float]) -> None:
    counts = magnitude_counts(values.astype(np.float32))
    assert counts.sum() == values.size
    assert magnitude_quantiles(counts, np.array(shares)).tolist() == exact(values, shares)


def test_what_is_no_float16_is_rounded_and_clipped() -> None:
    counts = magnitude_counts(np.array([1 + 2**-12, -1e9, 1e-12], np.float32))
    assert magnitude_quantiles(counts, np.array([0, 1 / 3, 2 / 3, 1])).tolist() == [0, 0, 1, 65504]


@given(VALUES, st.floats(0, 1))
def test_a_threshold_lets_pass_what_is_asked_for_to_a_thousandth(values: np.ndarray, keep: float) -> None:
    """But for the values that equal it: those do not pass."""
    levels = magnitude_quantiles(magnitude_counts(values.astype(np.float32)), np.linspace(0, 1, LEVELS))
    limit = threshold(levels.astype(np.float32), keep)
    magnitudes = np.abs(values.astype(np.float32))
    passed, equal = np.mean(magnitudes > limit), np.mean(magnitudes == limit)
    step = 1 / (LEVELS - 1) + 1e-6  # and the rounding of the levels
    assert passed <= keep + step
    assert passed + equal >= keep - step
    if keep == 1:
        assert passed == 1


@pytest.mark.parametrize("block", [None, 500])
def test_a_calibration_is_that_of_the_decoded_tokens(
    trace: Trace, block: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts do not count; blocks change nothing."""
    if block:
        monkeypatch.setattr(module, "_BLOCK", block)
    told: list[tuple[str, int, int]] = []
    header, found = calibrate(trace, progress=lambda *at: told.append(at))
    first, rest = trace.header.sequences
    decoded = [*range(first.prompt, first.tokens), *range(first.tokens, first.tokens + rest.tokens)]
    assert first.prompt > 0
    assert header["tokens"] == len(decoded)
    assert header["signals"] == ["input", "up", "gate", "glu"]
    assert len(found) == 2 * 3 * 4
    for layer in range(3):
        for signal in header["signals"]:
            values = np.abs(trace.read(layer, signal)[decoded])
            quantiles, mean = (found[f"layers/{layer:03d}/{signal}/{part}"] for part in ("quantiles", "mean"))
            wanted = exact(values, [level / 1000 for level in range(1001)])
            # recorded signals exactly; glu, a product in float32, to half a step of float16
            slack = 2**-11 if signal == "glu" else 0
            np.testing.assert_allclose(quantiles, wanted, rtol=slack, atol=2**-25 if slack else 0)
            np.testing.assert_allclose(mean, values.astype(np.float64).mean(axis=0), rtol=1e-6)
    assert told[-1] == ("calibrating glu", 3, 3)


def test_the_command(tmp_path: Path, hwsim: Hwsim) -> None:
    write_trace(tmp_path / "t.npz")
    done = hwsim("calibrate", "t.npz", "-o", "c.npz", "--json", "c.json")
    assert done.returncode == 0, done.stderr
    assert "Calibrated: 59 tokens of small, synthetic, signals input, up, gate, glu" in done.stdout
    assert "The trace is synthetic: its thresholds are those of no model." in done.stdout
    assert "--set calibration=c.npz" in done.stdout
    header, arrays_ = read_arrays(tmp_path / "c.npz", KIND)
    with Trace(tmp_path / "t.npz") as trace:
        assert header["trace"] == trace.hash
        assert header["model"] == trace.model.model_dump()
    assert header["origin"] == "synthetic"
    assert arrays_["layers/002/gate/quantiles"].shape == (1001,)
    assert json.loads((tmp_path / "c.json").read_text())["signals"] == header["signals"]
    before = (tmp_path / "c.npz").read_bytes()
    assert hwsim("calibrate", "t.npz", "-o", "c.npz", "--overwrite").returncode == 0
    assert (tmp_path / "c.npz").read_bytes() == before
    done = hwsim("replay", "t.npz", "--hw", "pixel8", "--policy", "cats,static", "--set", "calibration=c.npz")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("t.npz", "-o", "c.npz"), "c.npz: exists; name another file with -o, or give --overwrite"),
        (("t.npz", "-o", "t.npz", "--overwrite"), "t.npz: cannot be written: the command reads it"),
        (("t.npz", "-o", "no/c.npz"), "the folder no does not exist"),
        (("no.npz",), "no.npz: cannot be opened"),
        (
            ("t.npz", "--device", "cuda"),
            "--device, --dtype, --max-memory and --trust-remote-code are for the --model, and none is given",
        ),
        (("t.npz", "-o", "d.npz", "--json", "d.npz"), "the command writes the calibration to it"),
        (
            ("t.npz", "--model", "x"),
            "lacks the signal attn_input, which an allocation needs; record it anew: hwsim record",
        ),
    ],
)
def test_what_the_command_refuses(arguments: tuple[str, ...], message: str, tmp_path: Path, hwsim: Hwsim) -> None:
    write_trace(tmp_path / "t.npz")
    (tmp_path / "c.npz").write_text("mine")
    done = hwsim("calibrate", *arguments)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert message in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.npz", "t.npz"]
    assert (tmp_path / "c.npz").read_text() == "mine"

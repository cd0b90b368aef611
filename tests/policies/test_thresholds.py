"""Do the policies that read a calibration cut what its thresholds and means say, and refuse what does not fit?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsim.analysis.calibration import KIND
from hwsim.errors import HwsimError, PluginError
from hwsim.policy import Policy
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.testing import SMALL_MODEL, RandomSignals
from hwsim.testing.drive import MaskCollector
from hwsim.trace import Sequence, Trace
from hwsim.util.arrayfile import read_arrays, write_arrays
from tests.conftest import flat_profile, write_calibration
from tests.runs import plans_of, replay, scan

ALL = ("cats", "dip-threshold", "teal", "static")
SIGNALS = ("attn_input", "attn_output", "input", "glu")
TOKENS = 9


@pytest.fixture(scope="session")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibration of the small model, its trace beside it."""
    return write_calibration(tmp_path_factory.mktemp("calibration") / "c.npz")


def make(name: str, **fields: Any) -> Policy:
    return POLICIES.make(name, fields)[1]


def masks_of(policy: Policy, seed: int = 1) -> dict[tuple[int, str], np.ndarray]:
    """All masks on signals that the calibration has not seen: bool ``[tokens, units]`` by (layer, group)."""
    masks, source = MaskCollector(), RandomSignals(SMALL_MODEL, TOKENS, seed)
    plans, sequences = plans_of(policy, SMALL_MODEL), [Sequence(tokens=4), Sequence(tokens=TOKENS - 4)]
    scan(source, sequences, policy, plans, EVICTIONS.make("lru")[1], model=SMALL_MODEL, observers=[masks])
    return masks.masks_of


def limit(path: Path, layer: int, signal: str, keep: float) -> float:
    """A threshold, from the two levels around it, in plain Python."""
    if keep >= 1:
        return -1.0
    levels = np.load(path)[f"layers/{layer:03d}/{signal}/quantiles"].astype(float).tolist()
    at = (1 - keep) * (len(levels) - 1)
    low = min(int(at), len(levels) - 2)
    return levels[low] + (at - low) * (levels[low + 1] - levels[low])


def check_masks(policy: Policy, path: Path, keeps: dict[str, tuple[str, float]]) -> None:
    """`keeps`: signal and keep of each group."""
    masks = masks_of(policy)
    assert len(masks) == 3 * len(keeps)
    for (layer, group), found in masks.items():
        signal, keep = keeps[group]
        values = RandomSignals(SMALL_MODEL, TOKENS, 1).read(layer, signal)
        at = limit(path, layer, signal, keep)
        clear = np.abs(np.abs(values) - at) > 1e-5 * at  # a threshold in float32 is rounded
        assert ((np.abs(values) > at) == found)[clear].all(), (layer, group)
        assert clear.mean() > 0.99


@settings(max_examples=15)
@given(st.floats(0.34, 1))
def test_cats_cuts_by_the_gate(calibrated: Path, density: float) -> None:
    policy = make("cats", density=density, calibration=calibrated)
    check_masks(policy, calibrated, {"neurons": ("gate", (3 * density - 1) / 2)})


@settings(max_examples=15)
@given(st.floats(0.05, 1))
def test_dip_threshold_has_the_split_of_dip(calibrated: Path, density: float) -> None:
    keep_input, keep_down = make("dip", density=density).keeps(SMALL_MODEL)
    policy = make("dip-threshold", density=density, calibration=calibrated)
    check_masks(policy, calibrated, {"input": ("input", keep_input), "down": ("glu", keep_down)})


@settings(max_examples=15)
@given(st.floats(0.05, 1))
def test_teal_cuts_everything_alike(calibrated: Path, density: float) -> None:
    groups = {"attention": "attn_input", "output": "attn_output", "input": "input", "down": "glu"}
    policy = make("teal", density=density, calibration=calibrated)
    check_masks(policy, calibrated, {group: (signal, density) for group, signal in groups.items()})


def test_static_takes_the_same_neurons_always(calibrated: Path) -> None:
    file = np.load(calibrated)
    for (layer, _), masks in masks_of(make("static", density=0.3, calibration=calibrated)).items():
        mean = file[f"layers/{layer:03d}/glu/mean"]
        best = sorted(sorted(range(120), key=lambda unit: (-mean[unit], unit))[:36])
        assert all(np.flatnonzero(mask).tolist() == best for mask in masks)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("density", [0.4, 0.5, 0.8, 1.0])
def test_on_its_own_text_a_calibration_gives_the_density(calibrated: Path, name: str, density: float) -> None:
    """To a thousandth for each matrix, and what equal values add; masks of `static` are whole units."""
    policy = make(name, density=density, calibration=calibrated)
    with Trace(calibrated.with_suffix(".trace")) as trace:
        result = replay(trace, flat_profile(), policy, EVICTIONS.make("lfu")[1])
    assert result.mlp_density == pytest.approx(density, abs=1 / 120 if name == "static" else 2e-3)
    if density == 1:
        assert result.mlp_density == 1


def test_zeros_never_pass_a_threshold(calibrated: Path, tmp_path: Path) -> None:
    """Strictly more than the threshold: of a signal that is mostly zero, only the rest is read."""
    header, arrays = read_arrays(calibrated, KIND)
    for layer in range(3):
        arrays[f"layers/{layer:03d}/gate/quantiles"] = np.zeros(1001, np.float32)
    write_arrays(tmp_path / "z.npz", KIND, header, arrays)
    for masks in masks_of(make("cats", calibration=tmp_path / "z.npz")).values():
        assert masks.mean() > 0.9  # random signals are hardly ever zero

    class Zeros(RandomSignals):
        def read(self, *where: Any) -> np.ndarray:
            return np.zeros_like(super().read(*where))

    policy = make("cats", calibration=tmp_path / "z.npz")
    plans, source, sequences = plans_of(policy, SMALL_MODEL), Zeros(SMALL_MODEL, 5), [Sequence(tokens=5)]
    counts = scan(source, sequences, policy, plans, EVICTIONS.make("lru")[1], model=SMALL_MODEL)
    assert counts.requests.sum() == 0


# ---------------------------------------------------------------------- the greedy allocation


def allocation(path: Path, out: Path, keeps: dict[str, list[list[float]]], **changes: np.ndarray) -> Path:
    """A calibration with the given keeps of each signal: by layer, step by step."""
    header, arrays = read_arrays(path, KIND)
    for signal, rows in keeps.items():
        for layer, row in enumerate(rows):
            arrays[f"layers/{layer:03d}/{signal}/keeps"] = np.array(row, np.float32)
    write_arrays(out, KIND, header | {"allocation": {"tokens": 9}}, arrays | changes)
    return out


WAYS = {
    "attn_input": [[1, 1, 0.5], [1, 0.8, 0.8], [1, 0.9, 0.2]],
    "attn_output": [[1, 0.7, 0.7], [1, 1, 0.1], [1, 1, 0.9]],
    "input": [[1, 0.6, 0.5], [1, 0.9, 0.4], [1, 0.75, 0.3]],
    "glu": [[1, 0.8, 0.2], [1, 0.7, 0.3], [1, 0.9, 0.1]],
}


@settings(max_examples=15)
@given(st.floats(0.34, 1))
def test_teal_stands_at_one_step_of_the_way_in_all_layers(
    calibrated: Path, tmp_path_factory: pytest.TempPathFactory, density: float
) -> None:
    path = allocation(calibrated, tmp_path_factory.mktemp("way") / "a.npz", WAYS)
    policy: Any = make("teal", density=density, calibration=path)
    policy.groups(SMALL_MODEL)
    keeps = {signal: [policy.keep_of(SMALL_MODEL, layer, signal) for layer in range(3)] for signal in SIGNALS}
    mlp = [(2 * keeps["input"][layer] + keeps["glu"][layer]) / 3 for layer in range(3)]
    assert sum(mlp) / 3 == pytest.approx(density, abs=1e-6)
    first, at = WAYS["input"][0], keeps["input"][0]  # falls at every step, so it tells the step
    low = 0 if at > first[1] else 1
    step = low + (first[low] - at) / (first[low] - first[low + 1])
    for signal, rows in WAYS.items():
        for layer, row in enumerate(rows):
            assert keeps[signal][layer] == pytest.approx(row[low] + (step - low) * (row[low + 1] - row[low]), abs=1e-5)


def test_a_density_beyond_the_way_is_refused(calibrated: Path, tmp_path: Path) -> None:
    path = allocation(calibrated, tmp_path / "a.npz", WAYS)
    with pytest.raises(PluginError, match=r"density=0\.2: the allocation of .*a\.npz goes down to 0\.333; choose a"):
        make("teal", density=0.2, calibration=path).groups(SMALL_MODEL)


@pytest.mark.parametrize(
    "row",
    [
        np.array([1, 0.5], np.float32),  # shorter than the others
        np.array([1, 0.5, 0.6], np.float32),
        np.array([0.9, 0.5, 0.4], np.float32),
        np.array([1, 0.5, -0.1], np.float32),
        np.array([1, 0, 0], np.int32),
    ],
)
def test_a_damaged_way_is_refused(calibrated: Path, tmp_path: Path, row: np.ndarray) -> None:
    path = allocation(calibrated, tmp_path / "a.npz", WAYS, **{"layers/001/input/keeps": row})
    with pytest.raises(
        PluginError, match=r"input/keeps and its like must be .*anew: hwsim fit thresholds TRACE -o .*a\.npz"
    ):
        make("teal", calibration=path).groups(SMALL_MODEL)


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("name", ALL)
def test_a_calibration_is_needed_and_must_fit(calibrated: Path, tmp_path: Path, name: str) -> None:
    """One line each, with the command that mends it."""

    def refused(path: Path | None, model: Any = SMALL_MODEL) -> str:
        with pytest.raises(HwsimError) as found:
            make(name, calibration=path).groups(model)
        assert "\n" not in str(found.value)
        return str(found.value)

    assert "hwsim fit thresholds TRACE -o FILE, and give it: --set calibration=FILE" in refused(None)
    mend = f"hwsim fit thresholds TRACE -o {calibrated}"
    other, wide = (SMALL_MODEL.model_copy(update=change) for change in ({"name": "large"}, {"hidden_size": 60}))
    assert refused(calibrated, other) == (
        f"{calibrated}: was made for small, the model is large; make one from a trace of large: {mend}"
    )
    assert refused(calibrated, wide) == (
        f"{calibrated}: was made for a small with hidden_size 48, the model has 60; make one from its own trace: {mend}"
    )
    path = tmp_path / "c.npz"
    write_calibration(path, signals=("up",))
    assert f"{path}: lacks the signal " in refused(path)
    assert f"-o TRACE, then hwsim fit thresholds TRACE -o {path}" in refused(path)
    header, arrays = read_arrays(calibrated, KIND)
    for broken in (
        {key: value for key, value in arrays.items() if not key.startswith("layers/002")},
        {key: value[:1] for key, value in arrays.items()},
        {key: -value for key, value in arrays.items()},
        {key: value.astype(np.int32) for key, value in arrays.items()},
    ):
        write_arrays(path, KIND, header, broken)
        assert refused(path).endswith(f"make it anew: hwsim fit thresholds TRACE -o {path}")
    write_arrays(path, KIND, {}, arrays)
    assert "its header names no model" in refused(path)
    write_arrays(path, "hwsim-predictor", header, arrays)
    assert f"needed is hwsim-calibration version 1; make it anew: hwsim fit thresholds TRACE -o {path}" in refused(path)
    path.write_bytes(calibrated.read_bytes()[:-100])
    assert f"make it anew: hwsim fit thresholds TRACE -o {path}" in refused(path)


def test_cats_cannot_spare_the_gate(calibrated: Path) -> None:
    with pytest.raises(PluginError, match=r"density=0\.3 cannot be reached: the gate is read whole"):
        make("cats", density=0.3, calibration=calibrated).groups(SMALL_MODEL)

"""Norms of the weights in a trace: recorded on demand, read, checked, and asked for where they lack."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from hwsim.errors import TraceError
from hwsim.model.shape import NORMS
from hwsim.record import Settings, record
from hwsim.record.recording import Runner
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.trace import Trace
from tests.conftest import flat_profile
from tests.record.conftest import make_model, save
from tests.runs import replay

READING = Settings(40, 16, norms=True)


@pytest.fixture(scope="module")
def recorded(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("norms") / "t.npz"
    record(path, str(checkpoints["llama"]), settings=READING)
    return path


def test_they_are_those_of_the_weights(recorded: Path) -> None:
    layers = make_model("llama").model.layers
    with Trace(recorded) as trace:
        assert all(trace.has(name) for name in NORMS)
        for index, layer in enumerate(layers):
            above = np.concatenate([m.weight.detach().numpy() for m in (layer.mlp.gate_proj, layer.mlp.up_proj)])
            assert trace.norm(index, "norm_input") == pytest.approx(np.linalg.norm(above, axis=0), rel=1e-6)
            down = layer.mlp.down_proj.weight.detach().numpy()
            assert trace.norm(index, "norm_down") == pytest.approx(np.linalg.norm(down, axis=0), rel=1e-6)
        assert len(list(trace.verify())) == 3 * 3 + 3 + 3 * 2  # signals; tokens, nll, header; norms
    with np.load(recorded) as plain:
        assert plain["layers/002/norm_down"].shape == (88,)
        assert plain["layers/002/norm_down"].dtype == np.float32


def test_a_killed_recording_ends_as_the_same_file(
    recorded: Path, checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, losses = [0], Runner.losses

    def stop(self: Runner, ids: np.ndarray) -> np.ndarray:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        return losses(self, ids)

    path = tmp_path / "t.npz"
    monkeypatch.setattr(Runner, "losses", stop)
    with pytest.raises(KeyboardInterrupt):
        record(path, str(checkpoints["llama"]), settings=READING)
    monkeypatch.setattr(Runner, "losses", losses)
    assert record(path, str(checkpoints["llama"]), settings=READING).resumed == 16
    assert path.read_bytes() == recorded.read_bytes()
    assert record(path, str(checkpoints["llama"]), settings=READING).resumed == 40


def test_without_the_option_the_file_is_as_before(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    record(tmp_path / "t.npz", str(checkpoints["llama"]), settings=Settings(40, 16))
    rule = EVICTIONS.make("lru")[1]
    with Trace(tmp_path / "t.npz") as trace:
        assert not any(trace.has(name) for name in NORMS)
        assert "norms" not in trace.header.provenance["command"]
        with pytest.raises(TraceError) as found:
            replay(trace, flat_profile(), POLICIES.make("dip", {"weighted": True})[1], rule)
        with pytest.raises(TraceError, match="has no norm_down; record it with --norms"):
            trace.norm(0, "norm_down")
    assert str(found.value) == (
        f"{tmp_path / 't.npz'}: lacks norm_down, norm_input, which the policy needs; "
        "record it: hwsim record --model llama --signals glu,input --norms"
    )


def test_weights_that_come_from_disk_layer_by_layer(recorded: Path, tmp_path: Path) -> None:
    """A layer's weights are there only while it runs."""
    folder = save(make_model("llama"), tmp_path / "llama")
    record(tmp_path / "t.npz", str(folder), settings=Settings(40, 16, norms=True, max_memory=150_000))
    with Trace(recorded) as whole, Trace(tmp_path / "t.npz") as other:
        for layer in range(3):
            for name in NORMS:
                assert np.array_equal(whole.norm(layer, name), other.norm(layer, name))


@pytest.mark.parametrize(
    ("member", "values", "message"),
    [
        ("layers/001/norm_down", np.full(88, -1, "f4"), "layers/001/norm_down: unit 0 has -1.0; must be a finite norm"),
        ("layers/001/norm_down", np.full(88, np.nan, "f4"), "layers/001/norm_down: unit 0 has nan; must be a finite"),
        ("layers/001/norm_down", np.ones(87, "f4"), r"layers/001/norm_down: shape \(87,\), the header says \(88,\)"),
        ("layers/001/norm_input", np.ones(32), "layers/001/norm_input: type float64, a trace needs float32"),
        (
            "layers/001/norm_input",
            None,
            "has no member 'layers/001/norm_input', which other layers have; it is damaged",
        ),
    ],
)
def test_damaged_ones(member: str, values: np.ndarray | None, message: str, recorded: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(recorded) as whole, zipfile.ZipFile(tmp_path / "t.npz", "w") as other:
        for name in whole.namelist():
            data = whole.read(name)
            if name == f"{member}.npy":
                if values is None:
                    continue
                buffer = io.BytesIO()
                np.save(buffer, values)
                data = buffer.getvalue()
            other.writestr(name, data)
    with pytest.raises(TraceError, match=message), Trace(tmp_path / "t.npz") as trace:
        list(trace.verify())

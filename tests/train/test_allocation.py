"""The greedy allocation against a plain twin, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="an allocation needs the extra `record`")

from hwsim.analysis.calibration import calibrate
from hwsim.errors import ModelError, TraceError
from hwsim.record import Settings, record
from hwsim.trace import Trace
from hwsim.train import allocation as module
from hwsim.train.allocation import allocate
from hwsim.util.arrayfile import ArrayFile
from tests.conftest import write_trace
from tests.record.conftest import checkpoints, make_model, save

__all__ = ["checkpoints"]

SIGNALS = ("attn_input", "attn_output", "input", "glu")
PROMPT, TOKENS = 2, 22


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEP", 0.05)
    monkeypatch.setattr(module, "_LEAST", 0.7)


def recorded(folder: Path, path: Path) -> Path:
    record(path, str(folder), settings=Settings(TOKENS, TOKENS, PROMPT, SIGNALS))
    return path


def twin(family: str, trace: Trace, calibration: ArrayFile, index: int) -> list[dict[str, float]]:
    """The way of one layer: its linear maps are replaced, its block is called with what the dense model gave it."""
    import torch

    model = make_model(family)
    inner = model.model.decoder if family == "opt" else model.model
    layer, attention = inner.layers[index], inner.layers[index].self_attn
    mlp = layer if family == "opt" else layer.mlp
    names = {
        "attn_input": [(attention, name) for name in ("q_proj", "k_proj", "v_proj", "qkv_proj")],
        "attn_output": [(attention, name) for name in ("o_proj", "out_proj")],
        "input": [(mlp, name) for name in ("gate_proj", "up_proj", "gate_up_proj", "fc1")],
        "glu": [(mlp, name) for name in ("down_proj", "fc2")],
    }
    limits, size, calls = dict.fromkeys(SIGNALS, -1.0), dict.fromkeys(SIGNALS, 0), []
    for signal, places in names.items():
        for owner, name in places:
            if hasattr(owner, name):
                linear = getattr(owner, name)
                size[signal] += linear.weight.numel()

                def forward(x: Any, linear: Any = linear, signal: str = signal) -> Any:
                    cut = x.clone().reshape(-1, x.shape[-1])
                    cut[PROMPT:][cut[PROMPT:].abs() <= limits[signal]] = 0
                    return torch.nn.functional.linear(cut.view(x.shape), linear.weight, linear.bias)

                linear.forward = forward
    block = layer.forward
    layer.forward = lambda *args, **kwargs: calls.append((args, kwargs)) or block(*args, **kwargs)

    def run() -> Any:
        made = block(*calls[0][0], **calls[0][1])
        return made[0] if isinstance(made, tuple) else made

    ids = trace.tokens()
    assert ids is not None
    keeps = dict.fromkeys(SIGNALS, 1.0)
    way = [dict(keeps)]
    with torch.no_grad():
        model(torch.as_tensor(ids)[None].long(), use_cache=False)
        target = run()
        for _ in range(6):  # 30 % of the block
            errors = []
            for signal in SIGNALS:
                less = keeps[signal] - 0.05 * sum(size.values()) / size[signal]
                if less < 0:
                    continue
                for each in SIGNALS:
                    keep = less if each == signal else keeps[each]
                    levels = calibration.arrays[f"layers/{index:03d}/{each}/quantiles"]
                    limits[each] = -1.0 if keep == 1 else float(np.interp(1 - keep, np.linspace(0, 1, 1001), levels))
                last = (run() - target)[0, -5:]  # a quarter of the 20 decoded tokens
                errors.append((float((last.double() ** 2).sum().sqrt()), signal, less))
            _, signal, less = min(errors, key=lambda each: each[0])
            keeps[signal] = less
            way.append(dict(keeps))
    return way


@pytest.mark.parametrize("family", ["llama", "phi3", "opt"])
def test_the_way_is_that_of_a_plain_twin(family: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    with Trace(recorded(checkpoints[family], tmp_path / "t.npz")) as trace:
        plain = calibrate(trace)
        found = allocate(str(checkpoints[family]), trace, plain)
        assert set(found.arrays) - set(plain.arrays) == {
            f"layers/{layer:03d}/{signal}/keeps" for layer in range(3) for signal in SIGNALS
        }
        assert found.header["allocation"]["tokens"] == TOKENS
        for layer in range(3):
            way = twin(family, trace, plain, layer)
            for signal in SIGNALS:
                keeps = found.arrays[f"layers/{layer:03d}/{signal}/keeps"]
                np.testing.assert_allclose(
                    keeps, [step[signal] for step in way], atol=1e-6, err_msg=f"{layer} {signal}"
                )


def test_what_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    with Trace(recorded(checkpoints["llama"], tmp_path / "t.npz")) as trace:
        other = make_model("llama")
        other.lm_head.weight.data.neg_()
        with pytest.raises(ModelError, match=r"--model tuned: is not the model that .*t\.npz was recorded from"):
            allocate(str(save(other, tmp_path / "tuned")), trace, calibrate(trace))
        with pytest.raises(ModelError, match="--model opt: is not the model"):
            allocate(str(checkpoints["opt"]), trace, calibrate(trace))
    with Trace(write_trace(tmp_path / "s.npz", signals=SIGNALS)) as trace, pytest.raises(TraceError, match="no tokens"):
        allocate(str(checkpoints["llama"]), trace, calibrate(trace))
    with (
        Trace(write_trace(tmp_path / "m.npz")) as trace,
        pytest.raises(TraceError, match="lacks the signal attn_input"),
    ):
        allocate(str(checkpoints["llama"]), trace, calibrate(trace))


def test_a_model_that_is_loaded_layer_by_layer_goes_the_same_way(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    with Trace(recorded(checkpoints["llama"], tmp_path / "t.npz")) as trace:
        whole, parts = (
            allocate(str(checkpoints["llama"]), trace, calibrate(trace), max_memory=memory)
            for memory in (None, 160_000)
        )
    assert whole.arrays.keys() == parts.arrays.keys()
    for name, array in whole.arrays.items():
        np.testing.assert_array_equal(array, parts.arrays[name], name)

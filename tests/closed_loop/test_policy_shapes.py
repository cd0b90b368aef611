"""Every built-in policy in the closed loop: fed the same signals, it decides as the open loop does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the closed loop needs the extra `record`")

from hwsim.closed_loop import Candidate
from hwsim.closed_loop.evaluation import Evaluation
from hwsim.masking.mask_file import MaskFile, MaskWriter
from hwsim.model.shape import NORMS
from hwsim.policy import PluginError, Policy
from hwsim.record import Settings as Reading
from hwsim.record.hooks import Taps
from hwsim.record.prepare import passes, prepare
from hwsim.record.runner import Runner
from hwsim.simulation.densities import Layered
from hwsim.simulation.plugins import POLICIES
from hwsim.simulation.settings import Settings
from hwsim.testing.drive import MaskCollector
from hwsim.trace import TraceHeader
from tests.closed_loop.loops import generate, rule
from tests.conftest import flat_profile
from tests.policies.test_policies import nets_file
from tests.runs import evaluate, layout, replay_masks, scan

READING = Reading(tokens=40, context=24, prompt=3)
CHOSEN = Settings(dram="70%", seed=3)
SHAPES: dict[str, dict[str, Any]] = {
    "oracle": {}, "noisy-oracle": {}, "up": {}, "gate": {}, "random": {}, "sliding-window": {"window": 3}, "relu": {},
    "approximate-caching": {}, "magnitude": {"weighted": True, "density": 0.7}, "dip": {"weighted": True},
    "dip-ca": {"alpha_blend": True}, "predictor": {},
}  # fmt: skip


class Signals:
    """What a dense pass makes, in float32, before a trace rounds it."""

    def __init__(self, folder: Path) -> None:
        ready = prepare(str(folder), "persuasion", READING, lambda *_: None)
        self.header: TraceHeader = ready.header
        loaded, found = ready.load(lambda *_: None), dict[tuple[int, str], list[np.ndarray]]()
        gated = ready.header.model.gated
        names = ["input", *(["up", "gate"] if gated else []), "glu"]
        self.norms: dict[tuple[int, str], np.ndarray] = {}
        taps = Taps(
            loaded.layers, names, lambda layer, signal, rows: found.setdefault((layer, signal), []).append(rows.copy()),
            lambda layer, name, values: self.norms.update({(layer, name): values}),
        )  # fmt: skip
        runner = Runner(loaded.model, ready.libraries)
        for start, windows, length in passes(0, ready.settings, loaded.from_disk):
            runner.losses(ready.ids[start : start + windows * length].reshape(windows, length))
        taps.remove()
        self._found = {key: np.concatenate(rows) for key, rows in found.items()}

    def read(self, layer: int, signal: str, start: int, stop: int) -> np.ndarray:
        return self._found[layer, signal][start:stop]

    def norm(self, layer: int, name: str) -> np.ndarray:
        return self.norms[layer, name]


@pytest.fixture(scope="module")
def dense(checkpoints: dict[str, Path]) -> dict[str, Signals]:
    return {family: Signals(checkpoints[family]) for family in ("llama", "phi3", "opt")}


def closed(folder: Path, name: str, policy: Policy, masks: Path | None = None) -> Evaluation:
    writer = MaskWriter(masks) if masks else None
    candidates = [Candidate(name, policy)]
    return evaluate(folder, "persuasion", flat_profile(), candidates, rule(), READING, CHOSEN, masks=writer)[0]


@pytest.mark.parametrize("family", ["llama", "phi3", "opt"])
@pytest.mark.parametrize("name", SHAPES)
def test_the_first_layer_decides_as_the_open_loop(
    name: str, family: str, checkpoints: dict[str, Path], dense: dict[str, Signals], tmp_path: Path
) -> None:
    source = dense[family]
    model, sequences = source.header.model, source.header.sequences
    nets = {"predictor": nets_file(tmp_path / "nets.npz", model)} if name == "predictor" else {}
    policy = POLICIES.make(name, SHAPES[name] | nets)[1]
    if name in ("up", "gate") and family == "opt":
        with pytest.raises(PluginError, match="has no gate"):
            closed(checkpoints[family], name, policy)
        return
    found = closed(checkpoints[family], name, policy, tmp_path / "masks.npz")
    saved = MaskFile(tmp_path / "masks.npz")
    plans = layout(model, flat_profile(), policy, source.header.longest, CHOSEN).plans
    expected = MaskCollector()
    scan(source, sequences, policy, plans, rule(), model=model, seed=CHOSEN.seed, layers=[0], observers=[expected])
    assert expected.masks_of.keys() == {(0, plan.name) for plan in plans[0]}
    for plan in plans[0]:
        if plan.name == "down" and (0, "input") in expected.masks_of:
            continue  # its glu feels the input's mask
        ours = saved._read(plan, source.header.decoded)
        assert np.array_equal(ours, expected.masks_of[0, plan.name]), plan.name
    if name == "relu":  # nothing is lost, and only where there are zeros something is skipped
        assert found.kl == pytest.approx(0, abs=1e-6)
        assert (found.mlp_density < 0.9) == (family == "opt")
    else:
        assert found.kl > 1e-9  # unmasked it is 0.0; the oracle of a ReLU model loses little


def test_the_norms_are_those_of_the_weights(checkpoints: dict[str, Path], dense: dict[str, Signals]) -> None:
    from tests.record.conftest import make_model

    for family, source in dense.items():
        model = make_model(family)
        layers = model.model.decoder.layers if family == "opt" else model.model.layers
        for index, layer in enumerate(layers):
            if family == "opt":
                first, down = [layer.fc1], layer.fc2
            else:
                mlp, down = layer.mlp, layer.mlp.down_proj
                first = [mlp.gate_up_proj] if family == "phi3" else [mlp.gate_proj, mlp.up_proj]
            above = np.concatenate([each.weight.detach().numpy() for each in first])
            expected = {
                "norm_input": np.linalg.norm(above.astype(np.float64), axis=0),
                "norm_down": np.linalg.norm(down.weight.detach().numpy().astype(np.float64), axis=0),
            }
            for name in NORMS:
                found = source.norm(index, name)
                assert found.dtype == np.float32
                assert found == pytest.approx(expected[name], rel=1e-6)


def test_recall_1_is_the_oracle(checkpoints: dict[str, Path]) -> None:
    exact = closed(
        checkpoints["llama"], "noisy-oracle", POLICIES.make("noisy-oracle", {"recall": 1, "precision": 1})[1]
    )
    truth = closed(checkpoints["llama"], "oracle", POLICIES.make("oracle")[1])
    assert (exact.perplexity, exact.kl, exact.groups) == (truth.perplexity, truth.kl, truth.groups)


def test_choosing_costs_less_than_drawing(checkpoints: dict[str, Path]) -> None:
    costs = [
        closed(checkpoints["llama"], name, POLICIES.make(name, {"density": 0.8})[1]).kl
        for name in ("oracle", "dip", "random")
    ]
    assert costs[0] < costs[1] < costs[2]


@pytest.mark.parametrize("name", ["dip-ca", "oracle"])
def test_densities_layer_by_layer(name: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    densities = [1.0, 0.5, 0.75]
    copies = tuple(POLICIES.make(name, {"density": each})[1] for each in densities)
    policy = Layered(layers=copies, source="f")
    found = closed(checkpoints["llama"], name, policy, tmp_path / "masks.npz")
    units = {"input": 32, "down": 88, "neurons": 88}
    for group in found.groups:
        keep = next(each.keep for each in copies[group.layer].groups(_shape(checkpoints)) if each.name == group.group)
        assert keep is not None
        assert group.requests == found.tokens * max(1, int(keep * units[group.group] + 1e-9))
    again = replay_masks(MaskFile(tmp_path / "masks.npz"), flat_profile(), rule(), CHOSEN)
    for field in ("groups", "notes", "time_s", "mlp_density"):
        assert getattr(again, field) == getattr(found, field), field
    assert again.provenance["policy"]["parameters"]["parameters"]["density"] == densities
    written = generate(checkpoints["llama"], "It is a truth", Candidate(name, policy), 6, CHOSEN)
    assert written.result is not None
    first = [group.requests / written.result.tokens for group in written.result.groups]
    assert first == [group.requests / found.tokens for group in found.groups]


def _shape(checkpoints: dict[str, Path]) -> Any:
    return prepare(str(checkpoints["llama"]), "persuasion", READING, lambda *_: None).header.model

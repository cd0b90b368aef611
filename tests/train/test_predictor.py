"""Do predictors learn what can be learnt, and are they what they say?"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

pytest.importorskip("torch", reason="training needs torch")

import torch

from hwsim.errors import PluginError, SettingError
from hwsim.memory.planning import plan_groups
from hwsim.model.shape import ModelShape
from hwsim.policy import Policy
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.trace import Sequence, Trace
from hwsim.train import nets, samples
from hwsim.train.predictor import Settings, plan, train
from hwsim.util.arrayfile import read_arrays, write_arrays
from tests.conftest import flat_profile, write_trace
from tests.runs import replay

from .planted import MODEL, nets_file, planted_trace

__all__ = ["nets_file", "planted_trace"]


def policy(**fields: Any) -> Policy:
    return POLICIES.make("predictor", fields)[1]


def top(values: np.ndarray, k: int) -> np.ndarray:
    return np.isin(np.arange(len(values)), sorted(range(len(values)), key=lambda i: (-values[i], i))[:k])


# ---------------------------------------------------------------------- it learns


def test_a_planted_rule_is_learnt(tmp_path: Path, planted_trace: Path) -> None:
    done = train(tmp_path / "nets.npz", planted_trace, Settings(density=0.7, rank=8, epochs=25, learning_rate=0.03))
    header = done.header
    assert header["chance"] == header["k"] / 60 < 0.6
    for layer in header["layers"]:
        assert layer["recall"] > 0.93
        assert layer["recall"] > layer["static"] + 0.2
        assert min(layer["losses"]) == layer["loss"] == layer["losses"][layer["epoch"]]
    assert header["recall"] == pytest.approx(np.mean([layer["recall"] for layer in header["layers"]]))


def test_what_is_random_is_not_learnt(tmp_path: Path) -> None:
    """Held-out sequences tell: nothing is better there than the static set of the training tokens, and chance."""
    trace = write_trace(tmp_path / "t.npz", sequences=[Sequence(tokens=50)] * 6)
    with Trace(trace) as opened:
        rng = np.random.default_rng(0)
        noise = rng.standard_normal((300, 120)).astype("f4")
        opened.read = (
            lambda layer, signal, start=0, stop=None: (  # type: ignore[method-assign]
                noise[start:stop] if signal == "glu" else rng.standard_normal((stop - start, 48)).astype("f4")
            )
        )
        parts = samples.split(opened.header, "t")
        training, validation = (samples.Samples(opened, 0, 40, blocks) for blocks in parts)
        known = samples.statistics(training, 120, 40)
        found = nets.fit(
            torch, training, validation, known, nets.Effort(8, 5, patience=2, learning_rate=0.01, device="cpu"), rng
        )
        assert samples.measure(found.net, validation, known.static, 40).recall == pytest.approx(1 / 3, abs=0.05)


# ---------------------------------------------------------------------- plain twins


def test_loss_and_masks_are_those_of_a_plain_twin(planted_trace: Path) -> None:
    """Bernoulli cross-entropy of relu(x w1 + b1) w2 + b2 against the top-k masks of |glu|, written out in float64."""
    k = 25
    with Trace(planted_trace) as trace:
        parts = samples.split(trace.header, planted_trace)
        training, validation = (samples.Samples(trace, 1, k, blocks) for blocks in parts)
        known = samples.statistics(training, 60, k)
        found = nets.fit(
            torch, training, validation, known, nets.Effort(4, 3, patience=3, learning_rate=0.03, device="cpu"),
            np.random.default_rng(1),
        )  # fmt: skip
        x, glu = trace.read(1, "input"), trace.read(1, "glu")
        quality = samples.measure(found.net, validation, known.static, k)
    starts = range(0, 640, 64)
    decoded = [list(range(at + 3 * (number % 2), at + 64)) for number, at in enumerate(starts)]
    held = [*decoded[8], *decoded[9]]  # the last 64 - 3 are less than a tenth of 625
    trained = [token for tokens in decoded[:8] for token in tokens]
    truth = np.array([top(np.abs(row), k) for row in glu])
    assert (training.tokens, validation.tokens) == (len(trained), len(held))
    counts = truth[trained].sum(axis=0)
    assert (known.static == top(counts, k)).all()
    assert known.mean == pytest.approx(x[trained].mean(axis=0, dtype=float))
    assert known.scale == pytest.approx(math.sqrt(x[trained].var(axis=0, dtype=float).mean()))

    def loss(w1: Any, b1: Any, w2: Any, b2: Any) -> float:
        logits = np.maximum(x[held].astype(float) @ w1 + b1, 0) @ w2 + b2
        chances = 1 / (1 + np.exp(-logits))
        return float(-np.where(truth[held], np.log(chances), np.log(1 - chances)).mean())

    net = found.net
    share = (counts + 1) / (len(trained) + 2)
    assert found.losses[0] == pytest.approx(
        loss(0 * net["w1"], 0, 0 * net["w2"], np.log(share / (1 - share))), rel=1e-5
    )
    assert found.losses[found.epoch] == pytest.approx(loss(**net), rel=1e-5)
    right = sum(
        (top(np.maximum(x[t] @ net["w1"] + net["b1"], 0) @ net["w2"] + net["b2"], k) & truth[t]).sum() for t in held
    )
    assert quality.recall == quality.precision == pytest.approx(right / (k * len(held)), abs=2 / (k * len(held)))
    assert quality.static == (truth[held] & known.static).sum() / (k * len(held))


def test_early_stopping_keeps_the_best_epoch(planted_trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is scripted: it falls, rises, falls below, then rises for `patience` epochs."""
    script = iter([0.9, 0.7, 0.8, 0.6, 0.65, 0.61, 0.1])
    seen: list[dict[str, np.ndarray]] = []
    with Trace(planted_trace) as trace:
        parts = samples.split(trace.header, planted_trace)
        training, validation = (samples.Samples(trace, 0, 20, blocks) for blocks in parts)
        honest = nets._Net.loss

        def scripted(self: Any, inputs: Any, masks: Any, reduction: str) -> Any:
            if reduction == "mean":
                return honest(self, inputs, masks, reduction)
            share = len(inputs) * self.units  # of the mean over all validation tokens
            if len(seen) == 0 or first(inputs):
                seen.append(self.values())
                scripted.now = next(script)  # type: ignore[attr-defined]
            return torch.tensor(scripted.now * share, dtype=torch.float64)  # type: ignore[attr-defined]

        begin = torch.from_numpy(next(validation.pieces())[0])[0]

        def first(inputs: Any) -> bool:
            return bool((inputs[0] == begin).all())

        monkeypatch.setattr(nets._Net, "loss", scripted)
        found = nets.fit(
            torch, training, validation, samples.statistics(training, 60, 20),
            nets.Effort(3, 9, patience=2, learning_rate=0.01, device="cpu"), np.random.default_rng(0),
        )  # fmt: skip
    assert found.losses == pytest.approx([0.9, 0.7, 0.8, 0.6, 0.65, 0.61])
    assert found.epoch == 3
    assert all((found.net[part] == seen[3][part]).all() for part in found.net)
    assert not (found.net["w2"] == seen[5]["w2"]).all()


def test_a_layer_beyond_the_limit_is_read_in_pieces(planted_trace: Path) -> None:
    """Every token once in each pass, in whatever order; and the same statistics."""
    with Trace(planted_trace) as trace:
        blocks = samples.split(trace.header, planted_trace).training
        whole = samples.Samples(trace, 0, 20, blocks)
        pieced = samples.Samples(trace, 0, 20, blocks, limit=3 * samples.BLOCK * (2 * 16 + 8))
        order = np.random.default_rng(0).permutation(pieced.blocks)
        pieces = list(pieced.pieces(order))
        assert [len(inputs) for inputs, _ in pieces] == [
            sum(blocks[i][1] - blocks[i][0] for i in order[a : a + 3]) for a in range(0, len(order), 3)
        ]
        ((inputs, masks),) = whole.pieces()
        rows = sorted(bytes(x) + bytes(mask) for x, mask in zip(inputs, masks, strict=True))
        assert rows == sorted(bytes(x) + bytes(mask) for piece in pieces for x, mask in zip(*piece, strict=True))
        one, other = (samples.statistics(each, 60, 20) for each in (whole, pieced))
        assert (one.static == other.static).all() and one.scale == other.scale and (one.mean == other.mean).all()


@effort(max_examples=60)
@given(st.integers(1, 40), st.integers(1, 200), st.integers(1, 60), st.booleans(), st.floats(0.02, 1))
def test_masks_are_of_the_size_that_the_policy_will_ask_for(
    hidden: int, units: int, rank: int, gated: bool, density: float
) -> None:
    shape = MODEL.model_copy(update={"hidden_size": hidden, "intermediate_size": units, "gated": gated})
    shapes = {"w1": (hidden, rank), "b1": (rank,), "w2": (rank, units), "b2": (units,)}
    net = tuple(np.zeros(shapes[part], np.float32) for part in shapes)
    made = policy(predictor="x", density=density)
    made.__dict__["_nets"], made.__dict__["_file"] = [net] * 2, ({}, {})
    try:
        (group,) = made.groups(shape)
    except PluginError:
        with pytest.raises(SettingError, match="the nets alone are"):
            plan(shape, Settings(density=density, rank=rank))
        return
    found = plan(shape, Settings(density=density, rank=rank))
    assert found.keep == group.keep
    assert plan_groups([group], shape)[0].k == found.k


# ---------------------------------------------------------------------- the file, and the policy that reads it


def test_the_file_says_what_it_is(nets_file: Path, planted_trace: Path) -> None:
    header, arrays = read_arrays(nets_file, "hwsim-predictor")
    with Trace(planted_trace) as trace:
        assert header["trace"] == trace.hash
    assert ModelShape.model_validate(header["model"]) == MODEL
    assert (header["weights_sha256"], header["text"]) == ("abc", {"name": "t.txt", "sha256": "def"})
    assert (header["density"], header["rank"], header["origin"]) == (0.6, 4, "synthetic")
    assert header["tokens"] == {"training": 500, "validation": 125}
    assert [set(layer) for layer in header["layers"]] == [
        {"recall", "precision", "static", "loss", "epoch", "losses"}
    ] * 2
    assert {name: array.shape for name, array in arrays.items()} == {
        f"layers/00{layer}/{part}": shape
        for layer in (0, 1)
        for part, shape in {"w1": (16, 4), "b1": (4,), "w2": (4, 60), "b2": (60,)}.items()
    }
    assert str(planted_trace.parent) not in json.dumps(header)


def test_a_replay_with_the_nets_finds_what_the_training_promised(nets_file: Path, planted_trace: Path) -> None:
    """Over the validation sequences, the policy's own masks have the recall that the header states."""
    header = read_arrays(nets_file, "hwsim-predictor").header
    made, found = policy(predictor=str(nets_file), density=0.6), []
    with Trace(planted_trace) as trace:
        result = replay(trace, flat_profile(), made, EVICTIONS.make("lru")[1])
        share = header["share"]
        assert result.mlp_density == pytest.approx(header["k"] / 60 + share)
        assert made.predictor_parameters(MODEL) == round(share * 2 * MODEL.mlp_parameters)
        (group,) = made.groups(MODEL)
        for layer in range(2):
            hits = 0
            x, glu = trace.read(layer, "input"), trace.read(layer, "glu")
            for token in [*range(512, 576), *range(579, 640)]:
                ctx = type("Seen", (), {"layer": layer, "signals": {"input": x[token]}, "group": group})
                guess = top(made.score(ctx), header["k"])  # type: ignore[arg-type]
                hits += int((guess & top(np.abs(glu[token]), header["k"])).sum())
            found.append(hits / (125 * header["k"]))
    assert found == pytest.approx([layer["recall"] for layer in header["layers"]], abs=1e-3)


def changed(path: Path, source: Path, **fields: Any) -> Path:
    header, arrays = read_arrays(source, "hwsim-predictor")
    write_arrays(path, "hwsim-predictor", header | fields, arrays)
    return path


def test_nets_of_another_density_are_refused(nets_file: Path) -> None:
    for density in (0.5, 0.61):
        with pytest.raises(PluginError) as caught:
            policy(predictor=str(nets_file), density=density).groups(MODEL)
        assert str(caught.value) == (
            f"{nets_file}: was trained for density 0.6, asked is {density}; give --density 0.6, train nets for {density} "
            f"(hwsim train predictor TRACE --density {density} -o FILE), or use these all the same with --set force=true"
        )
        assert policy(predictor=str(nets_file), density=density, force=True).groups(MODEL)


def test_nets_of_another_model_are_refused(nets_file: Path, tmp_path: Path) -> None:
    namesake = MODEL.model_copy(update={"name": "twin"})
    with pytest.raises(PluginError, match=r"was trained for the model planted, this one is called twin; .*force=true"):
        policy(predictor=str(nets_file), density=0.6).groups(namesake)
    assert policy(predictor=str(nets_file), density=0.6, force=True).groups(namesake)
    for field, value in (("num_hidden_layers", 3), ("hidden_size", 24), ("intermediate_size", 64)):
        other = MODEL.model_copy(update={field: value})
        for force in (False, True):
            with pytest.raises(
                PluginError, match=rf"was trained for planted with {field} .*, planted has {value}; train"
            ):
                policy(predictor=str(nets_file), density=0.6, force=force).groups(other)


def test_a_file_without_a_header_is_taken_as_it_is(nets_file: Path, tmp_path: Path) -> None:
    members = {name: array for name, array in np.load(nets_file).items() if name != "header"}
    np.savez(tmp_path / "plain.npz", **members)
    for density in (0.4, 0.6):
        assert policy(predictor=str(tmp_path / "plain.npz"), density=density).groups(MODEL)
    empty = changed(tmp_path / "odd.npz", nets_file, model="x", density=None)
    assert policy(predictor=str(empty), density=0.4).groups(MODEL)

"""Files that an earlier version wrote are read, and mean what they meant.

`files` holds one of each kind, written by the commit that `files/make.py` names; all of them go through the command
line or the interface for Python, so that modules may move. Numbers are held against what the files themselves say, read
by numpy, json and sqlite3, or against the earlier results that lie beside them.
"""

from __future__ import annotations

import ast
import csv
import hashlib
import importlib
import json
import platform
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import hwsim as library
from tests.conftest import REPOSITORY, Hwsim
from tests.system.small_model import save_model

FILES = Path(__file__).parent / "files"
THEN = json.loads((FILES / "versions.json").read_text())
MODEL = ("--model", "tiny", "--text", "text.txt")
SHORT = (*MODEL, "--tokens", 48, "--context", 24)
DEVICE = ("--hw", "device.yaml", "--dram", "80%")
ADAPTED = ("--hw", "device.yaml", "--dram", "95%")
LORA = (
    *MODEL, *DEVICE, "--policy", "dip", "--tokens", 288, "--validation", 24, "--context", 24, "--batch", 1,
    "--rank", 1, "--every", 6,
)  # fmt: skip
NETS = ("train", "predictor", "trace.npz", "--density", 0.7, "--rank", 1, "--epochs", 2)
REPLAY = ("replay", "trace.npz", *DEVICE)
COUNTED = ("tokens", "unit_requests", "unit_hits", "flash_bytes", "dram_bytes", "mlp_density", "budget_bytes")
TRACES = ("trace.npz", "trace-int8.npz", "trace-top.npz", "trace-norms.npz", "synthetic.npz")


# ---------------------------------------------------------------------- what the tests share


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A copy of all files: commands run in it, and some write."""
    shutil.copytree(FILES, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    return tmp_path


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for name in ("torch", "transformers"):
        pytest.importorskip(name, reason="needs the extra `record`")
    return save_model(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture
def tiny(here: Path, checkpoint: Path) -> Path:
    """The model of the files, under its name."""
    (here / "tiny").symlink_to(checkpoint, target_is_directory=True)
    return here / "tiny"


@pytest.fixture
def as_then(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was begun goes on with the same versions only: those that the files name are claimed."""
    import torch
    import transformers

    if transformers.__version__ != THEN["transformers"]:  # it decides the hash of the model's configuration
        pytest.skip(f"the files were begun with transformers {THEN['transformers']}")
    monkeypatch.setattr(library, "__version__", THEN["hwsim"])
    monkeypatch.setattr(platform, "python_version", lambda: THEN["python"])
    if str(torch.__version__) != THEN["torch"]:
        monkeypatch.setattr(torch, "__version__", type(torch.__version__)(THEN["torch"]))


@pytest.fixture
def answer(hwsim: Hwsim, here: Path) -> Callable[..., dict[str, Any]]:
    """Run a command and read its ``--json``; it must end well."""

    def run(*words: object) -> dict[str, Any]:
        done = hwsim(*words, "--json", "answer.json")
        assert done.returncode == 0, done.stderr
        return json.loads((here / "answer.json").read_text())

    return run


def stored(name: str) -> Any:
    return json.loads((FILES / name).read_text())


def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(FILES / name, allow_pickle=False) as archive:
        return dict(archive)


def header(name: str) -> dict[str, Any]:
    return json.loads(str(arrays(name)["header"]))


def assert_same_counts(found: dict[str, Any], then: dict[str, Any]) -> None:
    assert then["unit_requests"] > then["unit_hits"] > 0  # the earlier run had caches, and they missed
    assert {key: found[key] for key in COUNTED} == {key: then[key] for key in COUNTED}
    assert found["groups"] == then["groups"]


# ---------------------------------------------------------------------- traces


def rows(members: dict[str, np.ndarray], name: str, encoding: str) -> np.ndarray:
    """The values of a signal, float32, as docs/reference/trace.md says that they are stored."""
    values = members[name].astype(np.float32)
    if encoding == "int8":
        return values * members[f"{name}_scale"][:, None]
    if encoding == "top":
        places = np.unpackbits(members[f"{name}_places"], axis=1).astype(bool)
        width = {"input": 16, "up": 40, "gate": 40}[name.rpartition("/")[2]]
        whole = np.zeros((len(values), width), np.float32)
        whole[places[:, :width]] = values.reshape(-1)
        return whole
    return values


@pytest.mark.parametrize(
    ("name", "encoding", "signals"),
    [
        ("trace.npz", "float16", ["input", "up", "gate", "attn_input", "attn_output"]),
        ("trace-int8.npz", "int8", ["input", "up", "gate"]),
        ("trace-top.npz", "top", ["input", "up", "gate"]),
        ("trace-norms.npz", "float16", ["input", "glu"]),
    ],
)
def test_a_recorded_trace(name: str, encoding: str, signals: list[str]) -> None:
    members = arrays(name)
    with library.load(FILES / name) as trace:
        assert trace.header.origin == "recorded"
        assert sorted(trace.header.signals) == sorted(signals)
        assert [(each.tokens, each.prompt) for each in trace.header.sequences] == [(24, 4), (24, 4)]
        assert trace.header.encoding.name == encoding
        assert trace.header.provenance["command"]["model"] == "tiny"
        model = trace.model
        assert (model.name, model.num_hidden_layers, model.hidden_size, model.intermediate_size) == ("tiny", 2, 16, 40)
        for layer in range(2):
            for signal in signals:
                there = rows(members, f"layers/{layer:03d}/{signal}", encoding)
                np.testing.assert_array_equal(trace.read(layer, signal), there)
                assert np.count_nonzero(there) > 48
        text = (FILES / "text.txt").read_text()[:48]
        ids = trace.tokens()
        assert ids is not None
        assert len(set(ids.tolist())) == len(set(text))
        assert np.array_equal(ids, members["tokens"])
        nll = trace.nll()
        assert nll is not None
        np.testing.assert_array_equal(nll, members["nll"])
        assert trace.perplexity() == pytest.approx(float(np.exp(np.nanmean(members["nll"]))))


def test_encodings_hold_the_same_recording() -> None:
    with library.load(FILES / "trace.npz") as plain:
        for name in ("trace-int8.npz", "trace-top.npz", "trace-norms.npz"):
            with library.load(FILES / name) as other:
                for layer in range(2):
                    for signal in ("input", "glu"):
                        ours, theirs = plain.read(layer, signal), other.read(layer, signal)
                        largest = np.abs(ours).max(axis=1, keepdims=True)
                        if name == "trace-top.npz":
                            if signal == "input":
                                assert (np.count_nonzero(theirs, axis=1) == 12).all()  # three quarters of 16
                            there = theirs != 0
                            np.testing.assert_array_equal(theirs[there], ours[there])
                        elif name == "trace-int8.npz" and signal == "input":
                            assert (np.abs(theirs - ours) <= largest / 253).all()
                        else:
                            assert (np.abs(theirs - ours) <= largest / 50).all()


def test_norms(answer: Callable[..., dict[str, Any]]) -> None:
    members = arrays("trace-norms.npz")
    with library.load(FILES / "trace-norms.npz") as trace:
        for layer in range(2):
            for name, units in (("norm_input", 16), ("norm_down", 40)):
                norms = trace.norm(layer, name)
                np.testing.assert_array_equal(norms, members[f"layers/{layer:03d}/{name}"])
                assert norms.shape == (units,)
                assert len(set(norms.tolist())) > 10
    weighted, plain = (
        answer("replay", "trace-norms.npz", *DEVICE, "--policy", "dip", "--set", f"weighted={value}")
        for value in ("true", "false")
    )
    assert weighted["unit_requests"] == plain["unit_requests"]
    assert weighted["unit_hits"] != plain["unit_hits"]


def test_a_synthetic_trace(answer: Callable[..., dict[str, Any]]) -> None:
    members = arrays("synthetic.npz")
    with library.load(FILES / "synthetic.npz") as trace:
        assert trace.header.origin == "synthetic"
        assert trace.header.signals == ["input"]
        assert trace.model.name == "smollm2-135m"
        for layer in (0, 29):
            np.testing.assert_array_equal(trace.read(layer, "input"), members[f"layers/{layer:03d}/input"])
        size = trace.model.num_hidden_layers * trace.model.mlp_parameters
    found = answer("replay", "synthetic.npz", "--hw", "pixel8", "--dram", "1 GB", "--policy", "dense")
    assert found["tokens"] == 2
    assert found["dram_bytes"] > 2 * size / 2  # 4 bits each


@pytest.mark.parametrize("name", TRACES)
def test_traces_are_sound_and_have_their_hash(name: str, answer: Callable[..., dict[str, Any]]) -> None:
    assert answer("trace", "verify", name)["sound"] is True
    facts = answer("trace", "info", name)
    assert facts["tokens"] == (2 if name == "synthetic.npz" else 48)
    if name == "trace.npz":  # other files name the trace by it
        with library.load(FILES / name) as trace:
            assert trace.hash == header("calibration.npz")["trace"] == header("nets.npz")["trace"]
            assert trace.hash == stored("result.json")["provenance"]["trace"]["hash"]


def test_a_trace_in_a_replay(answer: Callable[..., dict[str, Any]]) -> None:
    """The same counts as then: of the trace, and of a device with every section of a profile."""
    then = stored("result.json")
    found = answer(*REPLAY, "--policy", "dip")
    assert_same_counts(found, then)
    assert found["provenance"]["device"] == then["provenance"]["device"]
    assert found["energy_by_source_j"].keys() == then["energy_by_source_j"].keys()
    again = library.replay(FILES / "trace.npz", hw=FILES / "device.yaml", policy="dip", dram="80%")
    assert_same_counts(again.plain(), then)


# ---------------------------------------------------------------------- what policies and caches read


@pytest.mark.parametrize("policy", ["cats", "dip-threshold", "teal", "static"])
def test_a_calibration(policy: str, answer: Callable[..., dict[str, Any]]) -> None:
    found = answer(*REPLAY, "--policy", policy, "--density", 0.7, "--set", "calibration=calibration.npz")
    assert found["provenance"]["policy"]["parameters"]["calibration"] == "calibration.npz"
    # thresholds of the very tokens that are replayed
    assert found["mlp_density"] == pytest.approx(0.7, abs=0.03 if policy == "static" else 0.05)


def test_thresholds_of_a_calibration(answer: Callable[..., dict[str, Any]]) -> None:
    """CATS needs the neurons whose |gate| is above a quantile of the file."""
    members = arrays("calibration.npz")
    found = answer(*REPLAY, "--policy", "cats", "--density", 0.7, "--set", "calibration=calibration.npz")
    with library.load(FILES / "trace.npz") as trace:
        for group in found["groups"]:
            layer = group["layer"]
            gate = np.abs(trace.read(layer, "gate").reshape(2, 24, 40)[:, 4:])
            quantiles = members[f"layers/{layer:03d}/gate/quantiles"]
            share = group["requests"] / gate.size
            low, high = np.interp([1 - share - 2e-3, 1 - share + 2e-3], np.linspace(0, 1, 1001), quantiles)
            assert np.count_nonzero(gate > high) <= group["requests"] <= np.count_nonzero(gate > low)


def test_the_allocation_of_a_calibration(answer: Callable[..., dict[str, Any]]) -> None:
    """TEAL keeps other shares of other signals, as the file says; without an allocation they are all the same."""
    assert header("calibration.npz")["allocation"]
    assert "layers/001/glu/keeps" in arrays("calibration.npz")
    found = answer(*REPLAY, "--policy", "teal", "--density", 0.7, "--set", "calibration=calibration.npz")
    shares = {(each["layer"], each["group"]): each["requests"] / each["units"] / 40 for each in found["groups"]}
    assert max(shares.values()) - min(shares.values()) > 0.1
    keeps = {
        key: arrays("calibration.npz")[f"layers/{key[0]:03d}/{signal}/keeps"]
        for key in shares
        for group, signal in (
            ("attention", "attn_input"), ("output", "attn_output"), ("input", "input"), ("down", "glu"),
        )
        if group == key[1]
    }  # fmt: skip
    # all stand at one place of the way, at a step or between two
    steps = np.arange(len(next(iter(keeps.values()))))
    off = [
        max(abs(np.interp(at, steps, keeps[key]) - shares[key]) for key in shares)
        for at in np.arange(0, steps[-1], 0.1)
    ]
    assert min(off) < 0.03
    assert max(off) > 0.3


def test_the_hot_set_of_a_calibration(hwsim: Hwsim, here: Path) -> None:
    words = ("--policy", "static", "--density", 0.5, "--set", "calibration=calibration.npz", "--save-cache", "hot.npz")
    assert hwsim(*REPLAY, *words).returncode == 0
    with np.load(here / "hot.npz", allow_pickle=False) as archive:
        for layer in range(2):
            hot = archive[f"layers/{layer:03d}/neurons"]
            mean = arrays("calibration.npz")[f"layers/{layer:03d}/glu/mean"]
            assert 0 < hot.sum() <= 20
            assert set(np.flatnonzero(hot)) <= set(np.argsort(-mean)[:20])


def test_a_layout(answer: Callable[..., dict[str, Any]], here: Path) -> None:
    then = stored("blocks.json")
    found = answer(*REPLAY, "--policy", "dip", "--block", 4, "--layout", "layout.npz")
    assert_same_counts(found, then)
    orders = np.stack([arrays("layout.npz")[f"layers/{layer:03d}/neuron"] for layer in range(2)]).astype(np.int32)
    assert found["provenance"]["settings"]["layout"] == hashlib.sha256(orders.tobytes()).hexdigest()
    assert then["provenance"]["settings"]["layout"] == found["provenance"]["settings"]["layout"]
    plain = answer(*REPLAY, "--policy", "dip", "--block", 4)
    assert plain["unit_requests"] == found["unit_requests"]
    assert plain["unit_hits"] != found["unit_hits"]  # other neighbours are read together


def test_nets(answer: Callable[..., dict[str, Any]], hwsim: Hwsim) -> None:
    told = header("nets.npz")
    words = (*REPLAY, "--policy", "predictor", "--set", "predictor=nets.npz", "--density")
    found = answer(*words, 0.7)
    assert found["unit_requests"] == 40 * 2 * told["k"]
    assert found["mlp_density"] == pytest.approx(told["k"] / 40 + told["share"])
    refused = hwsim(*words, 0.6)
    assert refused.returncode != 0
    assert "density 0.7" in refused.stderr  # what they were trained for


def test_nets_decide(hwsim: Hwsim, here: Path) -> None:
    """They choose the neurons whose logits, by numpy, are the largest: a cache that has room for all holds those."""
    words = ("--policy", "predictor", "--set", "predictor=nets.npz", "--density", 0.7, "--save-cache", "last.npz")
    assert (
        hwsim("replay", "trace.npz", "--hw", "device.yaml", "--dram", "100%", "--eviction", "lru", *words).returncode
        == 0
    )
    members, k = arrays("nets.npz"), header("nets.npz")["k"]
    with library.load(FILES / "trace.npz") as trace, np.load(here / "last.npz", allow_pickle=False) as archive:
        for layer in range(2):
            w1, b1, w2, b2 = (members[f"layers/{layer:03d}/{part}"] for part in ("w1", "b1", "w2", "b2"))
            logits = np.maximum(trace.read(layer, "input", 28) @ w1 + b1, 0) @ w2 + b2
            needed = np.zeros(40, bool)
            for row in logits:
                needed[np.argsort(-row, kind="stable")[:k]] = True
            (name,) = [name for name in archive.files if name.startswith(f"layers/{layer:03d}/")]
            held = archive[name]
            np.testing.assert_array_equal(held, needed)
            assert needed.sum() < 40


def test_guesses(answer: Callable[..., dict[str, Any]]) -> None:
    words = ("--policy", "dip", "--overlap", "prefetch", "--prefetch", "trained", "--set", "prefetch.path=guesses.npz")
    found, then = answer(*REPLAY, *words), stored("prefetch.json")
    assert_same_counts(found, then)
    assert {key: found["prefetch"][key] for key in ("rule", "precision", "recall")} == {
        key: pytest.approx(then["prefetch"][key]) if key != "rule" else "trained"
        for key in ("rule", "precision", "recall")
    }
    assert 0 < then["prefetch"]["recall"] < 1


def test_units(answer: Callable[..., dict[str, Any]], hwsim: Hwsim) -> None:
    cold = stored("result.json")
    sets = [each for name, each in arrays("units.npz").items() if name.startswith("layers/")]
    count = sum(int(each.sum()) for each in sets)
    assert count > 10
    warm = answer(*REPLAY, "--policy", "dip", "--warm", "units.npz")
    pinned = answer(*REPLAY, "--policy", "dip", "--pin", "units.npz")
    for found, key in ((warm, "warm"), (pinned, "pinned")):
        told = found["provenance"]["settings"][key]
        assert (told["name"], told["units"]) == ("units.npz", count)
        assert told["sha256"] == hashlib.sha256((FILES / "units.npz").read_bytes()).hexdigest()
        assert found["unit_requests"] == cold["unit_requests"]
    assert warm["unit_hits"] > cold["unit_hits"]
    assert pinned["unit_hits"] == sum(pinned_hits().values()) != warm["unit_hits"]  # the file fills the caches
    refused = hwsim(*REPLAY, "--policy", "dip", "--warm", "blocks.npz")
    assert refused.returncode != 0
    assert "blocks of 4" in refused.stderr


def pinned_hits() -> dict[tuple[int, str], int]:
    """How often DIP at its default density needs a unit of the file, by numpy."""
    sets, keeps = (
        arrays("units.npz"),
        {(each["layer"], each["group"]): each["requests"] // 40 for each in stored("result.json")["groups"]},
    )
    found = {}
    with library.load(FILES / "trace.npz") as trace:
        for (layer, group), k in keeps.items():
            values = np.abs(trace.read(layer, {"input": "input", "down": "glu"}[group]).reshape(2, 24, -1)[:, 4:])
            needed = np.argsort(-values.reshape(40, -1), axis=1, kind="stable")[:, :k]
            found[layer, group] = int(sets[f"layers/{layer:03d}/{group}"][needed].sum())
    return found


def test_units_of_blocks(answer: Callable[..., dict[str, Any]]) -> None:
    words = ("--policy", "dip", "--block", 4, "--layout", "layout.npz", "--warm", "blocks.npz")
    found, cold = answer(*REPLAY, *words), stored("blocks.json")
    count = sum(int(each.sum()) for name, each in arrays("blocks.npz").items() if name.startswith("layers/"))
    assert found["provenance"]["settings"]["warm"]["units"] == count > 0
    assert found["unit_hits"] > cold["unit_hits"]


def test_densities_of_layers(answer: Callable[..., dict[str, Any]]) -> None:
    found = answer(*REPLAY, "--policy", "dip", "--density", "densities.yaml")
    assert found["provenance"]["policy"]["parameters"]["density"] == [0.75, 0.5]
    asked = [sum(each["requests"] for each in found["groups"] if each["layer"] == layer) for layer in (0, 1)]
    assert asked[0] > asked[1]


def test_shares_of_the_cache(answer: Callable[..., dict[str, Any]]) -> None:
    equal = stored("result.json")
    measured = answer(*REPLAY, "--policy", "dip", "--cache-shares", "result.json")
    assert measured["provenance"]["settings"]["cache_shares"] == "result.json"
    assert_shares(measured, {(each["layer"], each["group"]): each["flash_bytes"] for each in equal["groups"]})
    weighed = answer(*REPLAY, "--policy", "dip", "--cache-shares", "shares.json")
    assert_shares(weighed, {(0, "input"): 300, (0, "down"): 100, (1, "input"): 200, (1, "down"): 0})


def assert_shares(found: dict[str, Any], weights: dict[tuple[int, str], int]) -> None:
    """Bytes are divided by the weights, but for what is cut off to whole units, and for caches that hold all."""
    for each in found["groups"]:
        share = found["cache_bytes"] * weights[each["layer"], each["group"]] / sum(weights.values())
        held = each["capacity_units"] * each["unit_bytes"]
        assert each["capacity_units"] == each["units"] or share - each["unit_bytes"] - 1 <= held
        assert held <= share * 1.5 + each["unit_bytes"]
        assert bool(held) == (share > each["unit_bytes"])


def test_a_profile_that_was_fitted(answer: Callable[..., dict[str, Any]]) -> None:
    found = answer("devices", "fitted.yaml")
    then = yaml.safe_load((FILES / "fitted.yaml").read_text())
    assert found["name"] == "Fitted"
    assert found["dram"]["bandwidth"] == 30e9
    queue = found["flash"]["queue"]
    assert queue["latency"] == pytest.approx(float(then["flash"]["queue"]["latency"].removesuffix(" us")) * 1e-6)
    assert queue["bandwidth"] == pytest.approx(float(then["flash"]["queue"]["bandwidth"].removesuffix(" MB/s")) * 1e6)
    assert queue["exponent"] == then["flash"]["queue"]["exponent"]
    replayed = answer("replay", "trace.npz", "--hw", "fitted.yaml", "--dram", "80%", "--policy", "dip")
    assert_same_counts(replayed, stored("result.json"))


def test_measured_rates(answer: Callable[..., dict[str, Any]]) -> None:
    pytest.importorskip("scipy", reason="fits need the extra `calibrate`")
    found = answer("calibrate-device", "rates.csv", "--like", "device.yaml")
    then = yaml.safe_load((FILES / "fitted.yaml").read_text())["flash"]["queue"]
    assert found["points"] == 6
    assert found["queue"]["command"] == pytest.approx(float(then["command"].removesuffix(" us")) * 1e-6, rel=0.01)
    assert found["queue"]["bandwidth"] == pytest.approx(float(then["bandwidth"].removesuffix(" MB/s")) * 1e6, rel=0.01)


def test_a_profile_with_every_section(answer: Callable[..., dict[str, Any]]) -> None:
    found = answer("devices", "device.yaml")
    assert found == stored("result.json")["provenance"]["device"]
    assert (found["dram"]["engines"]["npu"], found["flash"]["page_size"], found["energy"]["base_power"]) == (
        45e9,
        4096,
        1.2,
    )
    assert found["flash"]["table"]["read"] == {"4096": [40.0, 300.0], "65536": [400.0, 1800.0]}
    assert (found["flash"]["thermal"]["factor"], found["compute"]["overhead"]) == (0.8, pytest.approx(20e-6))


# ---------------------------------------------------------------------- masks


@pytest.mark.parametrize(
    ("masks", "evaluation", "words"),
    [
        ("masks.npz", "evaluation.json", DEVICE),
        ("masks-lora.npz", "evaluation-lora.json", (*ADAPTED, "--lora", "lora")),
    ],
)
def test_masks(masks: str, evaluation: str, words: tuple[object, ...], answer: Callable[..., dict[str, Any]]) -> None:
    found, then = answer("replay", masks, *words), stored(evaluation)
    assert_same_counts(found, then)
    count = sum(int(np.unpackbits(member).sum()) for name, member in arrays(masks).items() if name.startswith("masks/"))
    assert found["unit_requests"] == count
    assert found["provenance"]["policy"]["name"] == "dip"


def test_masks_name_their_adapter(hwsim: Hwsim, here: Path) -> None:
    refused = hwsim("replay", "masks-lora.npz", *ADAPTED)
    assert refused.returncode != 0
    assert "adapter lora" in refused.stderr


# ---------------------------------------------------------------------- results


def numbers(hwsim: Hwsim, here: Path, first: str, second: str) -> dict[str, tuple[Any, Any]]:
    done = hwsim("compare", first, second, "--json", "compared.json")
    assert done.returncode == 0, done.stderr
    data = json.loads((here / "compared.json").read_text())
    return {each["name"]: (each["first"], each["second"]) for each in data["numbers"]}


@pytest.mark.parametrize(
    "name",
    [
        "result.json", "blocks.json", "per-token.json", "closed-form.json", "prefetch.json", "evaluation.json",
        "evaluation-lora.json", "tasks.json", "generated.json", "results.json:1", "results.json:2", "runs.db:1",
        "runs.db:9",
    ],
)  # fmt: skip
def test_results_are_compared(name: str, hwsim: Hwsim, here: Path) -> None:
    file, _, number = name.partition(":")
    if file == "runs.db":
        then = runs_in(FILES / file)[int(number) - 1]
    else:
        data = stored(file)
        then = data["results"][int(number) - 1] if number else data
    base = stored("result.json")
    found = numbers(hwsim, here, "result.json", name)
    for key, of in (
        ("tokens/s", lambda row: row["throughput_tok_s"]),
        ("hit rate", lambda row: row["hit_rate"]),
        ("MLP density", lambda row: row["mlp_density"]),
        ("Flash a token", lambda row: row["flash_bytes"] / row["tokens"]),
        ("energy a token", lambda row: row["energy_j"] / row["tokens"]),
        ("latency p95", lambda row: row["latency_s"]["p95"]),
    ):
        assert found[key] == (pytest.approx(of(base)), pytest.approx(of(then))), key
    if "perplexity" in then:
        assert found["perplexity"] == (None, then["perplexity"])


REPORTED = (
    "result.json", "results.json", "blocks.json", "per-token.json", "closed-form.json", "prefetch.json", "curve.json",
    "evaluation.json", "evaluation-lora.json", "tasks.json", "generated.json", "runs.db",
)  # fmt: skip


def test_results_are_reported(hwsim: Hwsim, here: Path) -> None:
    pytest.importorskip("jinja2", reason="reports need the extra `report`")
    pytest.importorskip("plotly", reason="reports need the extra `report`")
    done = hwsim("report", *REPORTED, "-o", "report.html", "--export", "csv")
    assert done.returncode == 0, done.stderr
    with (here / "report.csv").open() as file:
        lines = list(csv.DictReader(file))
    then = []
    for name in REPORTED:
        data = None if name == "runs.db" else stored(name)
        if data is None:
            then += runs_in(FILES / name)
        elif data["format"] != "hwsim-curve":
            then += data["results"] if data["format"] == "hwsim-results" else [data]
    distinct = {json.dumps(each, sort_keys=True): each for each in then}.values()
    assert sorted(float(line["throughput_tok_s"]) for line in lines) == pytest.approx(
        sorted(each["throughput_tok_s"] for each in distinct)
    )
    costs = [float(line["perplexity"]) for line in lines if line.get("perplexity")]
    assert sorted(costs) == pytest.approx(sorted(each["perplexity"] for each in distinct if "perplexity" in each))
    assert "Fixture phone" in (here / "report.html").read_text()


def test_a_curve_is_drawn_beside_a_result(hwsim: Hwsim, here: Path) -> None:
    pytest.importorskip("jinja2", reason="reports need the extra `report`")
    pytest.importorskip("plotly", reason="reports need the extra `report`")
    pages = []
    for names in (("result.json",), ("result.json", "curve.json")):
        assert hwsim("report", *names, "-o", "page.html").returncode == 0
        pages.append((here / "page.html").read_text())
        (here / "page.html").unlink()
    assert "LRU" not in pages[0]
    assert "LRU" in pages[1]


def test_tokens_of_a_result() -> None:
    """What a report draws of single tokens is what adds up to the whole."""
    then = stored("per-token.json")
    tokens = then["per_token"]
    assert len(tokens) == then["tokens"]
    assert sum(each["hits"] for each in tokens) == then["unit_hits"]
    again = library.replay(FILES / "trace.npz", hw=FILES / "device.yaml", policy="dip", dram="80%", per_token=True)
    for key in ("requests", "hits", "flash_bytes", "dram_bytes"):
        assert [each[key] for each in again.plain()["per_token"]] == [each[key] for each in tokens]


# ---------------------------------------------------------------------- sweeps and studies


def runs_in(path: Path) -> list[dict[str, Any]]:
    """Results of a store in the order of `hwsim runs`."""
    with sqlite3.connect(path) as store:
        order = "model, trace, device, policy, parameters, eviction, budget_bytes, key"
        return [json.loads(row) for (row,) in store.execute(f"SELECT result FROM runs ORDER BY {order}")]


def test_a_store_of_runs(answer: Callable[..., dict[str, Any]], hwsim: Hwsim) -> None:
    then = runs_in(FILES / "runs.db")
    assert len(then) == 9
    assert answer("runs", "runs.db")["results"] == then
    some = answer("runs", "runs.db", "--where", "eviction=lru", "--where", "policy=dip")["results"]
    assert some == [each for each in then if each["provenance"]["eviction"]["name"] == "lru"]
    assert len(some) == 4
    shown = hwsim("runs", "runs.db")
    assert "policy cats: needs a calibration" in shown.stderr  # why a run failed, as the store says


def test_a_description_of_a_sweep_and_its_store_go_on(tiny: Path, hwsim: Hwsim, here: Path) -> None:
    done = hwsim("sweep", "sweep.yaml", "--jobs", 1, "-o", "runs.db", "--json", "swept.json")
    assert done.returncode == 1  # cats is given no calibration
    assert "policy cats: needs a calibration" in done.stderr
    swept = json.loads((here / "swept.json").read_text())["results"]
    assert sorted(each["provenance"]["policy"]["name"] for each in swept) == ["dip"] * 8 + ["dip-ca"]
    assert {str(each["provenance"]["policy"]["parameters"]["density"]) for each in swept} == {"0.5", "[0.75, 0.5]"}
    closed = next(each for each in swept if "perplexity" in each)
    assert closed["provenance"]["policy"]["parameters"]["gamma"] == 0.3
    now = {json.dumps(each, sort_keys=True) for each in runs_in(here / "runs.db")}
    assert {json.dumps(each, sort_keys=True) for each in runs_in(FILES / "runs.db")} <= now


def test_a_store_of_the_same_version_has_little_to_run(as_then: None, hwsim: Hwsim, here: Path) -> None:
    """Runs are found by a key that also names the sources of the plug-ins: where those changed, they are run anew."""
    hwsim("sweep", "sweep.yaml", "--jobs", 1, "-o", "runs.db", "--json", "swept.json")
    swept = json.loads((here / "swept.json").read_text())["results"]
    assert len(swept) == 9
    then = runs_in(FILES / "runs.db")
    sources = {each["provenance"][kind]["sha256"] for each in then for kind in ("policy", "eviction")}
    changed = [
        each for each in swept if {each["provenance"][kind]["sha256"] for kind in ("policy", "eviction")} - sources
    ]
    assert len(runs_in(here / "runs.db")) == 9 + len(changed)


def test_settings_that_were_tuned(answer: Callable[..., dict[str, Any]]) -> None:
    grid = yaml.safe_load((FILES / "tuned.yaml").read_text())
    found = answer("replay", "trace.npz", "--hw", "device.yaml", "--settings", "tuned.yaml")
    told = found["provenance"]
    assert (told["policy"]["name"], told["eviction"]["name"]) == (grid["policy"], grid["eviction"])
    assert told["policy"]["parameters"]["density"] == grid["density"][0]
    for key, value in grid["set"].items():
        assert told["policy"]["parameters"][key] == value[0]
    swept = answer("sweep", "tuned.yaml", "--trace", "trace.npz", "--hw", "device.yaml", "--jobs", 1, "-o", "new.db")
    assert [each["provenance"]["policy"]["parameters"] for each in swept["results"]] == [told["policy"]["parameters"]]


def test_a_study(as_then: None, hwsim: Hwsim, here: Path) -> None:
    """It is known as the one of the same goal; its trials are there, and give the same settings."""
    pytest.importorskip("optuna", reason="tuning needs the extra `tune`")
    (here / "tuned.yaml").unlink()
    words = ("tune", *SHORT, *DEVICE, "--loss", 50, "--study", "study.db", "-o", "tuned.yaml", "--json", "tuned.json")
    done = hwsim(*words, "--trials", 4)
    assert done.returncode == 0, done.stderr
    assert (here / "tuned.yaml").read_text() == (FILES / "tuned.yaml").read_text()
    tuned = json.loads((here / "tuned.json").read_text())
    assert (tuned["trials"], tuned["now"]) == (4, 0)
    with sqlite3.connect(FILES / "study.db") as study:
        query = "SELECT value_json FROM trial_user_attributes WHERE key = 'throughput_tok_s'"
        speeds = [float(value) for (value,) in study.execute(query)]
    assert len(speeds) == 4
    assert tuned["best"]["50"]["throughput_tok_s"] in [pytest.approx(speed) for speed in speeds]
    assert hwsim(*words, "--trials", 5).returncode == 0
    assert json.loads((here / "tuned.json").read_text())["now"] == 1


# ---------------------------------------------------------------------- adapters


def test_an_adapter_in_a_replay(answer: Callable[..., dict[str, Any]]) -> None:
    found = answer("replay", "trace.npz", *ADAPTED, "--policy", "dip", "--lora", "lora")
    told = found["provenance"]["adapter"]
    assert told == stored("evaluation-lora.json")["provenance"]["adapter"]
    assert told["sha256"] == hashlib.sha256((FILES / "lora" / "adapter_model.safetensors").read_bytes()).hexdigest()
    assert (told["rank"], told["parameters"], told["trained"]["tokens"]) == (1, 2 * 3 * (16 + 40), 288)


def test_an_adapter_in_the_closed_loop(tiny: Path, answer: Callable[..., dict[str, Any]]) -> None:
    pytest.importorskip("peft", reason="adapters need the extra `train`")
    words = ("eval", *SHORT, *ADAPTED, "--policy", "dip", "--density", "densities.yaml")
    then, found, without = stored("evaluation-lora.json"), answer(*words, "--lora", "lora"), answer(*words)
    assert found["perplexity"] == pytest.approx(then["perplexity"], rel=1e-4)
    assert found["dense_perplexity"] == pytest.approx(then["dense_perplexity"], rel=1e-4)
    assert found["unit_requests"] == then["unit_requests"]
    assert without["perplexity"] != pytest.approx(then["perplexity"], rel=1e-4)


# ---------------------------------------------------------------------- what was finished, and what was interrupted


def test_a_finished_recording_is_left_alone(as_then: None, hwsim: Hwsim, here: Path) -> None:
    for name, words in (
        ("trace.npz", ("--signals", "input,up,gate,attn_input,attn_output")),
        ("trace-int8.npz", ("--encoding", "int8")),
        ("trace-top.npz", ("--encoding", "top", "--keep-share", 0.75)),
        ("trace-norms.npz", ("--signals", "input,glu", "--norms")),
    ):
        done = hwsim("record", *SHORT, "--prompt", 4, *words, "-o", name)
        assert done.returncode == 0, done.stderr
        assert (here / name).read_bytes() == (FILES / name).read_bytes()


def test_an_interrupted_recording_goes_on(as_then: None, hwsim: Hwsim, here: Path) -> None:
    (here / "unfinished" / "recording").rename(here / "recording.npz.partial")
    (here / "unfinished" / "recording-progress").rename(here / "recording.npz.progress.json")
    marked = np.full(16, 7, np.float16).tobytes()  # what is taken over, and not recorded anew, keeps this
    there = (here / "recording.npz.partial").read_bytes()
    with library.load(FILES / "trace.npz") as plain:
        at = there.index(plain.read(1, "input")[3].astype(np.float16).tobytes())
    (here / "recording.npz.partial").write_bytes(there[:at] + marked + there[at + 32 :])
    done = hwsim("record", *SHORT, "--prompt", 4, "-o", "recording.npz")
    assert done.returncode == 0, done.stderr
    assert not list(here.glob("recording.npz.*"))
    with library.load(here / "recording.npz") as trace, library.load(FILES / "trace.npz") as plain:
        assert (trace.read(1, "input")[3] == 7).all()
        for layer in range(2):
            for signal in ("input", "up", "gate"):
                found, whole = trace.read(layer, signal), plain.read(layer, signal)
                same = np.ones(48, bool)
                same[3] = (layer, signal) != (1, "input")
                np.testing.assert_allclose(found[same], whole[same], rtol=2e-3, atol=1e-4)
        assert trace.perplexity() == pytest.approx(plain.perplexity(), rel=1e-4)


def test_finished_nets_are_left_alone(as_then: None, answer: Callable[..., dict[str, Any]], here: Path) -> None:
    found = answer(*NETS, "-o", "nets.npz")
    assert found["was_complete"] is True
    assert found["recall"] == header("nets.npz")["recall"]
    assert (here / "nets.npz").read_bytes() == (FILES / "nets.npz").read_bytes()


def test_an_interrupted_training_of_nets_goes_on(
    as_then: None, answer: Callable[..., dict[str, Any]], here: Path
) -> None:
    (here / "unfinished" / "nets").rename(here / "new.npz.partial")
    found = answer(*NETS, "-o", "new.npz")
    assert (found["resumed_at"], found["was_complete"]) == (1, False)
    whole = arrays("nets.npz")
    with np.load(here / "new.npz", allow_pickle=False) as archive:
        for name in ("w1", "b1", "w2", "b2"):
            np.testing.assert_array_equal(archive[f"layers/000/{name}"], whole[f"layers/000/{name}"])
            np.testing.assert_allclose(archive[f"layers/001/{name}"], whole[f"layers/001/{name}"], rtol=1e-3, atol=1e-4)
    assert not (here / "new.npz.partial").exists()


def test_a_finished_adapter_is_left_alone(as_then: None, answer: Callable[..., dict[str, Any]], here: Path) -> None:
    pytest.importorskip("peft", reason="adapters need the extra `train`")
    found = answer("train", "lora", *LORA, "-o", "lora")
    assert found["resumed"] == 12  # all steps
    told = stored("lora/hwsim.json")["done"]
    assert {key: found[key] for key in told} == told
    for path in (FILES / "lora").iterdir():
        assert (here / "lora" / path.name).read_bytes() == path.read_bytes()


def test_an_interrupted_training_of_an_adapter_goes_on(
    as_then: None, answer: Callable[..., dict[str, Any]], here: Path
) -> None:
    pytest.importorskip("peft", reason="adapters need the extra `train`")
    (here / "unfinished" / "lora").rename(here / "new.partial")
    found, told = answer("train", "lora", *LORA, "-o", "new"), stored("lora/hwsim.json")["done"]
    assert found["resumed"] == 10
    assert found["curve"][:2] == told["curve"][:2]
    for look, then in zip(found["curve"], told["curve"], strict=True):
        assert look == pytest.approx(then, rel=1e-3)
    assert not (here / "new.partial").exists()


# ---------------------------------------------------------------------- plug-ins that were begun


@pytest.mark.parametrize("name", ["mine", "leaving"])
def test_plugins_that_were_begun(name: str, here: Path, hwsim: Hwsim, monkeypatch: pytest.MonkeyPatch) -> None:
    """They keep the contract, their own tests pass, and they run."""
    folder = here / "plugins"
    for path in folder.glob("*.txt"):
        path.rename(path.with_suffix(".py"))
    done = hwsim("check", folder / f"{name}.py")
    assert done.returncode == 0, done.stdout
    monkeypatch.syspath_prepend(str(folder))
    tests = importlib.import_module(f"test_{name}")
    functions = [value for key, value in vars(tests).items() if key.startswith("test_")]
    assert len(functions) == 2
    for function in functions:
        function()
    option = {
        "mine": ("--policy", folder / "mine.py"),
        "leaving": ("--policy", "dip", "--eviction", folder / "leaving.py"),
    }
    done = hwsim(*REPLAY, *option[name], "--json", "answer.json")
    assert done.returncode == 0, done.stderr
    kind = {"mine": "policy", "leaving": "eviction"}[name]
    told = json.loads((here / "answer.json").read_text())["provenance"][kind]
    assert told["sha256"] == hashlib.sha256((FILES / "plugins" / f"{name}.txt").read_bytes()).hexdigest()


# ---------------------------------------------------------------------- no file runs code


def test_no_file_is_read_as_a_pickle() -> None:
    """A pickle can run code: none is read, by whatever library."""
    forbidden, loads = {"pickle", "cPickle", "cloudpickle", "dill", "shelve", "marshal"}, []
    for path in sorted([*(REPOSITORY / "hwsim").rglob("*.py"), *(REPOSITORY / "policies").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                named = {alias.name for alias in node.names} if isinstance(node, ast.Import) else {node.module or ""}
                assert not forbidden & {name.partition(".")[0] for name in named}, path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "load":
                owner = ast.unparse(node.func.value)
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                wanted = {
                    "np": ("allow_pickle", "False"), "numpy": ("allow_pickle", "False"),
                    "torch": ("weights_only", "True"), "joblib": ("never", ""),
                }.get(owner)  # fmt: skip
                if wanted:
                    assert given.get(wanted[0]) == wanted[1], f"{path}:{node.lineno}"
                    loads.append(owner)
    assert {"np", "torch"} <= set(loads)  # else nothing was looked at


def test_every_file_is_read() -> None:
    """A file that no test names is no net."""
    source = Path(__file__).read_text() + (FILES / "sweep.yaml").read_text()
    names = {path.name for path in FILES.iterdir()} - {"make.py", "__pycache__", ".gitattributes"}
    assert len(names) > 25
    assert not [name for name in names if name not in source]

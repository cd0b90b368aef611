"""Mixtures of experts against transformers itself: what is counted, recorded and stored, and the rule of the router.

The expected values come from hooks of `tests.record.mixtures`, which know from the source of transformers where a model
keeps its experts, and from plain forward passes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("torch", reason="recording needs the extra `record`")
pytest.importorskip("transformers", reason="recording needs the extra `record`")

import torch
from typer.testing import CliRunner

from hwsim.analysis.calibration import calibrate
from hwsim.analysis.coactivation import order_trace
from hwsim.cli.app import app
from hwsim.errors import ModelError, SettingError
from hwsim.model.shape import EXPERT_SIGNALS, ROUTER_AHEAD, Bits, footprint
from hwsim.model.stored import layer_elements, outer_elements
from hwsim.record import Settings, record
from hwsim.record.extras import libraries
from hwsim.record.hooks import Layer, Taps, layers_of
from hwsim.record.inventory import Inventory
from hwsim.record.inventory.routing import Rule, find_rule
from hwsim.record.loading import read_structure
from hwsim.record.sources import find_source
from hwsim.record.stored import find_stored
from hwsim.trace import Encoding, Trace
from hwsim.trace.convert import convert
from hwsim.trace.synth.fit import Fitter
from hwsim.train.predictor import Settings as PredictorSettings
from hwsim.train.predictor import plan
from tests.record.architectures import VOCABULARY
from tests.record.conftest import make_tokenizer
from tests.record.expected import losses_of
from tests.record.mixtures import MIXTURES, make_mixture, routed
from tests.record.models_page import PAGE, mixture_row
from tests.record.test_signals import assert_same

TOKENS = 21
ROUTER = EXPERT_SIGNALS[:-1]


class Made(NamedTuple):
    """A model on disk and in memory, and its inventory."""

    folder: Path
    model: Any
    inventory: Inventory

    @property
    def layers(self) -> list[Layer]:
        return layers_of(self.model, self.inventory)


_PARENT: list[Path] = []


@pytest.fixture(scope="module", autouse=True)
def _parent(tmp_path_factory: pytest.TempPathFactory) -> None:
    _PARENT.append(tmp_path_factory.mktemp("mixtures"))


@lru_cache(maxsize=2)
def made(name: str) -> Made:
    folder = _PARENT[-1] / name
    make_mixture(name).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    structure = read_structure(find_source(str(folder)), libraries())
    model = structure.loader.from_pretrained(folder, dtype=torch.float32).eval()
    return Made(folder, model, structure.inventory)


@pytest.fixture(params=MIXTURES, scope="module")  # so that all tests of one come together
def mixture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def text() -> Any:
    return torch.as_tensor(np.random.default_rng(3).integers(2, VOCABULARY, (1, TOKENS)))


# ---------------------------------------------------------------------- counted


def test_the_experts_are_those_of_the_configuration(mixture: str) -> None:
    expected, shape = MIXTURES[mixture], made(mixture).inventory.shape
    assert shape.layers_with("experts") == list(expected.sparse)
    for number in expected.sparse:
        own = shape.by_layer[number]
        assert own.experts == expected.experts
        assert own.intermediate_size == expected.dense


def test_what_is_counted_is_what_a_token_may_read(mixture: str) -> None:
    """The matrices with a gradient, but tables of which a token reads a row; every other parameter is named."""
    _, model, inventory = made(mixture)
    shape = inventory.shape
    model.requires_grad_(True)
    model(input_ids=text(), use_cache=False).logits.float().square().mean().backward()
    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    tables -= {id(model.get_output_embeddings().weight)}
    read = [
        parameter.numel() for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.ndim > 1 and id(parameter) not in tables
        and not name.endswith("_proj_bias")
    ]  # fmt: skip
    model.zero_grad(set_to_none=True)
    model.requires_grad_(False)
    layers = range(shape.num_hidden_layers)
    counted = shape.all_mlp_parameters + sum(map(shape.attention_parameters, layers))
    assert counted + shape.head_parameters + shape.outside_parameters == sum(read)
    assert sum(read) + sum(inventory.uncounted.values()) == sum(p.numel() for p in model.parameters())
    assert footprint(shape, Bits(mlp=8, attention=8, lm_head=8)).weights == sum(read)


def test_stored_bytes_are_those_of_the_counted_matrices(mixture: str) -> None:
    """A folder in float32: 4 bytes for each weight that is counted; gate and up of one tensor share its bytes."""
    source = find_source(str(made(mixture).folder))
    structure = read_structure(source, libraries())
    shape = structure.shape
    stored, why = find_stored(source, structure, libraries())
    assert not why
    assert stored is not None
    for number, sizes in enumerate(stored.layers):
        assert sizes == {name: 4 * count for name, count in layer_elements(shape, number).items()}
    for name, count in outer_elements(shape).items():
        assert getattr(stored, name) == 4 * count, name
    assert {"expert_up", "expert_down"} <= stored.layers[MIXTURES[mixture].sparse[0]].keys()


def test_the_page_of_models_is_made_of_these(mixture: str) -> None:
    _, model, inventory = made(mixture)
    assert mixture_row(mixture, inventory, model) in PAGE.read_text().splitlines()


# ---------------------------------------------------------------------- recorded


def test_recorded_signals_and_losses_are_the_models_own(mixture: str, tmp_path: Path) -> None:
    """By the files on disk, from the configuration to the trace."""
    folder, model, inventory = made(mixture)
    signals = [*EXPERT_SIGNALS, *(["input"] if inventory.shape.intermediate_size else [])]
    record(tmp_path / "t.npz", str(folder), settings=Settings(TOKENS, TOKENS, signals=tuple(signals)))
    with Trace(tmp_path / "t.npz") as trace:
        ids = trace.tokens()
        assert ids is not None
        nats: list[np.ndarray] = []
        expected = routed(mixture, model, lambda: nats.append(losses_of(model, ids[None])))
        assert {layer for layer, _ in expected} == set(MIXTURES[mixture].sparse)
        for (layer, signal), value in expected.items():
            found = trace.read(layer, signal)
            where = f"layer {layer}, {signal}"
            if signal == "experts":
                assert np.array_equal(found, value.numpy()), where
            elif signal in ("router", "expert_weights"):
                np.testing.assert_allclose(found, value.numpy(), rtol=1e-5, atol=1e-6, err_msg=where)
            else:
                assert_same(found, value.numpy(), where)
        for layer in set(range(trace.model.num_hidden_layers)) - set(MIXTURES[mixture].sparse):
            assert not any(trace.model.signal_width(signal, layer) for signal in EXPERT_SIGNALS)
        nll = trace.nll()
        assert nll is not None
        np.testing.assert_allclose(nll[1:], nats[0], rtol=2e-3, atol=2e-4)
        assert trace.model == inventory.shape
        list(trace.verify())


def test_the_next_router_s_logits_are_its_product_with_the_input_of_the_experts_before(
    mixture: str, tmp_path: Path
) -> None:
    folder, model, inventory = made(mixture)
    follows = [layer for layer in MIXTURES[mixture].sparse if layer - 1 in MIXTURES[mixture].sparse]
    assert inventory.shape.layers_with(ROUTER_AHEAD) == follows
    settings = Settings(TOKENS, TOKENS, signals=(ROUTER_AHEAD,))
    if not follows:
        with pytest.raises(SettingError, match="no two layers with experts follow each other; leave it out"):
            record(tmp_path / "t.npz", str(folder), settings=settings)
        return
    record(tmp_path / "t.npz", str(folder), settings=settings)
    with Trace(tmp_path / "t.npz") as trace:
        ids = trace.tokens()
        assert ids is not None
        seen = routed(mixture, model, lambda: losses_of(model, ids[None]))
        layers = model.get_submodule(MIXTURES[mixture].layers)
        for layer in follows:
            router = dict(layers[layer].get_submodule(MIXTURES[mixture].router).named_parameters())
            (weight,) = [entry for entry in router.values() if entry.ndim == 2 and len(entry) > 1]
            expected = seen[layer - 1, "expert_input"] @ weight.T
            if mixture == "gpt_oss":
                expected = expected + router["bias"]
            found = trace.read(layer, ROUTER_AHEAD)
            np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-4, atol=1e-5, err_msg=str(layer))
            assert not np.allclose(found, seen[layer, "router"].numpy(), atol=1e-3)
        list(trace.verify())


def test_by_default_the_router_and_what_enters(mixture: str, tmp_path: Path) -> None:
    folder, _, inventory = made(mixture)
    record(tmp_path / "t.npz", str(folder), settings=Settings(TOKENS, TOKENS, dtype="bfloat16"))
    with Trace(tmp_path / "t.npz") as trace:
        dense = [] if not inventory.shape.intermediate_size else ["input", "up", "gate"]
        dense = dense if inventory.shape.gated or not dense else ["input", "glu"]
        assert trace.header.signals == [*dense, *ROUTER]
        layer = MIXTURES[mixture].sparse[0]
        weights = trace.read(layer, "expert_weights")
        assert (np.diff(weights, axis=1) <= 0).all()


def test_layer_by_layer_is_in_memory(mixture: str, tmp_path: Path) -> None:
    folder, model, inventory = made(mixture)
    ahead = [ROUTER_AHEAD] if inventory.shape.layers_with(ROUTER_AHEAD) else []
    settings = Settings(TOKENS, 10, signals=(*EXPERT_SIGNALS, *ahead))
    record(tmp_path / "whole.npz", str(folder), settings=settings)
    size = sum(parameter.numel() * 4 for parameter in model.parameters())
    record(tmp_path / "parts.npz", str(folder), settings=replace(settings, max_memory=size - 1))
    with np.load(tmp_path / "whole.npz") as whole, np.load(tmp_path / "parts.npz") as parts:
        assert set(whole) == set(parts)
        for name in set(whole) - {"header"}:  # windows of a pass are cut otherwise
            np.testing.assert_allclose(
                parts[name].astype(np.float32), whole[name].astype(np.float32), rtol=2e-3, atol=2e-3, err_msg=name
            )


def test_an_encoding_is_for_what_enters_the_experts(tmp_path: Path) -> None:
    folder, model, _ = made("qwen3_moe")
    settings = Settings(TOKENS, TOKENS, encoding=Encoding(name="int8"))
    record(tmp_path / "t.npz", str(folder), settings=settings)
    with Trace(tmp_path / "t.npz") as trace:
        ids = trace.tokens()
        assert ids is not None
        expected = routed("qwen3_moe", model, lambda: model(input_ids=torch.as_tensor(ids[None]).long()))
        for layer in range(3):
            value = expected[layer, "expert_input"].numpy()
            limit = np.abs(value).max(axis=1, keepdims=True) / 220  # half a step of 1 / 127, and float16
            assert (np.abs(trace.read(layer, "expert_input") - value) <= limit).all()
            assert np.array_equal(trace.read(layer, "experts"), expected[layer, "experts"].numpy())
    with pytest.raises(SettingError, match="--encoding int8: expert_glu is stored as float16"):
        settings = Settings(TOKENS, TOKENS, signals=("expert_glu",), encoding=Encoding(name="int8"))
        record(tmp_path / "u.npz", str(folder), settings=settings)


def test_norms_are_of_dense_mlps(tmp_path: Path) -> None:
    record(tmp_path / "t.npz", str(made("gemma4_text").folder), settings=Settings(TOKENS, TOKENS, norms=True))
    with Trace(tmp_path / "t.npz") as trace:
        assert trace.norm(0, "norm_down").shape == (88,)
    record(tmp_path / "d.npz", str(made("deepseek_v3").folder), settings=Settings(TOKENS, TOKENS, norms=True))
    with Trace(tmp_path / "d.npz") as trace:
        assert trace.model.layers_with("norm_down") == [0]
        assert trace.norm(0, "norm_input").shape == (32,)
    with pytest.raises(SettingError, match="--norms: all MLPs of qwen3_moe are experts"):
        record(tmp_path / "q.npz", str(made("qwen3_moe").folder), settings=Settings(TOKENS, TOKENS, norms=True))


@pytest.mark.parametrize(
    ("name", "signals", "message"),
    [
        ("qwen3_moe", "input", "has no layer with input: all its MLPs are experts; give router,experts,expert_weights"),
        ("qwen3_moe", "expert", "no such signal; did you mean 'experts'"),
    ],
)
def test_signals_that_a_mixture_lacks(name: str, signals: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=message) as refusal:
        record(tmp_path / "t.npz", str(made(name).folder), settings=Settings(8, 8, signals=(signals,)))
    assert "\n" not in str(refusal.value)


def test_a_dense_model_has_no_router(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="has no layer with router: it is a dense model; leave router out"):
        record(tmp_path / "t.npz", str(checkpoints["llama"]), settings=Settings(8, 8, signals=("router",)))


def test_a_recorded_mixture_is_shown_and_converted(tmp_path: Path) -> None:
    record(tmp_path / "t.npz", str(made("deepseek_v3").folder), settings=Settings(TOKENS, 10, signals=EXPERT_SIGNALS))
    shown = " ".join(trace_info(tmp_path / "t.npz").split())
    assert "experts 2 x 2 of 8, width 16, 1536 weights of shared ones" in shown
    assert "expert_glu" in shown
    with Trace(tmp_path / "t.npz") as source:
        with pytest.raises(SettingError, match="--encoding int8: expert_glu is stored as float16; name the other"):
            convert(source, tmp_path / "no.npz", Encoding(name="int8"))
        convert(source, tmp_path / "c.npz", Encoding(name="int8"), signals=ROUTER)
        convert(source, tmp_path / "f.npz", Encoding(name="float16"))
        with Trace(tmp_path / "c.npz") as target, Trace(tmp_path / "f.npz") as same:
            assert target.header.signals == list(ROUTER)
            for signal in EXPERT_SIGNALS:
                expected = source.read(1, signal)
                assert np.array_equal(same.read(1, signal), expected)
                if signal in ("router", "experts", "expert_weights"):
                    assert np.array_equal(target.read(1, signal), expected)
            assert not np.array_equal(target.read(1, "expert_input"), source.read(1, "expert_input"))
    record(tmp_path / "ids.npz", str(made("deepseek_v3").folder), settings=Settings(TOKENS, 10, signals=("experts",)))
    assert "signals experts; stored as they are" in " ".join(trace_info(tmp_path / "ids.npz").split())


def trace_info(path: Path) -> str:
    done = CliRunner().invoke(app, ["trace", "info", str(path)], prog_name="hwsim")
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("purpose", ["calibration", "fit", "predictor", "order"])
def test_tools_for_dense_mlps_refuse_a_mixture(purpose: str, tmp_path: Path) -> None:
    record(tmp_path / "t.npz", str(made("gemma4_text").folder), settings=Settings(TOKENS, TOKENS))
    with Trace(tmp_path / "t.npz") as trace:
        run: dict[str, Callable[[], object]] = {
            "calibration": lambda: calibrate(trace),
            "fit": lambda: Fitter(trace),
            "predictor": lambda: plan(trace.model, PredictorSettings()),
            "order": lambda: order_trace(trace),
        }
        with pytest.raises(ModelError, match=r"gemma4_text: is a mixture of experts, and .* needs one MLP") as refusal:
            run[purpose]()
    assert "\n" not in str(refusal.value)


# ---------------------------------------------------------------------- the guards


def tapped(layers: list[Layer], model: Any, signals: tuple[str, ...] = ROUTER) -> None:
    taps = Taps(layers, list(signals), lambda *_: None)
    try:
        with torch.no_grad():
            model(input_ids=text())
        taps.check_pass()
    finally:
        taps.remove()


def test_experts_that_compute_something_else_are_noticed() -> None:
    for name, change in (("qwen3_moe", {"method": "", "function": "gelu"}), ("gpt_oss", {"biases": ("", "")}),
                         ("olmoe", {"method": "", "function": "silu", "layout": "up-gate"})):  # fmt: skip
        layers = made(name).layers
        tapped(layers, made(name).model)
        functions = layers[1].experts.functions  # type: ignore[union-attr]
        functions.weights = functions.weights._replace(**change)
        with pytest.raises(ModelError, match="layer 1: the sum of weights x outputs of the chosen experts is not what"):
            tapped(layers, made(name).model)


def test_a_router_that_does_not_run_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    _, model, _ = made("mixtral")
    layers, block = made("mixtral").layers, model.model.layers[2].mlp

    def forward(value: Any) -> Any:
        flat = value.view(-1, value.shape[-1])
        _, weights, ids = block.gate.forward(flat)  # without its hooks
        return block.experts(flat, ids, weights).view(value.shape)

    monkeypatch.setattr(block, "forward", forward)
    with pytest.raises(ModelError, match="layer 2: the model did not compute router there"):
        tapped(layers, model)


def test_a_matrix_that_is_not_the_routers_is_noticed() -> None:
    """q_proj has a result for each of the 32 experts, too."""
    _, model, inventory = made("qwen3_moe-square")
    own = inventory.parts[1].experts
    assert own is not None
    assert not own.alone
    tapped(made("qwen3_moe-square").layers, model)
    wrong = own._replace(router="self_attn.q_proj.weight", router_module="self_attn.q_proj")
    layers = made("qwen3_moe-square").layers
    layers[1] = Layer.of(model.model.layers[1], inventory.parts[1]._replace(experts=wrong))
    with pytest.raises(ModelError, match="layer 1: several matrices have a result for each of the 32 experts, and no"):
        tapped(layers, model)
    tapped(layers, model, ("experts", "expert_weights"))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (
            [[1, 1]],
            "layer 0: the router chose 2 experts from 1 to 1, some of them twice; hwsim knows 2 different ones of 8",
        ),
        ([[1, 2, 3]], "layer 0: the router chose 3 experts from 1 to 3; hwsim knows 2 different ones of 8"),
    ],
)
def test_ids_that_cannot_be_are_noticed(ids: list[list[int]], message: str) -> None:
    _, model, _ = made("qwen3_moe")
    chosen = torch.tensor(ids).expand(TOKENS, -1)
    handle = model.model.layers[0].mlp.experts.register_forward_pre_hook(
        lambda _, args: (args[0], chosen, torch.ones(chosen.shape))
    )
    try:
        with pytest.raises(ModelError, match=message):
            tapped(made("qwen3_moe").layers, model)
    finally:
        handle.remove()


# ---------------------------------------------------------------------- what a closed loop uses


def test_functions_of_one_expert_and_a_choice_of_others(mixture: str) -> None:
    """gate, up, glu and down of one expert make the sum; another choice before the experts is what they compute."""
    _, model, _ = made(mixture)
    layer = MIXTURES[mixture].sparse[-1]
    experts = made(mixture).layers[layer].experts
    assert experts is not None
    own, outputs, calls = experts.functions, [], []
    other = torch.arange(experts.shape.used, dtype=torch.long).expand(TOKENS, -1)
    shares = torch.rand((TOKENS, experts.shape.used), generator=torch.Generator().manual_seed(4))
    handles = [experts.before(lambda value, ids, weights: calls.append((value, ids, weights)) or (value, other, shares)),
               experts.after(outputs.append)]  # fmt: skip
    try:
        with torch.no_grad():
            model(input_ids=text())
    finally:
        for handle in handles:
            handle.remove()
    value, ids, weights = calls[0]
    assert ids.shape == weights.shape == (TOKENS, experts.shape.used)
    with torch.no_grad():
        summed = sum(shares[:, [e]] * own.down(e, own.glu(e, value)) for e in range(experts.shape.used))
        torch.testing.assert_close(outputs[0], summed, rtol=1e-3, atol=1e-3 * float(summed.abs().max()))
        width = experts.shape.intermediate_size
        assert own.up(0, value).shape == own.glu(0, value).shape == (TOKENS, width)
        if experts.shape.gated:
            assert own.gate(0, value).shape == (TOKENS, width)
            assert float(own.glu(0, value)[own.gate(0, value) < -40].abs().sum()) < 1e-3  # a closed gate


def test_the_rule_of_the_router(mixture: str) -> None:
    """Score, division and scale; and, with a correction of the choice, weights of other experts."""
    _, model, _ = made(mixture)
    expected = MIXTURES[mixture]
    layer = expected.sparse[-1]
    experts = made(mixture).layers[layer].experts
    assert experts is not None
    seen = routed(mixture, model, lambda: model(input_ids=text()))
    logits, ids, weights = (seen[layer, name] for name in ("router", "experts", "expert_weights"))
    rule = find_rule(logits, ids, weights, experts.scales())
    if expected.rule is None:
        assert rule is None
        return
    assert rule is not None
    assert (rule.score, rule.divided) == expected.rule
    assert rule.scale == pytest.approx(expected.scale, rel=1e-3)
    assert (rule.scales is not None) == (mixture == "gemma4_text")
    torch.testing.assert_close(rule.weights_of(logits, ids), weights.float(), rtol=1e-3, atol=1e-6)
    assert rule.reproduces(logits, ids, weights)
    assert not rule.reproduces(logits, ids.flip(1), weights * 1.5)


def test_a_rule_is_none_where_several_fit() -> None:
    """Where all experts are chosen, nothing shows whether weights are divided by their sum; equal logits show less."""
    logits = torch.randn((9, 4), generator=torch.Generator().manual_seed(1))
    ids = torch.arange(4).expand(9, -1)
    assert find_rule(logits, ids, logits.softmax(-1)) is None
    two = ids[:, :2]
    assert find_rule(torch.zeros((9, 4)), two, torch.full((9, 2), 0.5)) is None
    assert find_rule(logits, two, logits.softmax(-1)[:, :2]) == Rule("softmax", divided=False)
    assert find_rule(logits, two, logits.softmax(-1)[:, :2].sqrt()) is None

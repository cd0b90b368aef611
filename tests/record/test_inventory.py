"""Models that an inventory must not misread: what was found by trying to mislead it."""

from __future__ import annotations

from types import MethodType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="recording needs the extra `record`")
pytest.importorskip("transformers", reason="recording needs the extra `record`")

import torch

from hwsim.errors import ModelError
from hwsim.record.extras import libraries
from hwsim.record.hooks import Taps, check_plain, layers_of
from hwsim.record.inventory import take_inventory
from hwsim.record.inventory.inventory import check_sum
from hwsim.record.runner import Runner
from tests.record.architectures import make_architecture
from tests.record.conftest import make_model


def inventory_of(model: Any) -> Any:
    return take_inventory(model, "model", torch)


@pytest.mark.parametrize("sizes", [(32, 32), (32, 16), (32, 64), (64, 32), (40, 400)], ids=str)
@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_equal_sizes_confuse_no_roles(family: str, sizes: tuple[int, int]) -> None:
    """Hidden size = neurons, half or twice as many, and = vocabulary: only the trial can tell which matrix is down."""
    hidden, neurons = sizes
    inventory = inventory_of(make_model(family, hidden_size=hidden, intermediate_size=neurons))
    wanted = {"llama": ("up_proj", "gate_proj", "down_proj"), "phi3": ("gate_up_proj", "", "down_proj")}[family]
    for part in inventory.parts:
        assert part.mlp.known
        assert tuple(name.rpartition(".")[2] for name in (part.mlp.up, part.mlp.gate, part.mlp.down)) == wanted


def patched(forward: Any) -> Any:
    model = make_model("llama")
    for layer in model.model.layers:
        layer.mlp.forward = MethodType(forward, layer.mlp)
    return model


def twice(self: Any, x: Any) -> Any:
    def once(x: Any) -> Any:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))

    return once(x) + once(x)


def in_chunks(self: Any, x: Any) -> Any:
    def once(x: Any) -> Any:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))

    return torch.cat([once(part) for part in x.split(3, dim=1)], dim=1)


@pytest.mark.parametrize("forward", [twice, in_chunks])
def test_an_mlp_that_runs_more_than_once_is_refused(forward: Any) -> None:
    with pytest.raises(ModelError, match=r"layers.0.mlp.gate_proj: .* hwsim knows MLPs that see each token once"):
        inventory_of(patched(forward))


def other_input(self: Any, x: Any) -> Any:
    return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(2 * x))


def other_function(self: Any, x: Any) -> Any:
    return self.down_proj((self.gate_proj(x) + self.up_proj(x)).softmax(-1))


def test_an_mlp_of_one_layer_that_is_not_found_is_no_part_of_its_attention() -> None:
    model = make_model("llama")
    model.model.layers[1].mlp.down_proj = torch.nn.Sequential(torch.nn.Linear(88, 40), torch.nn.Linear(40, 32))
    with pytest.raises(ModelError, match=r"model.layers.1 \(LlamaDecoderLayer\): has no MLP that hwsim knows"):
        inventory_of(model)


def test_counts_that_do_not_add_up_are_refused() -> None:
    model = make_model("llama")
    inventory = inventory_of(model)
    total = sum(parameter.numel() for parameter in model.parameters())
    check_sum(inventory.shape, inventory.uncounted, total, "M")
    smaller = inventory.shape.model_copy(update={"intermediate_size": 87})
    with pytest.raises(ModelError, match=f"M: has {total} parameters, of which hwsim counts .* account for the rest"):
        check_sum(smaller, inventory.uncounted, total, "M")


def test_matrices_that_read_different_inputs_are_refused() -> None:
    with pytest.raises(ModelError, match=r"mlp.down_proj: gate and up of its MLP read different inputs"):
        inventory_of(patched(other_input))


def test_an_mlp_that_the_trial_does_not_explain_is_not_known() -> None:
    inventory = inventory_of(patched(other_function))
    assert not any(part.mlp.known for part in inventory.parts)
    assert "no activation of gate times up" in inventory.parts[0].mlp.why


def test_what_follows_up_in_a_layer_itself_is_seen_in_the_first_pass() -> None:
    model = make_model("opt")
    layers = layers_of(model, inventory_of(model))
    taps = Taps(layers, ["input", "glu"], lambda *_: None)
    with torch.no_grad():
        model(input_ids=torch.arange(8)[None])
    taps.check_pass()
    taps.remove()
    for layer in model.model.decoder.layers:
        layer.activation_fn = torch.nn.Softmax(dim=-1)
    taps = Taps(layers, ["input", "glu"], lambda *_: None)
    with pytest.raises(ModelError, match="layer 0: what enters the down projection is no activation"), torch.no_grad():
        model(input_ids=torch.arange(8)[None])
    taps.remove()
    check_plain(0, torch.ones(1, 2, 4), torch.ones(1, 2, 4).relu())


@pytest.mark.parametrize("kind", ["roformer", "rembert", "megatron-bert", "big_bird"])
def test_attention_that_has_the_small_sizes_of_the_trial_is_no_mlp(kind: str) -> None:
    """Heads of 8, as wide as the trial's hidden states."""
    import transformers

    config = transformers.AutoConfig.for_model(
        kind, is_decoder=True, vocab_size=400, hidden_size=32, intermediate_size=88, num_attention_heads=4,
        num_hidden_layers=2, attention_type="original_full",
    )  # fmt: skip
    inventory = inventory_of(transformers.AutoModelForCausalLM.from_config(config).eval())
    assert [part.mlp.up for part in inventory.parts] == ["intermediate.dense"] * 2


def test_taps_that_cannot_be_attached_leave_no_hook() -> None:
    model = patched(other_function)
    with pytest.raises(ModelError, match="no activation of gate times up"):
        Taps(layers_of(model, inventory_of(model)), ["input", "up", "gate"], lambda *_: None)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_a_layer_that_emits_no_signal_is_refused() -> None:
    model = make_model("llama")
    taps = Taps(layers_of(model, inventory_of(model)), ["input", "glu"], lambda *_: None)
    model.model.layers[1].forward = lambda hidden, **_: hidden
    with torch.no_grad():
        model(input_ids=torch.arange(8)[None])
    with pytest.raises(ModelError, match="layer 1: the model did not compute glu there, so a trace would hold zeros"):
        taps.check_pass()
    taps.remove()


def test_a_model_that_sees_what_follows_is_refused() -> None:
    model = make_model("llama")
    runner = Runner(model, libraries())
    runner.check_causal()
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    with pytest.raises(ModelError, match=r"LlamaForCausalLM: the hidden states .* \(bidirectional attention\)"):
        runner.check_causal()
    runner.remove()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_losses_that_are_no_numbers_are_refused(value: float) -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.lm_head.weight[3] = value
    runner = Runner(model, libraries())
    with pytest.raises(ModelError, match="NaN or infinity"):
        runner.losses(np.arange(8)[None])
    runner.remove()


def test_a_vision_tower_of_the_same_depth_is_not_taken_for_the_text_model() -> None:
    for name in ("gemma3", "llava", "smolvlm", "mistral3"):
        inventory = inventory_of(make_architecture(name))
        assert "vision" not in inventory.layers_name
        assert inventory.uncounted["never used by a text"] > 0

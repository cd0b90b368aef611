"""Recorded signals against signals computed by hand from the weights, and recorded losses against transformers'."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwsim.record import Settings, record
from hwsim.trace import Trace
from tests.record.conftest import FAMILIES, layers_in, make_model, save

TOKENS, CONTEXT = 70, 32  # two whole windows and one of 6


def by_hand(model: Any, ids: np.ndarray) -> list[dict[str, np.ndarray]]:
    """Signals of every layer of one window: the residual stream is carried along by hand, the MLP is three products."""
    import torch
    from torch.nn.functional import linear

    inner = model.model.decoder if model.config.model_type == "opt" else model.model
    length = len(ids)
    found = []
    with torch.no_grad():
        tokens = torch.as_tensor(ids)[None].long()
        positions = torch.arange(length)[None]
        hidden = inner.embed_tokens(tokens)
        distance = positions[0][:, None] - positions[0][None, :]
        hide = (distance < 0) | (distance >= (getattr(model.config, "sliding_window", None) or length))
        mask = torch.zeros(1, 1, length, length).masked_fill(hide, -torch.inf)
        options: dict[str, Any] = {"attention_mask": mask}
        if model.config.model_type == "opt":
            hidden = hidden + inner.embed_positions(torch.ones_like(tokens))
        else:
            options["position_embeddings"] = inner.rotary_emb(hidden, positions)
        for layer in inner.layers:
            before, after = (
                (layer.self_attn_layer_norm, layer.final_layer_norm)
                if model.config.model_type == "opt"
                else (layer.input_layernorm, layer.post_attention_layernorm)
            )
            signals = {"attn_input": before(hidden)}
            heads: list[Any] = []
            out = getattr(layer.self_attn, "o_proj", None) or layer.self_attn.out_proj
            handle = out.register_forward_pre_hook(lambda _, args, heads=heads: heads.append(args[0]))
            hidden = hidden + layer.self_attn(signals["attn_input"], **options)[0]
            handle.remove()
            signals["attn_output"] = heads[0]
            x = signals["input"] = after(hidden)
            if model.config.model_type == "opt":
                signals["glu"] = torch.relu(linear(x, layer.fc1.weight, layer.fc1.bias))
                hidden = hidden + linear(signals["glu"], layer.fc2.weight, layer.fc2.bias)
            else:
                if model.config.model_type == "phi3":
                    half = layer.mlp.gate_up_proj.weight.shape[0] // 2
                    w_gate, w_up = layer.mlp.gate_up_proj.weight[:half], layer.mlp.gate_up_proj.weight[half:]
                else:
                    w_gate, w_up = layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight
                gate = linear(x, w_gate)
                if model.config.model_type == "gemma":
                    gate = torch.nn.functional.gelu(gate, approximate="tanh")
                else:
                    gate = gate * torch.sigmoid(gate)
                signals["gate"], signals["up"] = gate, linear(x, w_up)
                signals["glu"] = signals["gate"] * signals["up"]
                hidden = hidden + linear(signals["glu"], layer.mlp.down_proj.weight)
            found.append({name: value[0].numpy() for name, value in signals.items()})
    return found


def assert_same(recorded: np.ndarray, expected: np.ndarray, what: str) -> None:
    """Equal after rounding to float16; float32 sums in another order may fall on the other side of a half."""
    ours, theirs = recorded.astype(np.float16), expected.astype(np.float16)
    scale = float(np.abs(expected).max())
    off = np.abs(ours.astype(np.float32) - theirs.astype(np.float32))
    assert np.all(off <= np.spacing(np.abs(theirs)).astype(np.float32) + 1e-5 * scale), f"{what}: off by {off.max()}"
    assert (ours == theirs).mean() > 0.97, f"{what}: only {(ours == theirs).mean():.1%} are equal"


@pytest.mark.parametrize("family", FAMILIES)
def test_signals_are_those_of_the_modules(family: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    signals = ("input", "glu") if family == "opt" else ("input", "up", "gate", "glu")
    signals = (*signals, "attn_input", "attn_output")
    record(tmp_path / "t.npz", str(checkpoints[family]), settings=Settings(TOKENS, CONTEXT, signals=signals))
    model = make_model(family)
    with Trace(tmp_path / "t.npz") as trace:
        assert trace.header.model.gated == (family != "opt")
        ids = trace.tokens()
        assert ids is not None
        for start in range(0, TOKENS, CONTEXT):
            stop = min(start + CONTEXT, TOKENS)
            for layer, expected in enumerate(by_hand(model, ids[start:stop])):
                for signal in signals:
                    assert_same(trace.read(layer, signal, start, stop), expected[signal], f"{family} {layer} {signal}")


@pytest.mark.parametrize("family", [*FAMILIES, "gemma2"])
def test_losses_are_those_of_transformers(family: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    import torch

    folder = checkpoints.get(family) or save(make_model(family), tmp_path / family)
    record(tmp_path / "t.npz", str(folder), settings=Settings(TOKENS, CONTEXT))
    model = make_model(family)
    with Trace(tmp_path / "t.npz") as trace:
        ids, nll = trace.tokens(), trace.nll()
    assert ids is not None
    assert nll is not None
    for start in range(0, TOKENS, CONTEXT):
        window = torch.as_tensor(ids[start : start + CONTEXT])[None].long()
        with torch.no_grad():
            loss = float(model(input_ids=window, labels=window).loss)
        recorded = nll[start : start + CONTEXT]
        assert np.isnan(recorded[0])
        assert np.exp(recorded[1:].mean(dtype=np.float64)) == pytest.approx(np.exp(loss), rel=1e-5)


def test_smollm2(smollm2: Path, tmp_path: Path) -> None:
    """The real model, from the short name: its signals, its losses, its tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    from hwsim.record.extras import no_bars

    record(tmp_path / "t.npz", "smollm2-135m", settings=Settings(48, 48))
    with no_bars():
        model = AutoModelForCausalLM.from_pretrained(smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32)
    with Trace(tmp_path / "t.npz") as trace:
        shape, ids, nll = trace.model, trace.tokens(), trace.nll()
        assert ids is not None
        assert nll is not None
        assert (shape.name, shape.num_hidden_layers, shape.hidden_size) == ("smollm2-135m", 30, 576)
        assert (shape.intermediate_size, shape.vocab_size, shape.num_key_value_heads) == (1536, 49152, 3)
        assert shape.gated
        assert shape.tie_word_embeddings
        for layer, expected in enumerate(by_hand(model, ids)):
            for signal in ("input", "up", "gate"):
                assert_same(trace.read(layer, signal), expected[signal], f"layer {layer} {signal}")
        window = torch.as_tensor(ids)[None].long()
        with torch.no_grad():
            loss = float(model(input_ids=window, labels=window).loss)
        assert trace.perplexity() == pytest.approx(np.exp(loss), rel=1e-5)
        assert trace.header.provenance["text"]["name"] == "persuasion.txt"


def test_smollm2_splits_numbers_into_digits(smollm2: Path) -> None:
    """As the model was trained; transformers' reader of GGUF files forgets it."""
    from hwsim.record.extras import libraries
    from hwsim.record.loading import load_tokenizer
    from hwsim.record.sources import find_source

    tokenizer = load_tokenizer(find_source("smollm2-135m"), libraries())
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("a  12 b")["input_ids"])
    assert pieces == ["a", "ĠĠ", "1", "2", "Ġb"]  # byte level alone gives one space to the digits
    assert tokenizer.decode(tokenizer("Sir Walter's 17th")["input_ids"]) == "Sir Walter's 17th"


def test_a_model_that_computes_something_else_is_refused(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    """Gate and up swapped in the fused matrix: shapes agree, the product of activation and up does not."""
    import torch

    from hwsim.errors import ModelError
    from hwsim.record.hooks import Taps

    model = make_model("phi3")
    layers = layers_in(model)
    assert {layer.mlp.fused for layer in layers} == {"gate-up"}
    swapped = [replace(layer, mlp=layer.mlp._replace(fused="up-gate")) for layer in layers]

    def forward() -> None:
        with torch.inference_mode():
            model(torch.arange(8)[None])

    taps = Taps(swapped, ["up", "gate"], lambda *_: None)
    with pytest.raises(ModelError, match="layer 0: activated gate times up is not what enters the down projection"):
        forward()
    taps.remove()
    forward()

"""Metadata and tensors of GGUF files: each is applied, says what is so anyway, or is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwsim.errors import ModelError
from hwsim.model.stored import layer_elements
from hwsim.record.extras import libraries
from hwsim.record.gguf_config import complete_config
from hwsim.record.gguf_file import check_tensors, read_gguf
from hwsim.record.loading import load_model, read_structure
from hwsim.record.sources import find_source
from hwsim.record.stored import find_stored

gguf = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PARTS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
SMALL: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}


def tiny(family: str, **changes: Any) -> Any:
    """A random model; rotary embeddings matter to it."""
    torch.manual_seed(3)
    config = transformers.AutoConfig.for_model(family, **SMALL | changes)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(0, 0.3)
    return model.eval()


def write(path: Path, model: Any, arch: str, keys: dict[str, Any] | None = None, **tensors: Any) -> Path:
    """Write a model as llama.cpp's converter does; keys with a dot in front are the architecture's, None leaves out."""
    config = model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    fields: dict[str, Any] = {
        ".context_length": config.max_position_embeddings,
        ".embedding_length": config.hidden_size,
        ".block_count": config.num_hidden_layers,
        ".feed_forward_length": config.intermediate_size,
        ".attention.head_count": config.num_attention_heads,
        ".attention.head_count_kv": config.num_key_value_heads,
        ".attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        ".rope.dimension_count": head,
        ".rope.freq_base": 10000.0,
        ".vocab_size": config.vocab_size,
        "tokenizer.ggml.padding_token_id": 0,
    } | (keys or {})
    writer = gguf.GGUFWriter(str(path), arch)
    for key, value in fields.items():
        name = arch + key if key.startswith(".") else key
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif value is not None:
            writer.add_uint32(name, value)
    for name, tensor in model.state_dict().items():
        base, kind = name.rsplit(".", 1)
        values = tensor.numpy()
        if base in WHOLE:
            writer.add_tensor(f"{WHOLE[base]}.{kind}", values)
            continue
        _, _, layer, base = base.split(".", 3)
        heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}
        if arch == "llama" and base in heads:
            halves = values.reshape(heads[base], 2, -1, values.shape[1])
            values = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))
        writer.add_tensor(f"blk.{layer}.{PARTS[base]}.{kind}", values)
    for name, values in tensors.items():
        writer.add_tensor(name.replace("__", "."), np.asarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits(path: Path) -> Any:
    used, source = libraries(), find_source(str(path))
    structure = read_structure(source, used)
    with torch.no_grad():
        return load_model(source, structure, used, "cpu", "float32", None).model(IDS).logits


IDS = torch.arange(60)[None]
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
PARTIAL = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
LONG = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.5] * 4, "long_factor": [2.0, 3.0] * 4,
    "original_max_position_embeddings": 32, "attention_factor": 1.25,
}  # fmt: skip


def frequencies() -> Any:
    """What Llama 3's scaling divides the frequencies by, as llama.cpp's converter writes it."""
    plain = 10000.0 ** -(torch.arange(0, 16, 2) / 16)
    model = tiny("llama", rope_parameters=LLAMA3)
    return plain / model.model.rotary_emb.inv_freq


@pytest.mark.parametrize(
    ("family", "changes", "keys", "tensors"),
    [
        ("llama", {}, {}, {}),
        ("llama", {"tie_word_embeddings": True}, {}, {}),
        ("llama", {"rope_parameters": LLAMA3}, {}, {"rope_freqs__weight": frequencies}),
        ("llama", {"rope_parameters": LINEAR}, {".rope.scaling.type": "linear", ".rope.scaling.factor": 4.0}, {}),
        ("llama", {"rope_parameters": LINEAR}, {".rope.scale_linear": 4.0}, {}),
        (
            "qwen2",
            {"rope_parameters": YARN},
            {
                ".rope.scaling.type": "yarn",
                ".rope.scaling.factor": 4.0,
                ".rope.scaling.original_context_length": 32,
                ".rope.scaling.finetuned": True,
            },
            {},
        ),
        ("qwen3", {"head_dim": 24}, {".attention.key_length": 24, ".attention.value_length": 24}, {}),
        ("phi3", {"sliding_window": 8}, {".attention.sliding_window": 8}, {}),
        ("phi3", {"rope_parameters": PARTIAL}, {".rope.dimension_count": 8}, {}),
        (
            "phi3",
            {"rope_parameters": LONG},
            {".rope.scaling.original_context_length": 32, ".rope.scaling.attn_factor": 1.25},
            {
                "rope_factors_short__weight": lambda: LONG["short_factor"],
                "rope_factors_long__weight": lambda: LONG["long_factor"],
            },
        ),
    ],
)
def test_what_a_file_says_is_computed(
    family: str, changes: dict[str, Any], keys: dict[str, Any], tensors: dict[str, Any], tmp_path: Path
) -> None:
    """The logits are those of the model that was written."""
    model = tiny(family, **changes)
    if changes.get("tie_word_embeddings"):  # llama.cpp writes the matrix once
        model.lm_head = torch.nn.Identity()
        write(tmp_path / "m.gguf", model, family)
        model.lm_head = torch.nn.Linear(32, 100, bias=False)
        model.lm_head.weight = model.model.embed_tokens.weight
    else:
        made = {name: make() for name, make in tensors.items()}
        write(tmp_path / "m.gguf", model, family, keys, **made)
    with torch.no_grad():
        torch.testing.assert_close(logits(tmp_path / "m.gguf"), model(IDS).logits, rtol=1e-4, atol=1e-4)


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
EXPERT_PARTS = {
    "mlp.gate": "ffn_gate_inp", "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    **{f"mlp.shared_expert.{part}_proj": f"ffn_{part}_shexp" for part in ("gate", "up", "down")},
}  # fmt: skip


def write_experts(path: Path, family: str, **changes: Any) -> Any:
    """Write a mixture of experts as llama.cpp's converter does: gate, up and down stacked by experts."""
    model = tiny(family, **EXPERTS, **changes)
    plain, stacks = model.state_dict(), {}
    for name in [name for name in plain if ".experts." in name]:
        start, values = f"blk__{name.split('.')[2]}__ffn", plain.pop(name)
        if name.endswith("down_proj"):
            stacks[f"{start}_down_exps__weight"] = values
        else:
            gate, up = values.chunk(2, dim=1)
            stacks |= {f"{start}_gate_exps__weight": gate, f"{start}_up_exps__weight": up}
    plain = {k: v[0] if "shared_expert_gate" in k else v for k, v in plain.items()}
    keys = {".expert_count": 4, ".expert_used_count": 2, ".expert_feed_forward_length": 32}
    if family == "qwen2_moe":
        keys |= {".expert_shared_feed_forward_length": 64}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "state_dict", lambda: plain)
        patch.setattr(sys.modules[__name__], "PARTS", PARTS | EXPERT_PARTS)
        write(path, model, family.replace("_", ""), keys, **stacks)
    return model


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("qwen3_moe", {"norm_topk_prob": True, "head_dim": 16}),
        ("qwen2_moe", {"shared_expert_intermediate_size": 64}),
    ],
)
def test_experts_of_a_file(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """Logits are those of the model that was written; bytes of gate and up lie in tensors of their own."""
    model = write_experts(tmp_path / "m.gguf", family, **changes)
    with torch.no_grad():
        torch.testing.assert_close(logits(tmp_path / "m.gguf"), model(IDS).logits, rtol=1e-4, atol=1e-4)
    source, used = find_source(str(tmp_path / "m.gguf")), libraries()
    structure = read_structure(source, used)
    stored, why = find_stored(source, structure, used)
    assert not why
    assert stored is not None
    for number, sizes in enumerate(stored.layers):
        assert sizes == {name: 4 * count for name, count in layer_elements(structure.shape, number).items()}
    assert stored.layers[0]["expert_gate"] == 4 * 4 * 32 * 32


def test_a_tensor_without_a_place_beside_experts(tmp_path: Path) -> None:
    write_experts(tmp_path / "m.gguf", "qwen3_moe", head_dim=16)
    model = tiny("qwen3_moe", **EXPERTS, head_dim=16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "state_dict", dict)
        path = write(tmp_path / "odd.gguf", model, "qwen3moe", blk__0__ffn_gate_inp__bias=np.zeros(4))
    with pytest.raises(ModelError, match=r"holds blk\.0\.ffn_gate_inp\.bias, which transformers has no place for"):
        check_tensors("m", path, model)


def test_experts_of_other_architectures_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", tiny("llama"), "llama", {".expert_count": 8, ".expert_used_count": 2})
    with pytest.raises(
        ModelError, match=r"llama.expert_count is 8, and hwsim reads experts from GGUF files of qwen2moe"
    ):
        read_structure(find_source(str(path)), libraries())


ANY = "transformers cannot apply it"


@pytest.mark.parametrize(
    ("keys", "tensors", "message"),
    [
        ({".logit_scale": 0.25}, {}, f"llama.logit_scale is 0.25, and {ANY}; give a folder of safetensors"),
        ({".attention.key_length": 16, ".rope.dimension_count": 8}, {}, ANY),
        ({".attention.value_length": 8}, {}, f"attention.value_length is 8, and {ANY}, which would be 16"),
        ({".attention.sliding_window": 16}, {}, f"attention.sliding_window is 16, and {ANY}"),
        ({".attention.causal": False}, {}, "attention.causal is False"),
        ({".residual_scale": 0.5}, {}, "residual_scale is 0.5"),
        ({".embedding_scale": 12.0}, {}, "embedding_scale is 12"),
        ({".attention.scale": 0.1}, {}, "attention.scale is 0.1"),
        ({".final_logit_softcapping": 30.0}, {}, "final_logit_softcapping is 30"),
        ({".expert_count": 8}, {}, "expert_count is 8"),
        ({".some.news": "x"}, {}, "llama.some.news is x"),
        ({"other.news": 1}, {}, "other.news is a key that hwsim does not know"),
        ({".rope.scaling.type": "swirl", ".rope.scaling.factor": 2.0}, {}, "rope.scaling.type is swirl"),
        ({".rope.scaling.attn_factor": 1.25}, {}, "rope.scaling.attn_factor is 1.25"),
        ({".rope.scaling.type": "yarn", ".rope.scaling.factor": 2.0}, {}, "rope.scaling.type is yarn"),
        ({"general.type": "adapter"}, {}, "general.type is adapter"),
        ({"split.count": 2}, {}, "is one of 2 parts"),
        ({}, {"blk__0__attn_q__bias": [1.0] * 32}, "holds blk.0.attn_q.bias, which transformers has no place for"),
        ({}, {"rope_freqs__weight": [1.0] * 5}, "rope.scaling.type is none"),
        ({}, {"blk__0__ffn_gate_inp__weight": [[1.0] * 32], "novel__weight": [1.0]}, "and 1 more"),
    ],
)
def test_what_cannot_be_computed_is_refused(
    keys: dict[str, Any], tensors: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "m.gguf", tiny("llama"), "llama", keys, **tensors)
    with pytest.raises(ModelError) as caught:
        logits(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith("--model m")
    assert "\n" not in str(caught.value)


def test_keys_that_change_nothing(tmp_path: Path) -> None:
    keys = {
        ".expert_count": 0, ".logit_scale": 1.0, ".attention.causal": True, ".pooling_type": 0,
        ".rope.scaling.type": "none", ".attention.key_length": 16, ".tensor_data_layout": "Meta AI original pth",
        "general.description": "any", "quantize.imatrix.file": "any", "tokenizer.ggml.pre": "any",
    }  # fmt: skip
    model = tiny("llama")
    with torch.no_grad():
        torch.testing.assert_close(logits(write(tmp_path / "m.gguf", model, "llama", keys)), model(IDS).logits)


@pytest.mark.parametrize(
    ("layers", "scalar"),
    [(26, 64), (62, 16)],  # llama.cpp: head_dim, but hidden / heads in the model of 27 billion
)
def test_gemma_3(layers: int, scalar: int, tmp_path: Path) -> None:
    """The window, its pattern, the two rotary bases, the global scaling and the attention's scale."""
    config = transformers.Gemma3TextConfig(
        vocab_size=20, hidden_size=32, intermediate_size=8, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=1, head_dim=64,
    )  # fmt: skip
    with torch.device("meta"):
        empty = transformers.AutoModelForCausalLM.from_config(config)
    empty.state_dict = dict  # type: ignore[method-assign]  # metadata alone
    keys = {
        ".attention.key_length": 64, ".attention.value_length": 64, ".attention.sliding_window": 40,
        ".rope.freq_base": 2e6, ".rope.freq_base_swa": 5e3, ".attention.sliding_window_pattern": [True, False] * (layers // 2),
        ".rope.scaling.type": "linear", ".rope.scaling.factor": 8.0, ".rope.dimension_count": None,
        ".final_logit_softcapping": 20.0,
    }  # fmt: skip
    path = write(tmp_path / "m.gguf", empty, "gemma3", keys)
    made = transformers.AutoConfig.from_pretrained(tmp_path, gguf_file=path.name)
    complete_config(path, made)
    assert made.query_pre_attn_scalar == scalar
    assert made.sliding_window == 40
    assert made.layer_types == ["sliding_attention", "full_attention"] * (layers // 2)
    assert made.rope_parameters["full_attention"] == {"rope_type": "linear", "rope_theta": 2e6, "factor": 8.0}
    assert made.rope_parameters["sliding_attention"] == {"rope_type": "default", "rope_theta": 5e3}
    assert made.final_logit_softcapping == 20


def test_the_real_file_needs_no_mending(smollm2: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    before = config.to_dict()
    complete_config(smollm2, config)
    assert config.to_dict() == before
    assert read_gguf(smollm2).architecture == "llama"


def test_a_truncated_file_is_told_as_such(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.gguf", tiny("llama"), "llama")
    read_structure(find_source(str(whole)), libraries())
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(
        ModelError, match=r"--model cut: cut.gguf has \d+ bytes, its tensors end at byte \d+; it is trunc"
    ):
        read_structure(find_source(str(cut)), libraries())

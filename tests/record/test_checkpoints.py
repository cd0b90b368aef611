"""Whatever in a checkpoint changes what the model computes is applied or refused, in memory and layer by layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hwsim.errors import ModelError
from hwsim.record.checkpoint import check_places, place, read_tensors
from hwsim.record.extras import libraries
from hwsim.record.layerwise import load_layerwise
from hwsim.record.loading import load_model, read_structure
from hwsim.record.sources import find_source, weights_hash
from tests.record.conftest import FAMILIES, make_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
st = pytest.importorskip("safetensors.torch")

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
LAYERWISE = 165_000  # bytes that hold one layer of the small models, not all
BASE: dict[str, Any] = {
    "vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
GPT = {
    "vocab_size": 100,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
VISION = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
OTHERS: dict[str, dict[str, Any]] = {
    "llama": BASE | {"rope_parameters": LLAMA3},  # computed rotary frequencies
    "gemma2": BASE | {"head_dim": 16},  # a scale of the embedding in a buffer
    "gemma3_text": BASE | {"head_dim": 16, "sliding_window": 8},  # two rotary embeddings
    "gemma3": {"text_config": BASE | {"head_dim": 16}, "vision_config": VISION, "mm_tokens_per_image": 4},  # renamed
    "qwen3_5": {"text_config": BASE | {"head_dim": 8}, "vision_config": {"depth": 1, "hidden_size": 16}},  # text inside
    "gpt2": GPT,  # causal mask in a buffer
    "gpt_neo": {"vocab_size": 100, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 8,
                "max_position_embeddings": 64, "attention_types": [[["global", "local"], 1]]},
    "gptj": GPT | {"rotary_dim": 4},
    "bloom": {"vocab_size": 100, "hidden_size": 32, "n_layer": 2, "n_head": 4},  # ALiBi
    "granite": BASE | {"embedding_multiplier": 3.0},
}  # fmt: skip


def loaded(folder: Path, max_memory: int | None = None) -> Any:
    used, source = libraries(), find_source(str(folder))
    return load_model(source, read_structure(source, used), used, "cpu", "float32", max_memory).model


def weights_of(model: Any, layers_name: str) -> dict[str, Any]:
    """All parameters and buffers during a forward pass."""
    kept = {}

    def keep(module: Any, start: str) -> None:
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            kept[f"{start}.{name}"] = tensor.detach().clone()

    for index, layer in enumerate(model.get_submodule(layers_name)):
        layer.register_forward_pre_hook(lambda module, _, index=index: keep(module, f"{layers_name}.{index}"))
    with torch.no_grad():
        kept["logits"] = model.eval()(torch.arange(40)[None], use_cache=False).logits
    rest = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    return {name: tensor for name, tensor in rest if name not in kept} | kept


def assert_same_both_ways(folder: Path, dtype: Any) -> None:
    """Tensor by tensor, buffers too, and in what is computed."""
    auto = transformers.AutoModelForCausalLM
    whole = auto.from_pretrained(folder, dtype=dtype)
    with torch.device("meta"):
        empty = auto.from_config(transformers.AutoConfig.from_pretrained(folder), dtype=dtype)
    count = empty.config.get_text_config().num_hidden_layers
    names = [n for n, m in empty.named_modules() if type(m).__name__ == "ModuleList" and len(m) == count]
    tensors = read_tensors(find_source(str(folder)), torch)
    placed = place("m", empty, tensors)
    check_places("m", empty, tensors, placed)
    layered = load_layerwise("m", empty, tensors, placed, names[0], dtype=dtype, device="cpu")
    ours, theirs = weights_of(layered, names[0]), weights_of(whole, names[0])
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("family", FAMILIES)
def test_layer_by_layer_has_the_weights_of_memory(family: str, checkpoints: dict[str, Path]) -> None:
    assert_same_both_ways(checkpoints[family], torch.float32)


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("kind", OTHERS)
def test_other_models_have_the_weights_of_memory(kind: str, bare: bool, tmp_path: Path) -> None:
    """Renamed tensors, bare models, buffers that no file holds, a text model inside another; in half precision."""
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(kind, **OTHERS[kind])
    full = transformers.Qwen3_5ForConditionalGeneration if kind == "qwen3_5" else None
    model = full(config) if full else transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    if bare and not getattr(model.config.get_text_config(), "tie_word_embeddings", False):
        pytest.skip("a bare model has no output matrix unless it is the embedding")
    (model.base_model if bare else model).save_pretrained(tmp_path)
    config.save_pretrained(tmp_path)
    assert_same_both_ways(tmp_path, torch.bfloat16)


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    return {name: tensor.contiguous() for name, tensor in make_model("llama").state_dict().items()}


@pytest.fixture
def folder(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    """A folder with a configuration and without weights."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_bytes((checkpoints["llama"] / "config.json").read_bytes())
    return tmp_path / "m"


def write(path: Path, tensors: dict[str, Any]) -> None:
    st.save_file(tensors, path, {"format": "pt"})


def shards(folder: Path, state: dict[str, Any], count: int) -> dict[str, str]:
    """Save in `count` shards with an index."""
    keys = list(state)
    where = {key: f"model-{1 + i * count // len(keys):05}-of-{count:05}.safetensors" for i, key in enumerate(keys)}
    for file in set(where.values()):
        write(folder / file, {key: state[key] for key in keys if where[key] == file})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return where


def configure(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refused(folder: Path, *, memory: bool = True) -> str:
    """The one line of the refusal, the same in memory and layer by layer."""
    said = set()
    for limit in (None, LAYERWISE) if memory else (LAYERWISE,):
        with pytest.raises(ModelError) as caught:
            loaded(folder, limit)
        assert "\n" not in str(caught.value)
        said.add(str(caught.value))
    assert len(said) == 1, said
    return said.pop()


def embedding(folder: Path) -> Any:
    """The embedding, the same in memory and layer by layer, and a weight of the last layer."""
    whole, layered = loaded(folder), loaded(folder, LAYERWISE)
    seen = weights_of(layered, "model.layers")
    for name, parameter in whole.named_parameters():
        assert torch.equal(seen[name], parameter), name
    return seen["model.embed_tokens.weight"]


def other(state: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor + 1 for name, tensor in state.items()}


@pytest.mark.parametrize("kind", ["old shards", "a consolidated copy", "an adapter's file", "a variant", "old pieces"])
def test_files_beside_the_weights_are_not_read(kind: str, folder: Path, state: dict[str, Any]) -> None:
    alone = folder.parent / "alone"
    if kind in ("a consolidated copy", "old pieces"):
        if kind == "old pieces":
            shards(folder, other(state), 3)
        else:
            write(folder / "zz-consolidated.safetensors", other(state))
        where = shards(folder, state, 2)
        names = sorted(set(where.values()))
    else:
        write(folder / SINGLE, state)
        names = [SINGLE]
        if kind == "old shards":
            where = shards(folder, other(state), 2)
            (folder / INDEX).unlink()
        elif kind == "a variant":
            write(folder / "model.fp16.safetensors", other(state))
        else:
            write(folder / "adapter_model.safetensors", {"lora_A.weight": torch.zeros(2, 2)})
    assert torch.equal(embedding(folder), state["model.embed_tokens.weight"])
    alone.mkdir()
    for name in [*names, "config.json", *([INDEX] if len(names) > 1 else [])]:
        (alone / name).write_bytes((folder / name).read_bytes())
    assert [path.name for path in find_source(str(folder)).weights] == names
    assert weights_hash(find_source(str(folder))) == weights_hash(find_source(str(alone)))


def test_shards_without_an_index(folder: Path, state: dict[str, Any]) -> None:
    shards(folder, state, 2)
    (folder / INDEX).unlink()
    with pytest.raises(ModelError, match=r"has no weights.*does not read model-00001-of-00002.safetensors without"):
        find_source(str(folder))


def test_a_shard_is_missing(folder: Path, state: dict[str, Any]) -> None:
    where = shards(folder, state, 2)
    (folder / max(where.values())).unlink()
    with pytest.raises(ModelError, match=r"names model-00002-of-00002.safetensors, which is missing"):
        find_source(str(folder))


@pytest.mark.parametrize("text", ["{", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../b"}}', "[]"])
def test_a_damaged_index(text: str, folder: Path) -> None:
    (folder / INDEX).write_text(text)
    with pytest.raises(ModelError, match=f"{INDEX} is damaged"):
        find_source(str(folder))


def test_a_tensor_in_two_shards(folder: Path, state: dict[str, Any]) -> None:
    """The index decides; transformers would take the last file's, so another choice of the index is refused."""
    where = shards(folder, state, 2)
    first, last = min(where.values()), max(where.values())
    name = "model.embed_tokens.weight"
    write(folder / last, {key: state[key] for key in where if where[key] == last} | {name: state[name] + 1})
    assert f"says that {first} holds {name}, but {last} holds it, too" in refused(folder)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where | {name: last}}))
    assert torch.equal(embedding(folder), state[name] + 1)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where | {name: last, "model.novel": last}}))
    assert f"says that {last} holds model.novel; it does not" in refused(folder)


def test_a_configuration_that_names_other_weights(folder: Path, state: dict[str, Any]) -> None:
    write(folder / SINGLE, state)
    write(folder / "other.safetensors", other(state))
    configure(folder, transformers_weights="other.safetensors")
    assert "config.json: transformers_weights other.safetensors: hwsim reads model.safetensors" in refused(folder)


def test_a_folder_with_an_adapter(folder: Path, state: dict[str, Any]) -> None:
    """transformers adds it if peft is there."""
    write(folder / SINGLE, state)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="holds an adapter"):
        find_source(str(folder))


def test_biases_that_the_configuration_leaves_out(folder: Path, state: dict[str, Any]) -> None:
    bias = {f"model.layers.{layer}.self_attn.q_proj.bias": torch.ones(32) for layer in range(3)}
    write(folder / SINGLE, state | bias)
    assert "its weights hold model.layers.0.self_attn.q_proj.bias and 2 more" in refused(folder)


def test_tensors_that_change_nothing(folder: Path, state: dict[str, Any]) -> None:
    """Frequencies that old transformers stored, and parts that a text does not pass through."""
    more = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "model.vision_tower.patch.weight": torch.ones(4),
        "model.layers.0.self_attn.masked_bias": torch.ones(1),
    }
    write(folder / SINGLE, state | more)
    assert torch.equal(embedding(folder), state["model.embed_tokens.weight"])


@pytest.mark.parametrize("kind", ["int8", "float8_e4m3fn"])
def test_numbers_without_their_scale(kind: str, folder: Path, state: dict[str, Any]) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    write(folder / SINGLE, state | {name: (state[name] * 9).to(getattr(torch, kind))})
    assert f"{name} has the type" in refused(folder)
    scaled = state | {name: (state[name] * 9).to(getattr(torch, kind)), f"{name}_scale_inv": torch.ones(1, 1)}
    write(folder / SINGLE, scaled)
    assert "config.json names no quantization_config" in refused(folder)


@pytest.mark.parametrize(
    "method", ["gptq", "awq", "bitsandbytes", "compressed-tensors", "modelopt", "mxfp4", "torchao", "novel"]
)
def test_quantisations_that_stay_packed(method: str, folder: Path, state: dict[str, Any]) -> None:
    write(folder / SINGLE, state)
    configure(folder, quantization_config={"quant_method": method, "bits": 4, "load_in_8bit": method == "bitsandbytes"})
    assert f"quantization_config.quant_method {method}: hwsim computes with plain weights" in refused(folder)


def test_fp8_is_dequantised(folder: Path, state: dict[str, Any]) -> None:
    """Scales of blocks, as DeepSeek and Qwen store them: here each for 8 rows and columns."""
    stored, plain = {}, {}
    for name, tensor in state.items():
        stored[name] = plain[name] = tensor
        if "_proj.weight" in name:
            rows, columns = tensor.shape
            blocks = tensor.reshape(rows // 8, 8, columns // 8, 8)
            scale = blocks.abs().amax(dim=(1, 3), keepdim=True) / 448
            stored[name] = (blocks / scale).to(torch.float8_e4m3fn).reshape(rows, columns)
            stored[f"{name}_scale_inv"] = scale[:, 0, :, 0].contiguous()
            plain[name] = (stored[name].reshape(blocks.shape).float() * scale).reshape(rows, columns)
    write(folder / SINGLE, stored)
    way = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [8, 8]}
    configure(folder, quantization_config=way)
    for name, parameter in loaded(folder).named_parameters():
        torch.testing.assert_close(parameter, plain[name], rtol=1e-2, atol=1e-6, msg=name)
    assert "quant_method fp8: it cannot be dequantised layer by layer" in refused(folder, memory=False)
    write(folder / SINGLE, {name: t for name, t in stored.items() if "up_proj.weight_scale" not in name})
    with pytest.raises(ModelError, match=r"no model.layers.0.mlp.up_proj.weight_scale_inv is there to scale it"):
        loaded(folder)


def test_a_tied_matrix_with_values_of_its_own(folder: Path, state: dict[str, Any]) -> None:
    configure(folder, tie_word_embeddings=True)
    name = "model.embed_tokens.weight"
    write(folder / SINGLE, state | {"lm_head.weight": state[name].clone()})
    assert torch.equal(embedding(folder), state[name])
    changed = state[name].clone()
    changed[-1, -1] += 1
    write(folder / SINGLE, state | {"lm_head.weight": changed})
    assert "lm_head.weight, which differs from model.embed_tokens.weight" in refused(folder)
    write(folder / SINGLE, {key: tensor for key, tensor in state.items() if key != name})  # the copy alone
    assert torch.equal(embedding(folder), state["lm_head.weight"])


def test_a_tensor_of_another_shape(folder: Path, state: dict[str, Any]) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    write(folder / SINGLE, state | {name: torch.ones(80, 32)})
    assert f"{name} is [80, 32], config.json makes it [88, 32]" in refused(folder)


def test_weights_in_torchs_format(folder: Path, state: dict[str, Any]) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    torch.save(state, folder / "pytorch_model.bin")
    for key, parameter in loaded(folder).named_parameters():
        assert torch.equal(parameter, state[key])
    with pytest.raises(ModelError, match=r"its weights are .bin files"):
        loaded(folder, LAYERWISE)
    torch.save(state | {name: state[name].to(torch.int8)}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"up_proj.weight has the type int8"):
        loaded(folder)


def test_experts_are_converted_layer_by_layer(tmp_path: Path) -> None:
    """As hubs have them: a tensor for each expert, which transformers stacks."""
    make_model("mixtral").save_pretrained(tmp_path)
    assert_same_both_ways(tmp_path, torch.float32)
    assert_same_both_ways(tmp_path, torch.bfloat16)

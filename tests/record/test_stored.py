"""Bytes of the matrices in a model's files: by hand from names, types and shapes; and what a recording makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwsim.errors import SettingError
from hwsim.model.shape import Bits, footprint
from hwsim.model.stored import bits_of, layer_elements
from hwsim.record import Settings as TextSettings
from hwsim.record import record
from hwsim.record.checkpoint import quantisation
from hwsim.record.extras import libraries, no_bars
from hwsim.record.loading import read_structure
from hwsim.record.sources import find_source
from hwsim.record.stored import Found, find_stored
from hwsim.trace import Trace
from tests.cli.run import run
from tests.record.conftest import make_model, save
from tests.record.test_gguf_files import PARTS, WHOLE, tiny

gguf = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")

# of the family llama in tests.record.conftest
ELEMENTS = {"q": 32 * 32, "k": 16 * 32, "v": 16 * 32, "o": 32 * 32} | dict.fromkeys(("gate", "up", "down"), 32 * 88)
HEAD = 400 * 32


def found(path: Path) -> Found:
    source, used = find_source(str(path)), libraries()
    return find_stored(source, read_structure(source, used), used)


def kept(model: Any, folder: Path, kind: Any, **options: Any) -> Path:
    """The model's folder, stored as a type of torch."""
    return save(model.to(kind), folder, **options)


@pytest.mark.parametrize(("kind", "size"), [(torch.float32, 4), (torch.bfloat16, 2), (torch.float16, 2)])
def test_a_folder_of_floats(tmp_path: Path, kind: Any, size: int) -> None:
    stored, why = found(kept(make_model("llama"), tmp_path / "m", kind))
    assert not why and stored is not None
    assert stored.layers == ({name: size * count for name, count in ELEMENTS.items()},) * 3
    assert (stored.lm_head, stored.outside, stored.embedding_row) == (size * HEAD, 0, 0)


def test_shards(tmp_path: Path) -> None:
    whole, parts = kept(make_model("llama"), tmp_path / "m", torch.float32), tmp_path / "s"
    save(make_model("llama"), parts, max_shard_size="40KB")
    assert len(list(parts.glob("*.safetensors"))) > 2
    assert found(parts) == found(whole)


def test_a_file_of_torch(tmp_path: Path) -> None:
    folder = kept(make_model("llama"), tmp_path / "m", torch.bfloat16)
    torch.save(make_model("llama").to(torch.bfloat16).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    stored, _ = found(folder)
    assert stored is not None and stored.layers[2] == {name: 2 * count for name, count in ELEMENTS.items()}


def test_types_may_differ_within_a_file(tmp_path: Path) -> None:
    model = make_model("llama").to(torch.bfloat16)
    model.model.layers[1].mlp.down_proj.float()
    model.lm_head.float()
    stored, _ = found(save(model, tmp_path / "m"))
    assert stored is not None
    assert [layer["down"] // ELEMENTS["down"] for layer in stored.layers] == [2, 4, 2]
    assert stored.lm_head == 4 * HEAD


@pytest.mark.parametrize("family", ["qwen2", "phi3", "opt", "gemma"])
def test_ties_and_fused_matrices(checkpoints: dict[str, Path], family: str) -> None:
    """Families that tie the LM head to the embedding or fuse matrices: 4 bytes for each counted weight."""
    source, used = find_source(str(checkpoints[family])), libraries()
    structure = read_structure(source, used)
    stored, why = find_stored(source, structure, used)
    assert not why and stored is not None
    for number, layer in enumerate(stored.layers):
        assert layer == {name: 4 * count for name, count in layer_elements(structure.shape, number).items()}
    assert stored.lm_head == 4 * structure.shape.head_parameters
    assert stored.outside == 4 * structure.shape.outside_parameters


def test_fp8_with_its_scales(tmp_path: Path) -> None:
    """A byte for each weight and 4 for each block of 16 x 16 weights; the LM head stays in bfloat16."""
    from safetensors.torch import load_file, save_file

    folder = kept(make_model("llama"), tmp_path / "m", torch.bfloat16)
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        tensors[name] = tensor
        if "proj" in name:
            tensors[name] = tensor.to(torch.float8_e4m3fn)
            tensors[f"{name}_scale_inv"] = torch.ones([-(-size // 16) for size in tensor.shape])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    (folder / "config.json").write_text(json.dumps(config))
    stored, why = found(folder)
    assert not why and stored is not None
    blocks = {"q": 2 * 2, "k": 1 * 2, "v": 1 * 2, "o": 2 * 2} | dict.fromkeys(("gate", "up", "down"), 6 * 2)
    assert stored.layers == ({name: ELEMENTS[name] + 4 * blocks[name] for name in ELEMENTS},) * 3
    assert stored.lm_head == 2 * HEAD
    source = find_source(str(folder))
    assert quantisation(read_structure(source, libraries()).config) == "fp8"


def test_a_tensor_that_nothing_is_known_of(tmp_path: Path) -> None:
    """No guess: the bytes are unknown, the reason is one line, and --bits stored is refused with it."""
    from safetensors.torch import load_file, save_file

    folder = kept(make_model("llama"), tmp_path / "m", torch.float32)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({key: value for key, value in tensors.items() if "2.mlp.up" not in key}, path)
    assert found(folder) == (None, "hwsim does not find which tensor holds model.layers.2.mlp.up_proj.weight")
    save_file(tensors | {"model.layers.0.mlp.up_proj.weight": torch.ones((88, 32), dtype=torch.int8)}, path)
    assert found(folder) == (None, "model.safetensors: model.layers.0.mlp.up_proj.weight has the type I8")
    save_file(tensors | {"model.layers.0.mlp.up_proj.weight": torch.ones((44, 32))}, path)
    stored, why = found(folder)
    assert stored is None and why.startswith("model.layers.0.mlp.up_proj.weight has 2816 weights, its tensor ")
    path.write_bytes(b"no weights")
    stored, why = found(folder)
    assert stored is None and why


# ---------------------------------------------------------------------- GGUF

MIXED = {  # types by the tensor's name in the file; the rest is F32. Q4_0 has 18 bytes for 32 weights, Q8_0 34
    "token_embd": "Q8_0", "attn_q": "Q4_0", "attn_k": "Q4_0", "attn_v": "Q8_0", "ffn_gate": "Q4_0", "ffn_up": "Q5_0",
    "output": "Q8_0",
}  # fmt: skip
BLOCK = {"Q4_0": 18, "Q8_0": 34, "Q5_0": 22, "F32": 128}


def mixed(path: Path, model: Any) -> Path:
    """A llama as GGUF with a type for each kind of matrix."""
    config = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    for name, tensor in model.state_dict().items():
        base, kind = name.rsplit(".", 1)
        if base in WHOLE:
            base = WHOLE[base]
        else:
            _, _, layer, base = base.split(".", 3)
            base = f"blk.{layer}.{PARTS[base]}"
        if base == "output" and config.tie_word_embeddings:
            continue
        values = np.ascontiguousarray(tensor.float().numpy())
        as_type = MIXED.get(base.rpartition(".")[2])
        if as_type is None:
            writer.add_tensor(f"{base}.{kind}", values)
        else:
            number = getattr(gguf.GGMLQuantizationType, as_type)
            packed = gguf.quants.quantize(values, number)
            writer.add_tensor(f"{base}.{kind}", packed, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("tied", [False, True])
def test_a_gguf_with_mixed_types(tmp_path: Path, tied: bool) -> None:
    """Of tests.record.test_gguf_files: hidden size 32, so that a row is one block; 64 neurons, 2 heads of 16, 1 KV head."""
    stored, why = found(mixed(tmp_path / "m.gguf", tiny("llama", tie_word_embeddings=tied)))
    assert not why and stored is not None
    expected = {
        "q": 32 * 18,
        "k": 16 * 18,
        "v": 16 * 34,
        "o": 32 * 128,
        "gate": 64 * 18,
        "up": 64 * 22,
        "down": 64 * 128,
    }
    assert stored.layers == (expected, expected)
    assert stored.lm_head == 100 * 34
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    left_out = 0 if tied else 100 * 34  # the embedding, of which a token reads a row
    assert stored.weights + left_out == sum(int(t.n_bytes) for t in reader.tensors if "norm" not in t.name)


def test_the_real_gguf(smollm2: Path) -> None:
    """SmolLM2-135M: matrices in Q4_1, 20 bytes for 32 weights; the tied embedding in Q8_0; norms in F32."""
    source, used = find_source(str(smollm2)), libraries()
    structure = read_structure(source, used)
    stored, _ = find_stored(source, structure, used)
    assert stored is not None
    tensors = gguf.GGUFReader(smollm2).tensors
    assert stored.weights == sum(int(t.n_bytes) for t in tensors if "norm" not in t.name)
    assert {str(t.tensor_type.name) for t in tensors if "norm" in t.name} == {"F32"}
    assert stored.mean_bits(structure.shape) == {"attention": 5, "mlp": 5, "lm_head": 8.5}
    formats = Bits(mlp="q4_1", attention="q4_1", lm_head="q8_0")  # type: ignore[arg-type]
    exact = bits_of(Bits(stored=True), structure.shape, stored)
    assert footprint(structure.shape, exact) == footprint(structure.shape, formats)


# ---------------------------------------------------------------------- commands


def test_a_recording_an_evaluation_and_a_generation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a checkpoint in bfloat16 --bits stored is --bits mlp=16,attention=16,lm_head=16, to the byte."""
    monkeypatch.chdir(tmp_path)
    kept(make_model("llama"), Path("m"), torch.bfloat16)
    run("record", "--model", "m", "--tokens", "24", "--context", "12", "-o", "t.npz")
    with Trace("t.npz") as trace:
        assert trace.header.stored == found(Path("m")).stored
    shown = " ".join(run("trace", "info", "t.npz")[0].split())
    assert "stored 94.7 kB, 16 bits a weight (attention 16, mlp 16, lm_head 16)" in shown
    text = ("--tokens", "24", "--context", "12")
    hardware = ("--hw", "pixel8", "--dram", "60%", "--json", "-")
    commands = (
        ("replay", "t.npz", "--policy", "dip", *hardware),
        ("eval", "--model", "m", "--policy", "dip", *text, *hardware),
        ("generate", "--model", "m", "--prompt", "Why", "--policy", "dip", "--tokens", "4", *hardware),
    )
    for words in commands:
        results = [json.loads(run(*words, "--bits", bits)[0]) for bits in ("stored", "mlp=16,attention=16,lm_head=16")]
        assert results[0]["provenance"]["settings"]["bits"].pop("stored")
        assert results[0] == results[1]
    run(*commands[1], "--bits", "stored", "--save-masks", "masks.npz")
    masks = json.loads(run("replay", "masks.npz", *hardware, "--bits", "stored")[0])
    assert masks["flash_bytes"] == json.loads(run(*commands[1], "--bits", "stored")[0])["flash_bytes"]


def test_a_model_whose_bytes_are_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recording is made, with the reason; --bits stored is refused with it, before the model runs."""
    import hwsim.record.prepare
    from hwsim.closed_loop import evaluate
    from hwsim.closed_loop.evaluation import Candidate
    from hwsim.evictions.lru import Lru
    from hwsim.simulation.plugins import POLICIES
    from hwsim.simulation.run import Conditions, Source
    from hwsim.simulation.settings import Settings
    from tests.conftest import flat_profile

    monkeypatch.setattr(hwsim.record.prepare, "find_stored", lambda *_: Found(None, "odd tensors"))
    with no_bars():
        folder = save(make_model("llama"), tmp_path / "m")
    record(tmp_path / "t.npz", str(folder), settings=TextSettings(tokens=12, context=12))
    conditions = Conditions(flat_profile(), Lru(), Settings(bits="stored", dram="60%"))
    policy = POLICIES.make("dip")[1]
    with Trace(tmp_path / "t.npz") as trace:
        assert trace.header.stored is None and trace.header.provenance["stored_unknown"] == "odd tensors"
        with pytest.raises(SettingError, match=r"^--bits stored: t\.npz: .* unknown: odd tensors; give numbers"):
            conditions.run(Source.of_trace(trace), policy)
    with pytest.raises(SettingError, match=r"^--bits stored: persuasion\.txt: .* unknown: odd tensors; give numbers"):
        evaluate(str(folder), "persuasion", conditions, [Candidate("dip", policy)], TextSettings(tokens=12, context=12))


def test_a_trace_of_an_earlier_version_is_complete(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """It is left alone, and an interrupted one goes on; --overwrite makes it anew, with stored bytes."""
    path, words = tmp_path / "t.npz", TextSettings(tokens=12, context=12)
    record(path, str(checkpoints["llama"]), settings=words)
    with np.load(path) as archive:
        members = {name: archive[name] for name in archive.files}
    header = json.loads(str(members["header"]))
    assert header.pop("stored")
    np.savez(path, **members | {"header": np.array(json.dumps(header))})
    assert record(path, str(checkpoints["llama"]), settings=words).resumed == 12
    with Trace(path) as trace:
        assert trace.header.stored is None
    assert record(path, str(checkpoints["llama"]), settings=words, overwrite=True).resumed == 0
    with Trace(path) as trace:
        assert trace.header.stored is not None

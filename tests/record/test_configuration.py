"""`hwsim synth` for a model that only its configuration is known of: the shape is counted, anything else refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hwsim.memory.kv_cache import KVCache
from hwsim.model.shape import Bits
from hwsim.record.configuration import find_configuration, shape_of_configuration
from hwsim.trace import Trace
from tests.cli.run import here, refused, run

__all__ = ["here"]

GEMMA3: dict[str, Any] = {
    "model_type": "gemma3_text", "vocab_size": 400, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 7,
    "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 32, "sliding_window": 8,
}  # fmt: skip
LLAMA: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
WINDOWS = [8, 8, 8, 8, 8, None, 8]


def write(path: str, fields: object) -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(fields), encoding="utf-8")
    return Path(path)


def synth(model: object, *more: object) -> list[object]:
    return ["synth", "--model", model, "--tokens", 30, *more]


@pytest.mark.usefixtures("here")
def test_a_gemma_3_with_windows_is_drawn_and_replayed() -> None:
    write("gemma3-tiny/config.json", GEMMA3)
    run(*synth("gemma3-tiny"))
    with Trace("gemma3-tiny-synthetic.npz") as trace:
        model = trace.model
        assert (model.name, trace.header.origin, trace.header.tokens) == ("gemma3-tiny", "synthetic", 30)
    assert [layer.window for layer in model.layers] == WINDOWS
    assert [layer.attention for layer in model.layers] == ["full" if size is None else "window" for size in WINDOWS]
    assert model == shape_of_configuration(find_configuration("gemma3-tiny"))
    assert (model.head_dim, model.hidden_act, model.tie_word_embeddings) == (32, "gelu_pytorch_tanh", True)
    # six layers hold 8 entries and one all 30; each has a key and a value of 32 numbers, 8 bits each
    assert KVCache.of(model, Bits()).reserved(30) == (6 * 8 + 30) * 2 * 32
    out, _ = run(
        "replay", "gemma3-tiny-synthetic.npz", "--hw", "flat.yaml", "--policy", "dip", "--dram", "70%", "--json", "-"
    )
    assert json.loads(out)["kv_cache_bytes"] == (6 * 8 + 30) * 2 * 32


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("given", "file", "origin", "name"),
    [
        ("a/model", "a/model/config.json", "other/name", "model"),
        ("a/model/", "a/model/config.json", None, "model"),
        ("a/model/config.json", "a/model/config.json", "other/name", "model"),
        (".", "config.json", None, None),
        ("tiny.json", "tiny.json", "owner/its-name", "its-name"),
        ("tiny.json", "tiny.json", "/home/me/its-name/", "its-name"),
        ("tiny.json", "tiny.json", "C:\\me\\its-name", "its-name"),
        ("tiny.json", "tiny.json", "..", "tiny"),
        ("tiny.json", "tiny.json", 7, "tiny"),
        ("tiny.json", "tiny.json", None, "tiny"),
        ("tiny", "tiny", None, "tiny"),
    ],
)
def test_the_name_of_the_model(given: str, file: str, origin: object, name: str | None) -> None:
    write(file, LLAMA if origin is None else LLAMA | {"_name_or_path": origin})
    assert shape_of_configuration(find_configuration(given)).name == (name or Path.cwd().name)
    run(*synth(given, "--signals", "input"))
    assert Path(f"{name or Path.cwd().name}-synthetic.npz").is_file()


@pytest.mark.usefixtures("here")
def test_a_short_name_comes_before_a_folder() -> None:
    write("smollm2-135m/config.json", LLAMA)
    run(*synth("smollm2-135m", "--signals", "input", "-o", "short.npz"))
    run(*synth("./smollm2-135m", "--signals", "input", "-o", "folder.npz"))
    with Trace("short.npz") as short, Trace("folder.npz") as folder:
        assert (short.model.hidden_size, folder.model.hidden_size) == (576, 32)
        assert folder.model.name == "smollm2-135m"


@pytest.mark.usefixtures("here")
def test_glu_is_drawn_where_it_is_not_the_product_of_up_and_gate() -> None:
    """BitNet has a norm before its down projection."""
    write("bit/config.json", LLAMA | {"model_type": "bitnet", "hidden_act": "relu2"})
    run(*synth("bit"))
    with Trace("bit-synthetic.npz") as trace:
        assert trace.model.inner_norm
        assert {"input", "glu"} <= set(trace.header.signals)
        assert not {"up", "gate"} & set(trace.header.signals)


WAY = "; give a config.json, or a folder that holds one"
KIND = "; give the config.json of a model, or its folder"


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("given", "content", "line"),
    [
        ("none.json", None, "--model none.json: no such file or folder" + WAY),
        ("Qwen/Qwen2.5-0.5B", None, "--model Qwen/Qwen2.5-0.5B: no such file or folder" + WAY),
        ("m.gguf", b"", "--model m.gguf: a GGUF file is no configuration" + WAY),
        ("weights", b"GGUF\3\0\0\0", "--model weights: a GGUF file is no configuration" + WAY),
        ("t.npz", None, "--model t.npz: is no JSON ("),
        ("m.json", b"{", "--model m.json: is no JSON (Expecting property name"),
        ("m.json", b"[" * 100_000, "--model m.json: is no JSON ("),
        ("m.json", b"[]", "--model m.json: has no model_type, the name of an architecture" + KIND),
        ("m.json", b"{}", "--model m.json: has no model_type, the name of an architecture" + KIND),
        ("m.json", b'{"model_type": 3}', "--model m.json: has no model_type, the name of an architecture" + KIND),
        ("m.json", b'{"model_type": "nope"}', "--model m.json: model_type 'nope': transformers "),
        ("m.json", b'{"model_type": "nope", "auto_map": {"AutoConfig": "code.Nope"}}',
         "--model m.json: needs code of its own, code.Nope, and hwsim runs none for a shape"),
        ("m.json", b'{"model_type": "llama", "auto_map": {"AutoModelForCausalLM": "code.MyLlama"}}',
         "--model m.json: needs code of its own, code.MyLlama, and hwsim runs none for a shape"),
        ("m.json", b'{"model_type": "llama", "hidden_size": "x"}', "--model m.json: the configuration cannot be used: "),
        ("nowhere", None, "model 'nowhere' has no known shape"),
    ],
)  # fmt: skip
def test_refusals(given: str, content: bytes | None, line: str) -> None:
    if content is not None:
        Path(given).write_bytes(content)
    assert refused(*synth(given)).startswith(line)


@pytest.mark.usefixtures("here")
def test_a_folder_without_a_configuration_is_refused() -> None:
    Path("empty").mkdir()
    assert refused(*synth("empty")) == "--model empty: the folder has no config.json" + WAY
    assert refused(*synth("nowhere")).endswith("; or give a config.json, or a folder that holds one")


@pytest.mark.usefixtures("here")
def test_a_model_that_the_inventory_refuses_is_refused_with_its_line() -> None:
    write("moe/config.json", LLAMA | {"model_type": "jetmoe", "num_local_experts": 2, "kv_channels": 16})
    assert "JetMoeForCausalLM sorts or masks what enters its experts, so no call shows which" in refused(*synth("moe"))


@pytest.mark.usefixtures("here")
def test_a_mixture_of_experts_has_no_synthetic_trace() -> None:
    write("moe/config.json", LLAMA | {"model_type": "mixtral", "num_local_experts": 2})
    assert refused(*synth("moe")) == (
        "moe: is a mixture of experts, and a synthetic trace needs one MLP in each layer, which every token reads; "
        "choose a dense model"
    )


@pytest.mark.usefixtures("here")
def test_classes_that_transformers_has_need_no_code_of_the_folder() -> None:
    auto_map = {"AutoConfig": "configuration_llama.LlamaConfig", "AutoTokenizer": ["t.Slow", None]}
    write("m/config.json", LLAMA | {"auto_map": auto_map})
    assert shape_of_configuration(find_configuration("m")).hidden_size == 32


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("more", [["-o", "m.json", "--overwrite"], ["--json", "m.json"]])
def test_the_configuration_is_not_overwritten(more: list[str]) -> None:
    before = write("m.json", LLAMA).read_bytes()
    assert refused(*synth("m.json", *more)) == "m.json: cannot be written: the command reads it; choose another name"
    assert Path("m.json").read_bytes() == before


def test_without_the_extra_one_line_says_so(tmp_path: Path) -> None:
    write(str(tmp_path / "m/config.json"), LLAMA)
    script = (
        "import sys; sys.modules['torch'] = None; from hwsim.cli import main; "
        "sys.argv = ['hwsim', 'synth', '--model', 'm', '--tokens', '16']; main()"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "hwsim: the shape of a configuration needs libraries that are not installed, torch; "
        "install them with: pip install 'hwsim[record]'\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["m"]

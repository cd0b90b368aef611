"""Models with code of their own: it never runs unasked, nothing asks on the terminal, and provenance tells it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="recording needs the extra `record`")

import hwsim
from hwsim.closed_loop import evaluate
from hwsim.errors import ModelError
from hwsim.record import Settings, record
from hwsim.record.custom import check_code, code_provenance
from hwsim.record.extras import libraries
from hwsim.record.loading import load_tokenizer
from hwsim.record.sources import find_source
from hwsim.simulation.run import Conditions
from hwsim.simulation.settings import Settings as Options
from hwsim.trace import Trace
from tests.cli.commands import listed
from tests.cli.run import refused, run
from tests.closed_loop.loops import candidate, generate, rule
from tests.conftest import flat_profile

CONFIGURATION = """
from pathlib import Path
from transformers import LlamaConfig
Path(__file__).with_name("ran.txt").write_text("")
class TinyConfig(LlamaConfig):
    model_type = "tiny-of-ours"
"""
MODELING = """
import torch
from transformers import LlamaForCausalLM, LlamaModel
from .configuration_tiny import TinyConfig
from .parts import SCALE
class TinyModel(LlamaModel):
    config_class = TinyConfig
    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("scale", torch.full((1,), SCALE), persistent=False)
    def forward(self, *args, **options):
        out = super().forward(*args, **options)
        out.last_hidden_state = out.last_hidden_state * self.scale
        return out
class TinyForCausalLM(LlamaForCausalLM):
    config_class = TinyConfig
    def __init__(self, config):
        super().__init__(config)
        self.model = TinyModel(config)
        self.post_init()
"""
TOKENIZATION = """
from transformers import PreTrainedTokenizerFast
class TinyTokenizer(PreTrainedTokenizerFast):
    def __call__(self, text, **options):
        return super().__call__(text.upper(), **options)
"""
OF_MODEL = {"AutoConfig": "configuration_tiny.TinyConfig", "AutoModelForCausalLM": "modeling_tiny.TinyForCausalLM"}
OF_TOKENIZER = {"AutoTokenizer": ["tokenization_tiny.TinyTokenizer", None]}


@pytest.fixture(autouse=True)
def own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of modules into which transformers copies the code that it runs."""
    from transformers import dynamic_module_utils

    libraries()
    folder = tmp_path / "modules"
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(folder))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question on the terminal"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        monkeypatch.delitem(sys.modules, name)
    return folder


def change(folder: Path, file: str, **fields: Any) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.fixture
def folder(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    """A model that transformers does not know, which computes as Llama does and halves its last hidden states."""
    folder = tmp_path / "tiny"
    shutil.copytree(checkpoints["llama"], folder)
    for name, code in (("configuration_tiny", CONFIGURATION), ("modeling_tiny", MODELING), ("parts", "SCALE = 0.5\n")):
        (folder / f"{name}.py").write_text(code)
    change(folder, "config.json", auto_map=OF_MODEL, model_type="tiny-of-ours", architectures=["TinyForCausalLM"])
    return folder


def with_tokenizer(folder: Path, **entry: Any) -> Path:
    (folder / "tokenization_tiny.py").write_text(TOKENIZATION)
    change(folder, "tokenizer_config.json", auto_map=OF_TOKENIZER | entry, tokenizer_class="TinyTokenizer")
    return folder


def ran(folder: Path, modules: Path) -> bool:
    return modules.exists() and any(modules.rglob("*tiny*.py"))


def test_code_does_not_run_unasked(folder: Path, own_modules: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        record(tmp_path / "t.npz", str(folder), settings=Settings(16, 16))
    assert str(caught.value) == (
        "--model tiny: folder tiny needs code of its own, configuration_tiny.TinyConfig, and hwsim runs none unasked; "
        "read that code, and give --trust-remote-code to run it"
    )
    assert not ran(folder, own_modules)
    assert not (tmp_path / "t.npz").exists()


def test_trusted_code_is_what_runs(
    folder: Path, own_modules: Path, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    import torch
    import transformers

    record(tmp_path / "own.npz", str(folder), settings=Settings(48, 24, trust_remote_code=True))
    record(tmp_path / "llama.npz", str(checkpoints["llama"]), settings=Settings(48, 24))
    assert ran(folder, own_modules)
    with Trace(tmp_path / "own.npz") as own, Trace(tmp_path / "llama.npz") as llama:
        np.testing.assert_array_equal(own.read(2, "up"), llama.read(2, "up"))
        code = own.header.provenance["custom_code"]
        assert code["classes"] == list(OF_MODEL.values())
        assert "custom_code" not in llama.header.provenance
        ids = torch.as_tensor(own.tokens().astype(int)[None, :24])  # type: ignore[union-attr]
        losses = own.nll()[1:24]  # type: ignore[index]
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoints["llama"], dtype=torch.float32)
    with torch.no_grad():
        logits = model.lm_head(model.model(ids).last_hidden_state * 0.5)[0, :-1]
        wanted = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
    np.testing.assert_allclose(losses, wanted.numpy(), rtol=1e-4)


def test_provenance_follows_every_file_of_the_code(folder: Path) -> None:
    def told() -> Any:
        return code_provenance(find_source(str(folder), trust=True))["custom_code"]["sha256"]

    before = told()
    assert told() == before
    (folder / "parts.py").write_text("SCALE = 0.25\n")
    assert told() != before
    assert code_provenance(find_source(str(folder))) == {}


def test_closed_loops_say_which_code_they_ran(folder: Path) -> None:
    reading = Settings(16, 16, trust_remote_code=True)
    conditions = Conditions(flat_profile(), rule(), Options(dram="60%"))
    result = evaluate(str(folder), "persuasion", conditions, [candidate("dip")], reading)[0]
    written = generate(folder, "Anne", candidate("dip"), 4, Options(dram="60%"), reading=reading).result
    for provenance in (result.provenance["trace"]["provenance"], written.provenance["trace"]):  # type: ignore[union-attr]
        assert provenance["custom_code"]["classes"] == list(OF_MODEL.values())


def test_a_tokenizer_of_its_own(folder: Path, own_modules: Path, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """In the folder of a model that transformers knows: with another tokenizer its tokens would be others."""
    llama, used = tmp_path / "llama", libraries()
    shutil.copytree(checkpoints["llama"], llama)
    plain = load_tokenizer(find_source(str(llama)), used)
    with_tokenizer(llama)
    with pytest.raises(
        ModelError, match=r"needs code of its own, tokenization_tiny.TinyTokenizer, .* --trust-remote-code"
    ):
        record(tmp_path / "t.npz", str(llama), settings=Settings(16, 16))
    assert not ran(llama, own_modules)
    own = load_tokenizer(find_source(str(llama), trust=True), used)
    assert own("Anne")["input_ids"] == plain("ANNE")["input_ids"]
    record(tmp_path / "t.npz", str(llama), settings=Settings(16, 16, trust_remote_code=True))
    with Trace(tmp_path / "t.npz") as trace:
        assert trace.header.provenance["custom_code"]["classes"] == OF_TOKENIZER["AutoTokenizer"][:1]
    record(tmp_path / "both.npz", str(with_tokenizer(folder)), settings=Settings(16, 16, trust_remote_code=True))
    with Trace(tmp_path / "both.npz") as trace:
        assert len(trace.header.provenance["custom_code"]["classes"]) == 3


def test_code_that_transformers_has_itself(checkpoints: dict[str, Path], own_modules: Path, tmp_path: Path) -> None:
    """Many checkpoints bring along the code from before transformers knew their kind; it is not needed."""
    folder = tmp_path / "phi3"
    shutil.copytree(checkpoints["phi3"], folder)
    auto_map = {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
    change(folder, "config.json", auto_map=auto_map)
    record(tmp_path / "own.npz", str(folder), settings=Settings(16, 16))
    record(tmp_path / "plain.npz", str(checkpoints["phi3"]), settings=Settings(16, 16))
    assert not own_modules.exists()
    with Trace(tmp_path / "own.npz") as own, Trace(tmp_path / "plain.npz") as plain:
        np.testing.assert_array_equal(own.nll(), plain.nll())  # type: ignore[arg-type]
        assert "custom_code" not in own.header.provenance


def test_another_class_for_a_kind_that_transformers_knows(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Transformers would take its own in silence."""
    folder = tmp_path / "llama"
    shutil.copytree(checkpoints["llama"], folder)
    change(folder, "config.json", auto_map={"AutoModelForCausalLM": "modeling_mine.MineForCausalLM"})
    with pytest.raises(ModelError, match=r"needs code of its own, modeling_mine.MineForCausalLM"):
        record(tmp_path / "t.npz", str(folder), settings=Settings(16, 16))
    with pytest.raises(ModelError, match=r"^--model llama: its configuration cannot be used: .*modeling_mine"):
        record(tmp_path / "t.npz", str(folder), settings=Settings(16, 16, trust_remote_code=True))


def test_code_of_another_repository(folder: Path, tmp_path: Path) -> None:
    change(folder, "config.json", auto_map=OF_MODEL | {"AutoConfig": "some/other--configuration_tiny.TinyConfig"})
    message = (
        "^--model tiny: auto_map names code of another repository, some/other; copy its files \\*.py into the model's "
        "folder and write configuration_tiny.TinyConfig in auto_map$"
    )
    with pytest.raises(ModelError, match=message):
        record(tmp_path / "t.npz", str(folder), settings=Settings(16, 16, trust_remote_code=True))
    with pytest.raises(ModelError, match="give --trust-remote-code"):
        record(tmp_path / "t.npz", str(folder), settings=Settings(16, 16))


def test_own_code_is_not_loaded_layer_by_layer(folder: Path, tmp_path: Path) -> None:
    settings = Settings(16, 16, max_memory=165_000, trust_remote_code=True)
    with pytest.raises(
        ModelError, match=r"--max-memory gives .*, and a model of its own code cannot be loaded layer by"
    ):
        record(tmp_path / "t.npz", str(folder), settings=settings)


@pytest.mark.parametrize("wrong", ["{", "[]", '{"auto_map": 3}', '{"auto_map": {"AutoTokenizer": 7}}'])
def test_damaged_files_are_left_to_transformers(wrong: str, folder: Path) -> None:
    for name in ("config.json", "tokenizer_config.json"):
        (folder / name).write_text(wrong)
    source = find_source(str(folder))
    if "7" in wrong:
        with pytest.raises(ModelError, match="needs code of its own, 7"):
            check_code(source, libraries().transformers)
    else:
        check_code(source, libraries().transformers)


def test_every_command_with_a_model_has_the_option() -> None:
    commands = {
        name: {option for parameter in command.params for option in parameter.opts} for name, command in listed()
    }
    with_model = {name for name, options in commands.items() if "--model" in options}
    with_model -= {"synth", "plugin check"}  # they take the name of a shape
    assert with_model == {name for name, options in commands.items() if "--trust-remote-code" in options}
    assert {"record", "eval", "generate", "tune", "sweep", "train lora", "fit thresholds"} == with_model


def test_every_command_hands_the_option_on(
    folder: Path, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it the code is refused, in the same words; with it the code runs, and here fails."""
    monkeypatch.chdir(folder.parent)
    (folder / "configuration_tiny.py").write_text("raise RuntimeError('it ran')\n")
    signals = "attn_input,attn_output,input,up,gate,glu"
    run("record", "--model", checkpoints["phi3"], "--tokens", 16, "--context", 16, "--signals", signals, "-o", "t.npz")
    common = ("--model", "tiny", "--hw", "pixel8")
    for words in (
        ("record", "--model", "tiny", "-o", "o.npz"),
        ("eval", *common, "--policy", "dip"),
        ("generate", *common, "--policy", "dip", "--prompt", "Anne"),
        ("tune", *common, "--study", "s.db", "-o", "t.yaml"),
        ("train", "lora", *common, "--policy", "dip", "--text", "persuasion", "-o", "adapter"),
        ("fit", "thresholds", "t.npz", "--model", "tiny", "-o", "c.npz"),
    ):
        needs = "--model tiny: folder tiny needs code of its own, configuration_tiny.TinyConfig, and hwsim runs none"
        assert refused(*words).startswith(needs), words
        assert "RuntimeError: it ran" in refused(*words, "--trust-remote-code"), words
    for more, message in (((), "needs code of its own"), (("--trust-remote-code",), "RuntimeError: it ran")):
        out, err = run("sweep", *common, "--policy", "dip", "-o", "runs.db", "--jobs", 1, *more, code=1)
        assert message in " ".join((out + err).split())
    with pytest.raises(ModelError, match="RuntimeError: it ran"):
        hwsim.closed_loop("tiny", "pixel8", "dip", trust_remote_code=True)

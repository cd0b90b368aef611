"""Small checkpoints whose weights come from numpy's uniform numbers, so that no version of torch changes them.

Layers are narrow, and weights large: scores of units are far apart beside what rounding changes, so masks are the same
on any processor. `tests.system.golden.make` tries that with weights that are changed by a millionth.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

FAMILIES = ("llama", "opt", "phi3")
_FIELDS: dict[str, Any] = {
    "vocab_size": 258, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
_GATED: dict[str, Any] = {"intermediate_size": 48, "num_key_value_heads": 2}


def save(family: str, folder: Path, noise: float = 0.0, seed: int = 0) -> Path:
    """A folder with a model and its tokenizer, one token for each byte.

    Args:
        family: one of `FAMILIES`: with a gate, without one, with gate and up in one matrix.
        folder: where to write it.
        noise: part of each weight that is added or taken off at random at most.
        seed: of the noise.
    """
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    configs = {
        "llama": lambda: transformers.LlamaConfig(**_FIELDS, **_GATED),
        "opt": lambda: transformers.OPTConfig(**_FIELDS, ffn_dim=48, word_embed_proj_dim=16),
        "phi3": lambda: transformers.Phi3Config(**_FIELDS, **_GATED),
    }
    model = transformers.AutoModelForCausalLM.from_config(configs[family](), dtype=torch.float32)
    rng, other = np.random.default_rng(17), np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            values = rng.random(parameter.shape) - 0.5
            if "norm" in name and name.endswith("weight"):
                values = 1 + values
            values *= 1 + noise * (2 * other.random(parameter.shape) - 1)
            parameter.copy_(torch.from_numpy(values.astype(np.float32)))
    bars = transformers.utils.logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    model.save_pretrained(folder)
    if shown:
        bars.enable_progress_bar()
    words = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(
        folder
    )
    return folder


def arithmetic(folder: Path) -> str:
    """A fingerprint of how torch rounds on this machine: of the logits of a checkpoint, without hwsim."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.arange(2, 26)[None]).logits
    return hashlib.sha256(logits.numpy().tobytes()).hexdigest()[:16]

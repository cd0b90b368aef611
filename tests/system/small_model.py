"""A checkpoint of a tiny Llama: the same bytes of weights, and the same tokens, on every machine.

Weights are drawn by numpy as multiples of 1/32, and the tokenizer knows single bytes only, so neither depends on how
torch draws numbers or on how a tokenizer is trained.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np


def save_model(folder: Path) -> Path:
    """Write model and tokenizer as transformers does."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: number for number, word in enumerate(["<s>", "</s>", *letters])}
    config = transformers.LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=128, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    rng = np.random.default_rng(82)
    with torch.no_grad():
        for name, weights in sorted(model.named_parameters()):
            drawn = rng.integers(-12, 13, tuple(weights.shape)).astype(np.float32) / 32
            weights.copy_(torch.from_numpy(np.ones_like(drawn) if "norm" in name else drawn))
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(
        folder
    )
    return folder

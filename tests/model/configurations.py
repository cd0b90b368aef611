"""The public configuration of every model of the catalogue: the fields of its config.json that decide its shape.

No hub could be reached when this was written: fields were compared with other public tables where there was one.
`PARAMETERS` holds the known number of parameters of each checkpoint, tied matrices counted once, written down before
anything was counted here. Of the models in `COUNTED_HERE` no such number was known: theirs is what the configuration
gives. Nothing but that of Mistral-7B-v0.1 backs the window of TurboSparse-Mistral, nothing but its published
size of 1.2 billion the key-value heads of MobiLlama-1B.
"""

from __future__ import annotations

from typing import Any


def _config(
    kind: str, layers: int, vocabulary: int, hidden: int, neurons: int, heads: int, pairs: int, /, **others: Any
) -> dict[str, Any]:
    return {
        "model_type": kind, "num_hidden_layers": layers, "vocab_size": vocabulary, "hidden_size": hidden,
        "intermediate_size": neurons, "num_attention_heads": heads, "num_key_value_heads": pairs, **others,
    }  # fmt: skip


def _opt(layers: int, hidden: int, neurons: int, heads: int, **others: Any) -> dict[str, Any]:
    return {
        "model_type": "opt", "num_hidden_layers": layers, "vocab_size": 50272, "hidden_size": hidden,
        "ffn_dim": neurons, "num_attention_heads": heads, "activation_function": "relu",
        "max_position_embeddings": 2048, **others,
    }  # fmt: skip


_SILU: dict[str, Any] = {"hidden_act": "silu"}
_TIED: dict[str, Any] = {**_SILU, "tie_word_embeddings": True}
_UNTIED: dict[str, Any] = {**_SILU, "tie_word_embeddings": False}
_NO_WINDOW: dict[str, Any] = {"use_sliding_window": False}
_GEMMA: dict[str, Any] = {"head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256}

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "smollm2-135m": _config("llama", 30, 49152, 576, 1536, 9, 3, **_TIED),
    "smollm2-360m": _config("llama", 32, 49152, 960, 2560, 15, 5, **_TIED),
    "smollm2-1.7b": _config("llama", 24, 49152, 2048, 8192, 32, 32, **_TIED),
    "smollm3-3b": _config("smollm3", 36, 128256, 2048, 11008, 16, 4, **_TIED, **_NO_WINDOW, sliding_window=None),
    "phi2": _config("phi", 32, 51200, 2560, 10240, 32, 32, hidden_act="gelu_new", tie_word_embeddings=False,
                    partial_rotary_factor=0.4, qk_layernorm=False),
    "phi3-mini": _config("phi3", 32, 32064, 3072, 8192, 32, 32, **_UNTIED, sliding_window=2047),
    "phi3-medium": _config("phi3", 40, 32064, 5120, 17920, 40, 10, **_UNTIED, sliding_window=2047),
    "phi4-mini": _config("phi3", 32, 200064, 3072, 8192, 24, 8, **_TIED, sliding_window=262144,
                         partial_rotary_factor=0.75, max_position_embeddings=131072),
    "llama2-7b": _config("llama", 32, 32000, 4096, 11008, 32, 32, **_UNTIED),
    "llama3-8b": _config("llama", 32, 128256, 4096, 14336, 32, 8, **_UNTIED),
    "llama3.2-1b": _config("llama", 16, 128256, 2048, 8192, 32, 8, **_TIED, head_dim=64),
    "llama3.2-3b": _config("llama", 28, 128256, 3072, 8192, 24, 8, **_TIED, head_dim=128),
    "tinyllama-1.1b": _config("llama", 22, 32000, 2048, 5632, 32, 4, **_UNTIED),
    "mobillama-1b": _config("llama", 22, 32000, 2048, 5632, 32, 32, **_UNTIED),
    "mistral-7b": _config("mistral", 32, 32000, 4096, 14336, 32, 8, **_UNTIED, sliding_window=4096),
    "mistral-7b-v0.3": _config("mistral", 32, 32768, 4096, 14336, 32, 8, **_UNTIED, sliding_window=None),
    "mistral-nemo": _config("mistral", 40, 131072, 5120, 14336, 32, 8, **_UNTIED, head_dim=128,
                                sliding_window=None),
    # its own code, model_type bamboo: a Mistral whose MLP applies relu to gate and up, and has predictors
    "turbosparse-mistral": _config("mistral", 32, 32064, 4096, 14336, 32, 8, hidden_act="relu", sliding_window=4096,
                                   tie_word_embeddings=False),
    "qwen2.5-0.5b": _config("qwen2", 24, 151936, 896, 4864, 14, 2, **_TIED, **_NO_WINDOW, sliding_window=32768),
    "qwen2.5-1.5b": _config("qwen2", 28, 151936, 1536, 8960, 12, 2, **_TIED, **_NO_WINDOW, sliding_window=131072),
    "qwen2.5-3b": _config("qwen2", 36, 151936, 2048, 11008, 16, 2, **_TIED, **_NO_WINDOW, sliding_window=32768),
    "qwen2.5-7b": _config("qwen2", 28, 152064, 3584, 18944, 28, 4, **_UNTIED, **_NO_WINDOW, sliding_window=131072),
    "qwen2.5-14b": _config("qwen2", 48, 152064, 5120, 13824, 40, 8, **_UNTIED, **_NO_WINDOW, sliding_window=131072),
    "qwen3-0.6b": _config("qwen3", 28, 151936, 1024, 3072, 16, 8, **_TIED, **_NO_WINDOW, head_dim=128),
    "qwen3-1.7b": _config("qwen3", 28, 151936, 2048, 6144, 16, 8, **_TIED, **_NO_WINDOW, head_dim=128),
    "qwen3-4b": _config("qwen3", 36, 151936, 2560, 9728, 32, 8, **_TIED, **_NO_WINDOW, head_dim=128),
    "qwen3-8b": _config("qwen3", 36, 151936, 4096, 12288, 32, 8, **_UNTIED, **_NO_WINDOW, head_dim=128),
    "gemma2-2b": _config("gemma2", 26, 256000, 2304, 9216, 8, 4, **_GEMMA, sliding_window=4096),
    "gemma3-270m": _config("gemma3_text", 18, 262144, 640, 2048, 4, 1, **_GEMMA, sliding_window=512),
    "gemma3-1b": _config("gemma3_text", 26, 262144, 1152, 6912, 4, 1, **_GEMMA, sliding_window=512),
    "gemma3-4b": {
        "model_type": "gemma3",
        "text_config": _config("gemma3_text", 34, 262208, 2560, 10240, 8, 4, **_GEMMA, sliding_window=1024),
        "vision_config": {
            "model_type": "siglip_vision_model", "hidden_size": 1152, "image_size": 896, "intermediate_size": 4304,
            "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14, "vision_use_head": False,
        },
        "mm_tokens_per_image": 256,
    },
    "falcon3-7b": _config("llama", 28, 131072, 3072, 23040, 12, 4, **_UNTIED, head_dim=256),
    "olmo2-7b": _config("olmo2", 32, 100352, 4096, 11008, 32, 32, **_UNTIED),
    "granite3.3-2b": _config("granite", 40, 49152, 2048, 8192, 32, 8, **_TIED),
    "opt-350m": _opt(24, 1024, 4096, 16, word_embed_proj_dim=512, do_layer_norm_before=False),
    "opt-1.3b": _opt(24, 2048, 8192, 32, word_embed_proj_dim=2048),
    "opt-6.7b": _opt(32, 4096, 16384, 32, word_embed_proj_dim=4096),
    "qwen3-30b-a3b": _config("qwen3_moe", 48, 151936, 2048, 6144, 32, 4, **_UNTIED, head_dim=128, num_experts=128,
                             num_experts_per_tok=8, moe_intermediate_size=768, norm_topk_prob=True,
                             decoder_sparse_step=1, mlp_only_layers=[], sliding_window=None),
    "gpt-oss-20b": _config("gpt_oss", 24, 201088, 2880, 2880, 64, 8, **_UNTIED, head_dim=64, num_local_experts=32,
                           num_experts_per_tok=4, sliding_window=128, attention_bias=True, swiglu_limit=7.0,
                           layer_types=["sliding_attention", "full_attention"] * 12),
    "gpt-oss-120b": _config("gpt_oss", 36, 201088, 2880, 2880, 64, 8, **_UNTIED, head_dim=64, num_local_experts=128,
                            num_experts_per_tok=4, sliding_window=128, attention_bias=True, swiglu_limit=7.0,
                            layer_types=["sliding_attention", "full_attention"] * 18),
    "olmoe-1b-7b": _config("olmoe", 16, 50304, 2048, 1024, 16, 16, **_UNTIED, num_experts=64, num_experts_per_tok=8,
                           norm_topk_prob=False),
    "mixtral-8x7b": _config("mixtral", 32, 32000, 4096, 14336, 32, 8, **_UNTIED, num_local_experts=8,
                            num_experts_per_tok=2, sliding_window=None),
    "deepseek-v2-lite": _config("deepseek_v2", 27, 102400, 2048, 10944, 16, 16, **_UNTIED, kv_lora_rank=512,
                                q_lora_rank=None, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128,
                                n_routed_experts=64, num_experts_per_tok=6, n_shared_experts=2, n_group=1,
                                topk_group=1, topk_method="greedy", moe_intermediate_size=1408,
                                first_k_dense_replace=1, routed_scaling_factor=1.0, norm_topk_prob=False),
}  # fmt: skip

PARAMETERS: dict[str, int] = {
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "smollm3-3b": 3_075_098_624,
    "phi2": 2_779_683_840,
    "phi3-mini": 3_821_079_552,
    "phi3-medium": 13_960_238_080,
    "phi4-mini": 3_836_021_760,
    "llama2-7b": 6_738_415_616,
    "llama3-8b": 8_030_261_248,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "tinyllama-1.1b": 1_100_048_384,
    "mobillama-1b": 1_261_529_088,
    "mistral-7b": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "mistral-nemo": 12_247_782_400,
    "turbosparse-mistral": 7_242_256_384,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "gemma2-2b": 2_614_341_888,
    "gemma3-270m": 268_098_176,
    "gemma3-1b": 999_885_952,
    "gemma3-4b": 4_300_079_472,
    "falcon3-7b": 7_455_550_464,
    "olmo2-7b": 7_298_617_344,
    "granite3.3-2b": 2_533_525_504,
    "opt-350m": 331_196_416,
    "opt-1.3b": 1_315_758_080,
    "opt-6.7b": 6_658_473_984,
    "qwen3-30b-a3b": 30_532_122_624,
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
    "olmoe-1b-7b": 6_919_161_856,
    "mixtral-8x7b": 46_702_792_704,
    "deepseek-v2-lite": 15_706_484_224,
}

COUNTED_HERE = {"granite3.3-2b", "mobillama-1b", "turbosparse-mistral"}

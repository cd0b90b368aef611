"""Tiny configurations of many architectures of transformers, and how to make models of them with random weights."""

from __future__ import annotations

from typing import Any, NamedTuple

VOCABULARY = 400
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 88,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_ONE = {"num_key_value_heads": 4}
_ENCODER = {  # decoders of models that once had an encoder
    "d_model": 32, "decoder_layers": 3, "decoder_ffn_dim": 88, "decoder_attention_heads": 4, "encoder_layers": 1,
    "encoder_ffn_dim": 88, "encoder_attention_heads": 4, "is_decoder": True, "is_encoder_decoder": False,
}  # fmt: skip
_OLD = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256, "n_ctx": 256}
LINEAR = {
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 4, "linear_num_value_heads": 4,
}  # fmt: skip
LATENT = {
    "kv_lora_rank": 16, "q_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, **_ONE,
}  # fmt: skip
MAMBA = {"mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_chunk_size": 8}
SLIDING = {"sliding_window": 8, "head_dim": 8}
_VISION = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip

CONFIGS: dict[str, dict[str, Any]] = {
    "apertus": {},
    "arcee": {},
    "bamba": {**MAMBA, "attn_layer_indices": [1], "attn_rotary_emb": 8},
    "bert": {**_ONE, "is_decoder": True},
    "biogpt": {**_ONE},
    "bitnet": {},
    "blenderbot-small": {**_ENCODER},
    "bloom": {"n_layer": 3, "n_head": 4, "hidden_size": 32},
    "codegen": {**_OLD, "rotary_dim": 4, "n_inner": 88},
    "cohere": {"logit_scale": 0.3},
    "cohere2": {"sliding_window": 8, "sliding_window_pattern": 2, "head_dim": 8},
    "ctrl": {**_OLD, "dff": 88},
    "cwm": {**SLIDING},
    "diffllama": {},
    "doge": {},
    "emu3": {"text_config": {**SMALL}, "vq_config": {"base_channels": 32, "channel_multiplier": [1], "embed_dim": 16,
             "num_res_blocks": 1, "codebook_size": 16, "latent_channels": 16}, "vocabulary_map": {}},
    "ernie4_5": {"head_dim": 8},
    "exaone": {},
    "exaone4": {**SLIDING, "sliding_window_pattern": 2},
    "falcon": {"multi_query": True},
    "falcon-new": {"model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon_h1": {**MAMBA, "head_dim": 8, "mamba_d_ssm": 64},
    "fuyu": {**_ONE},
    "gemma": {"head_dim": 8},
    "gemma2": {**SLIDING, "query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0},
    "gemma3_text": {**SLIDING, "query_pre_attn_scalar": 8, "num_hidden_layers": 4, "sliding_window_pattern": 2},
    "gemma3": {"text_config": {**SMALL, **SLIDING, "num_hidden_layers": 3}, "vision_config": _VISION,
               "mm_tokens_per_image": 4},
    "gemma3n_text": {**SLIDING, "num_hidden_layers": 6, "num_kv_shared_layers": 2, "intermediate_size": [88] * 6,
                     "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8, "laurel_rank": 4,
                     "altup_num_inputs": 2, "activation_sparsity_pattern": [0.9, 0.9, 0.0, 0.0, 0.0, 0.0],
                     "layer_types": ["sliding_attention", "full_attention"] * 3},
    "gemma3n-wide": {"model_type": "gemma3n_text", **SLIDING, "num_hidden_layers": 4, "num_kv_shared_layers": 0,
                     "intermediate_size": [88] * 4, "vocab_size_per_layer_input": VOCABULARY, "laurel_rank": 80,
                     "hidden_size_per_layer_input": 256, "activation_sparsity_pattern": [0.0] * 4,
                     "layer_types": ["sliding_attention", "full_attention"] * 2},
    "gemma4_text": {**SLIDING, "num_hidden_layers": 6, "num_kv_shared_layers": 2, "global_head_dim": 16,
                    "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 12,
                    "use_double_wide_mlp": True, "layer_types": ["sliding_attention", "full_attention"] * 3},
    "glm": {"head_dim": 8},
    "glm4": {"head_dim": 8},
    "gpt2": {**_OLD, "n_inner": 88},
    "gpt_bigcode": {**_OLD, "n_inner": 88},
    "gpt_neo": {"num_hidden_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gpt_neox": {},
    "gpt_neox_japanese": {"intermediate_multiple_size": 3},
    "gptj": {**_OLD, "rotary_dim": 4, "n_inner": 88},
    "granite": {"logits_scaling": 8.0, "embedding_multiplier": 12.0, "residual_multiplier": 0.22},
    "granite_swa": {**SLIDING, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "granitemoehybrid": {**MAMBA, "num_local_experts": 0, "num_experts_per_tok": 0,
                         "shared_intermediate_size": 88, "layer_types": ["mamba", "attention", "mamba"]},
    "helium": {"head_dim": 8},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hyperclovax": {"logits_scaling": 0.25},
    "internlm3": {},
    "jais2": {},
    "jamba": {"num_experts": 1, "attn_layer_period": 3, "attn_layer_offset": 1, "expert_layer_period": 100,
              "expert_layer_offset": 99, "mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"], "full_attn_idxs": [1], "block_auto_adjust_ff_dim": False},
    "llama": {},
    "llama-square": {"model_type": "llama", "intermediate_size": 32},
    "llama4_text": {"moe_layers": [], "intermediate_size_mlp": 88, "head_dim": 8, "attention_chunk_size": 8,
                    "num_hidden_layers": 4},
    "llava": {"text_config": {"model_type": "llama", **SMALL}, "vision_config": {
        "model_type": "clip_vision_model", **_VISION, "projection_dim": 16}, "image_token_index": 10,
        "vision_feature_layer": -1},
    "mbart": {**_ENCODER},
    "minicpm3": {**LATENT},
    "ministral": {**SLIDING},
    "ministral3": {"head_dim": 8},
    "mistral": {**SLIDING},
    "mistral-full": {"model_type": "mistral", "sliding_window": None},
    "mistral3": {"text_config": {"model_type": "mistral", **SMALL, "head_dim": 8}, "vision_config": {
        "model_type": "pixtral", **_VISION, "head_dim": 8}, "image_token_index": 10},
    "mllama": {"text_config": {**SMALL, "cross_attention_layers": [1]}, "vision_config": {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "attention_heads": 2, "image_size": 16,
        "patch_size": 8, "num_global_layers": 1, "vision_output_dim": 32, "intermediate_layers_indices": [0],
        "supported_aspect_ratios": [[1, 1]], "max_num_tiles": 1}},
    "modernbert-decoder": {"local_attention": 16, "global_attn_every_n_layers": 2},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 3, "expansion_ratio": 3, "max_seq_len": 256},
    "nanochat": {},
    "nemotron": {"head_dim": 8},
    "nemotron_h": {"hybrid_override_pattern": "M-*-", "num_hidden_layers": 4, "ssm_state_size": 8, "mamba_num_heads": 4,
                   "mamba_head_dim": 16, "n_groups": 1, "chunk_size": 8, "head_dim": 8},
    "olmo": {},
    "olmo2": {},
    "olmo3": {**SLIDING, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "olmo_hybrid": {**LINEAR, "layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    "opt": {"ffn_dim": 88, "word_embed_proj_dim": 32},
    "opt-350m": {"model_type": "opt", "ffn_dim": 88, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    "pegasus": {**_ENCODER},
    "persimmon": {**_ONE},
    "phi": {},
    "phi3": {"sliding_window": 8},
    "phi3-square": {"model_type": "phi3", "intermediate_size": 32},
    "qwen2": {"tie_word_embeddings": True},
    "qwen2-window": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "qwen2_vl": {"text_config": {**SMALL, "rope_parameters": {
        "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}, "vision_config": {
        "depth": 3, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 8}},
    "qwen3": {"head_dim": 8},
    "qwen3_5_text": {**LINEAR, "head_dim": 8, "num_hidden_layers": 4},
    "seed_oss": {"head_dim": 8},
    "smollm3": {},
    "smolvlm": {"text_config": {"model_type": "llama", **SMALL}, "vision_config": _VISION, "scale_factor": 1},
    "stablelm": {},
    "starcoder2": {"sliding_window": 8},
    "trocr": {**_ENCODER},
    "vaultgemma": {**SLIDING, "query_pre_attn_scalar": 8},
    "xglm": {"d_model": 32, "ffn_dim": 88, "num_layers": 3, "attention_heads": 4},
    "youtu": {**LATENT, "q_lora_rank": None},
}  # fmt: skip


_SORTED = "sorts or masks what enters its experts, so no call shows which are chosen for a token"
_MASKED = "its experts are not called with ids and weights of those that are chosen"
_NO_MLP = "has no MLP that hwsim knows"
_NO_CACHE = "keeps no KV cache that transformers can show"
_REPEATS = "choose a model that does not repeat its layers"

REFUSED: dict[str, tuple[str, dict[str, Any]]] = {  # the reason, and fields of a configuration
    "jetmoe": (_SORTED, {"num_local_experts": 2, "num_experts_per_tok": 1, "kv_channels": 8}),
    "llama4-moe": (_MASKED, {"model_type": "llama4_text", "moe_layers": [1], "intermediate_size_mlp": 88, "head_dim": 8,
                             "attention_chunk_size": 8, "num_local_experts": 4}),
    "zamba": (_REPEATS, {"mamba_d_state": 8, "n_mamba_heads": 2, "mamba_dt_rank": 4, "use_mamba_kernels": False,
                         "num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"]}),
    "hrm_text": (_REPEATS, {}),
    "mamba": (_NO_MLP, {"state_size": 8}),
    "mamba2": (_NO_MLP, {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "expand": 2}),
    "falcon_mamba": (_NO_MLP, {"state_size": 8}),
    "recurrent_gemma": (_NO_CACHE, {"lru_width": 32, "attention_window_size": 8}),
    "rwkv": (_NO_CACHE, {"attention_hidden_size": 32, "context_length": 64}),
    "openai-gpt": (_NO_CACHE, {**_OLD}),
    "roberta": (_NO_CACHE, {}),
    "cpmant": ("hwsim knows one entry for each token", {}),
    "xlstm": ("its forward pass cannot be followed", {}),
}  # fmt: skip


class Where(NamedTuple):
    """Where a model keeps its MLPs, as read in the source of transformers; names of modules within a layer."""

    gate: str = "mlp.gate_proj"  # empty without a gate
    up: str = "mlp.up_proj"  # fused: of both
    down: str = "mlp.down_proj"
    act: str = "silu"
    layers: str = "model.layers"
    half: int = 0  # fused: 1 if the gate is the first half
    inner: str = ""


_PLAIN = Where(gate="")
_FUSED = Where(gate="", up="mlp.gate_up_proj", half=1)
_FC = Where(gate="", up="fc1", down="fc2", act="gelu", layers="model.decoder.layers")
_FED = Where(*(f"feed_forward.{name}_proj" for name in ("gate", "up", "down")))
_GPT = Where(gate="", up="mlp.c_fc", down="mlp.c_proj", act="gelu_new", layers="transformer.h")
_NEOX = Where(gate="", up="mlp.dense_h_to_4h", down="mlp.dense_4h_to_h", act="gelu", layers="gpt_neox.layers")
_INSIDE = Where(layers="model.language_model.layers")
_TANH = "gelu_pytorch_tanh"

WHERE: dict[str, Where] = {
    "apertus": _PLAIN._replace(act="xielu"),
    "arcee": _PLAIN._replace(act="relu2"),
    "bamba": _FED,
    "biogpt": _FC._replace(layers="biogpt.layers"),
    "bitnet": Where(act="relu2", inner="mlp.ffn_sub_norm"),
    "bert": Where(gate="", up="intermediate.dense", down="output.dense", act="gelu", layers="bert.encoder.layer"),
    "blenderbot-small": _FC,
    "bloom": _NEOX._replace(act="bloom", layers="transformer.h"),
    "codegen": _GPT._replace(up="mlp.fc_in", down="mlp.fc_out"),
    "ctrl": Where(gate="", up="ffn.0", down="ffn.2", act="relu", layers="transformer.h"),
    "falcon": _NEOX._replace(layers="transformer.h"),
    "falcon-new": _NEOX._replace(layers="transformer.h"),
    "falcon_h1": _FED,
    "fuyu": _NEOX._replace(act="relu2", layers="model.language_model.layers"),
    "gemma": Where(act=_TANH),
    "gemma2": Where(act=_TANH),
    "gemma3_text": Where(act=_TANH),
    "gemma3": _INSIDE._replace(act=_TANH),
    "gemma3n_text": Where(act=_TANH),
    "gemma3n-wide": Where(act=_TANH),
    "gemma4_text": Where(act=_TANH),
    "glm": _FUSED,
    "glm4": _FUSED,
    "gpt2": _GPT,
    "gpt_bigcode": _GPT._replace(act=_TANH),
    "gpt_neo": _GPT,
    "gpt_neox": _NEOX,
    "gpt_neox_japanese": _NEOX._replace(layers="gpt_neox_japanese.layers"),
    "gptj": _GPT._replace(up="mlp.fc_in", down="mlp.fc_out"),
    "granitemoehybrid": Where(gate="", up="shared_mlp.input_linear", down="shared_mlp.output_linear", half=1),
    "jais2": _PLAIN._replace(act="relu2"),
    "jamba": _FED,
    "lfm2": Where("feed_forward.w1", "feed_forward.w3", "feed_forward.w2"),
    "llama4_text": _FED,
    "llava": _INSIDE,
    "mbart": _FC,
    "nemotron_h": Where(gate="", up="mixer.up_proj", down="mixer.down_proj", act="relu2"),
    "phi3-square": _FUSED,
    "mistral3": _INSIDE,
    "emu3": Where(layers="model.text_model.layers"),
    "mllama": _INSIDE,
    "modernbert-decoder": Where(gate="", up="mlp.Wi", down="mlp.Wo", act="gelu", half=1),
    "mpt": Where(gate="", up="ffn.up_proj", down="ffn.down_proj", act="gelu", layers="transformer.blocks"),
    "nanochat": Where(gate="", up="mlp.fc1", down="mlp.fc2", act="relu2"),
    "nemotron": _PLAIN._replace(act="relu2"),
    "opt": _FC._replace(act="relu"),
    "opt-350m": _FC._replace(act="relu"),
    "pegasus": _FC,
    "persimmon": _NEOX._replace(act="relu2", layers="model.layers"),
    "phi": Where(gate="", up="mlp.fc1", down="mlp.fc2", act="gelu_new"),
    "phi3": _FUSED,
    "qwen2_vl": _INSIDE,
    "smolvlm": Where(layers="model.text_model.layers"),
    "starcoder2": Where(gate="", up="mlp.c_fc", down="mlp.c_proj", act=_TANH),
    "trocr": _FC,
    "vaultgemma": Where(act=_TANH),
    "xglm": _FC._replace(layers="model.layers"),
}


def where(name: str) -> Where:
    """Where an architecture keeps its MLPs; most are named as Llama's."""
    return WHERE.get(name, Where())


def make_config(name: str, own: dict[str, Any] | None = None) -> Any:
    """The configuration of an architecture; `own`: its fields, if it is in no table of this file."""
    import transformers

    fields = {**SMALL, **(own or (CONFIGS[name] if name in CONFIGS else REFUSED[name][1]))}
    kind = fields.pop("model_type", name)
    if "text_config" in fields:
        fields = CONFIGS[name]
    return transformers.AutoConfig.for_model(kind, **fields)


def make_architecture(name: str, own: dict[str, Any] | None = None) -> Any:
    """A model with random weights, which are large enough for tokens to differ and small enough to stay finite.

    A model that also sees images is made whole, as its checkpoints are.
    """
    import torch
    import transformers

    config = make_config(name, own)
    torch.manual_seed(7)
    whole = transformers.AutoModelForImageTextToText
    loader = whole if type(config) in whole._model_mapping else transformers.AutoModelForCausalLM
    model = loader.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim > 1 and "norm" not in key and "A_log" not in key:
                parameter.mul_(4)
            if key.endswith("proj.bias") or key.endswith("fc1.bias"):  # transformers initialises them to zero
                parameter.normal_(0, 0.5)
    return model

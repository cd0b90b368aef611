"""Tiny mixtures of experts of many architectures of transformers, and what their source says of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from hwsim.model.layers import Experts
from tests.record.architectures import LATENT, LINEAR, MAMBA, SLIDING, make_architecture

HIDDEN = 32


class Mixture(NamedTuple):
    """A mixture, as read in the source of transformers; names of modules within a layer."""

    fields: dict[str, Any]  # of its configuration
    experts: Experts
    sparse: tuple[int, ...]  # layers with experts
    module: str = "mlp.experts"
    router: str = "mlp.gate"  # module that returns the logits, first of all or alone
    glu: str = "silu"  # activation of the gate; or the name of a function of this file
    rule: tuple[str, bool] | None = ("softmax", True)  # score, and whether the chosen ones are divided by their sum
    scale: float = 1.0
    layers: str = "model.layers"
    dense: int = 0  # neurons of a dense MLP beside the experts


def _experts(width: int = 16, count: int = 8, used: int = 2, **more: Any) -> Experts:
    return Experts(count=count, used=used, intermediate_size=width, **more)


def _shared(width: int, matrices: int = 3, *, gate: bool = False) -> dict[str, Any]:
    return {"shared_parameters": matrices * width * HIDDEN + gate * HIDDEN, "shared_gate": gate}


_FEW = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
_GROUPS = {"n_routed_experts": 8, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "n_shared_experts": 1,
           "moe_intermediate_size": 16, "first_k_dense_replace": 1}  # fmt: skip
_ALL = (0, 1, 2)
_WIDE = _experts(88, 4)
_SIGMOID = ("sigmoid", True)

MIXTURES: dict[str, Mixture] = {
    "aria_text": Mixture({"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 2},
                         _experts(88, 4, **_shared(176)), _ALL, router="mlp.router"),
    "deepseek_v2": Mixture({**LATENT, **_GROUPS, "topk_method": "group_limited_greedy", "routed_scaling_factor": 16.0},
                           _experts(**_shared(16)), (1, 2), rule=("softmax", False), scale=16.0),
    "deepseek_v3": Mixture({**LATENT, **_GROUPS}, _experts(**_shared(16)), (1, 2), rule=_SIGMOID, scale=2.5),
    "dots1": Mixture({**_GROUPS, "head_dim": 8, "norm_topk_prob": False, "layer_types": ["full_attention"] * 3},
                     _experts(**_shared(16)), (1, 2), rule=("sigmoid", False)),
    "ernie4_5_moe": Mixture({"moe_num_experts": 8, "moe_k": 2, "moe_intermediate_size": 16, "head_dim": 8,
                             "moe_num_shared_experts": 2, "moe_layer_start_index": 1},
                            _experts(**_shared(32)), (1, 2)),
    "flex_olmo": Mixture({"num_experts": 8, "num_experts_per_tok": 2}, _experts(88), _ALL, rule=("softmax", False)),
    "gemma4_text": Mixture({**SLIDING, "num_kv_shared_layers": 0, "global_head_dim": 16, "top_k_experts": 2,
                            "vocab_size_per_layer_input": 400, "hidden_size_per_layer_input": 12, "num_experts": 8,
                            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
                            "enable_moe_block": True, "moe_intermediate_size": 16},
                           _experts(), _ALL, "experts", "router.proj", "gelu_pytorch_tanh", dense=88),
    "glm4_moe": Mixture({**_GROUPS, "n_group": 1, "head_dim": 8, "norm_topk_prob": True},
                        _experts(**_shared(16)), (1, 2), rule=_SIGMOID),
    "gpt_oss": Mixture({"num_local_experts": 8, "num_experts_per_tok": 2, **SLIDING}, _experts(88), _ALL,
                       router="mlp.router", glu="clamped"),
    "granitemoe": Mixture(_LOCAL, _WIDE, _ALL, "block_sparse_moe.experts", "block_sparse_moe.router"),
    "granitemoehybrid-moe": Mixture({"model_type": "granitemoehybrid", **MAMBA, **_LOCAL, "shared_intermediate_size": 24,
                                     "layer_types": ["mamba", "attention", "mamba"]},
                                    _experts(88, 4, **_shared(24)), _ALL, "block_sparse_moe.experts",
                                    "block_sparse_moe.router"),
    "granitemoeshared": Mixture({**_LOCAL, "shared_intermediate_size": 24}, _experts(88, 4, **_shared(24)), _ALL,
                                "block_sparse_moe.experts", "block_sparse_moe.router"),
    "hunyuan_v1_moe": Mixture({"num_experts": 4, "moe_topk": 2, "head_dim": 8}, _experts(88, 4, **_shared(88)), _ALL),
    "jamba-moe": Mixture({"model_type": "jamba", "num_experts": 4, "num_hidden_layers": 5, "attn_layer_period": 3, "attn_layer_offset": 1,
                          "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4,
                          "use_mamba_kernels": False},
                         _WIDE, (1, 3), "feed_forward.experts", "feed_forward.router", rule=("softmax", False)),
    "lfm2_moe": Mixture({**_FEW, "num_dense_layers": 1, "layer_types": ["conv", "full_attention", "conv"]},
                        _experts(), (1, 2), "feed_forward.experts", "feed_forward.gate", rule=_SIGMOID),
    "minimax": Mixture({**_LOCAL, "head_dim": 8,
                        "layer_types": ["full_attention", "linear_attention", "full_attention"]}, _WIDE, _ALL),
    "minimax_m2": Mixture({**_LOCAL, "head_dim": 8}, _WIDE, _ALL, rule=_SIGMOID),
    "mixtral": Mixture(_LOCAL, _WIDE, _ALL),
    "nemotron_h-moe": Mixture({"model_type": "nemotron_h", "hybrid_override_pattern": "ME*-", "num_hidden_layers": 4,
                               "ssm_state_size": 8, "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 1,
                               "chunk_size": 8, "head_dim": 8, **_GROUPS, "n_group": 1,
                               "moe_shared_expert_intermediate_size": 24},
                              _experts(gated=False, **_shared(24, 2)), (1,), "mixer.experts", "mixer.gate", "relu2",
                              rule=_SIGMOID),
    "nemotron_h-latent": Mixture({"model_type": "nemotron_h", "hybrid_override_pattern": "ME*-", "num_hidden_layers": 4,
                                  "ssm_state_size": 8, "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 1,
                                  "chunk_size": 8, "head_dim": 8, **_GROUPS, "n_group": 1, "moe_latent_size": 24,
                                  "moe_shared_expert_intermediate_size": 24},
                                 _experts(gated=False, input_size=24, **_shared(24, 2)), (1,), "mixer.experts",
                                 "mixer.gate", "relu2", rule=_SIGMOID),
    "olmoe": Mixture({"num_experts": 8, "num_experts_per_tok": 2}, _experts(88), _ALL, rule=("softmax", False)),
    "phimoe": Mixture(_LOCAL, _WIDE, _ALL, router="mlp.router", rule=None),
    "qwen2_moe": Mixture({**_FEW, "shared_expert_intermediate_size": 24, "mlp_only_layers": [1]},
                         _experts(**_shared(24, gate=True)), (0, 2), rule=("softmax", False)),
    "qwen3_5_moe_text": Mixture({**_FEW, **LINEAR, "head_dim": 8, "num_hidden_layers": 4,
                                 "shared_expert_intermediate_size": 24},
                                _experts(**_shared(24, gate=True)), (0, 1, 2, 3)),
    "qwen3_moe": Mixture({**_FEW, "head_dim": 8, "norm_topk_prob": True}, _experts(), _ALL),
    "qwen3_moe-square": Mixture({"model_type": "qwen3_moe", "num_experts": 32, "num_experts_per_tok": 3, "head_dim": 8,
                                 "moe_intermediate_size": 32},
                                _experts(32, 32, 3), _ALL, rule=("softmax", False)),
    "qwen3_next": Mixture({**_FEW, **LINEAR, "head_dim": 8, "num_hidden_layers": 4,
                           "shared_expert_intermediate_size": 24},
                          _experts(**_shared(24, gate=True)), (0, 1, 2, 3)),
}  # fmt: skip


def make_mixture(name: str) -> Any:
    """A model with random weights, biases and scales, whose tokens choose different experts."""
    model = make_architecture(name, MIXTURES[name].fields)
    with torch.no_grad():
        for layer in (layers := model.get_submodule(MIXTURES[name].layers)):
            for parameter in _of_router(layer, MIXTURES[name]):
                parameter.normal_(0, 0.4)
        for key, value in [*layers.named_parameters(), *layers.named_buffers()]:
            if key.endswith(("correction_bias", "expert_bias")):
                value.normal_(0, 0.2)
            elif key.endswith("per_expert_scale"):
                value.uniform_(0.5, 1.5)
            elif key.endswith("_proj_bias"):
                value.normal_(0, 0.5)
    return model


def _of_router(layer: Any, mixture: Mixture) -> list[Any]:
    try:
        return [
            entry for entry in layer.get_submodule(mixture.router).parameters() if entry.ndim == 2 and len(entry) > 1
        ]
    except AttributeError:  # a dense layer
        return []


# ---------------------------------------------------------------------- what the source of transformers computes


def clamped(gate: Any, up: Any) -> Any:
    """Of gpt-oss."""
    gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
    return gate * torch.sigmoid(1.702 * gate) * (up + 1)


def glu_of(name: str, module: Any, value: Any, ids: Any) -> Any:
    """What enters down of each chosen expert, ``[n, k, width]``, one token and expert at a time."""
    from transformers.activations import ACT2FN

    mixture = MIXTURES[name]
    rows = []
    for vector, chosen in zip(value, ids.tolist(), strict=True):
        for expert in chosen:
            if mixture.glu == "clamped":
                both = vector @ module.gate_up_proj[expert] + module.gate_up_proj_bias[expert]
                rows.append(clamped(both[::2], both[1::2]))
            elif not mixture.experts.gated:
                rows.append(ACT2FN[mixture.glu](module.up_proj[expert] @ vector))
            else:
                stack = module.gate_up_proj[expert]
                gate, up = (vector @ stack if name == "aria_text" else stack @ vector).chunk(2)
                rows.append(ACT2FN[mixture.glu](gate) * up)
    return torch.stack(rows).reshape(*ids.shape, -1)


def routed(name: str, model: Any, run: Callable[[], Any]) -> dict[tuple[int, str], Any]:
    """Signals of the sparse layers in one pass, by hooks of this file: by falling weight, as a trace has them."""
    mixture, seen, handles = MIXTURES[name], {}, []

    def call(layer: int, module: Any) -> Callable[..., None]:
        def hook(_: Any, args: Any) -> None:
            value, ids, weights = (part.reshape(-1, part.shape[-1]) for part in args)
            order = weights.float().argsort(dim=-1, descending=True, stable=True)
            ids, weights = ids.gather(1, order), weights.gather(1, order)
            seen[layer, "experts"], seen[layer, "expert_weights"], seen[layer, "expert_input"] = ids, weights, value
            seen[layer, "expert_glu"] = glu_of(name, module, value, ids).flatten(1)

        return hook

    def logits(layer: int) -> Callable[..., None]:
        def hook(_: Any, __: Any, result: Any) -> None:
            result = result[0] if isinstance(result, tuple) else result
            seen[layer, "router"] = result.reshape(-1, result.shape[-1])

        return hook

    layers = model.get_submodule(mixture.layers)
    for number in mixture.sparse:
        module = layers[number].get_submodule(mixture.module)
        handles.append(module.register_forward_pre_hook(call(number, module)))
        handles.append(layers[number].get_submodule(mixture.router).register_forward_hook(logits(number)))
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return seen

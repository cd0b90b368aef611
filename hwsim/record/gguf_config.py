"""The metadata of a GGUF file, compared with the configuration that transformers makes of them.

transformers builds a configuration from some keys of the metadata and passes over the others in silence. Here every key
that can change the results is applied, found to say what the configuration says anyway, or refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from hwsim.errors import ModelError
from hwsim.record.gguf_file import FREQUENCIES, LONG, READ, SHORT, WAY_OUT, Gguf, read_gguf

_TOKENIZER = ("general.", "tokenizer.", "quantize.", "imatrix.", "split.", "GGUF.")  # decide no result of the model
_HARMLESS = {"context_length", "tensor_data_layout", "rope.scaling.finetuned"}
_NEUTRAL: dict[str, tuple[Any, ...]] = {  # values with which a key changes nothing, whatever the model
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.scale": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "leading_dense_block_count": (0,),
    "logit_scale": (0.0, 1.0),
    "nextn_predict_layers": (0,),
    "pooling_type": (0,),
    "residual_scale": (0.0, 1.0),
}
_EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon")
_SPARSE = ("qwen2moe", "qwen3moe")  # architectures whose experts transformers stacks as its models have them
_PARTIAL = {"phi3", "stablelm", "nemotron", "glm4"}  # architectures whose models can turn a part of each head


def complete_config(path: Path, config: Any) -> None:
    """Set those fields of a configuration that transformers did not take from the GGUF file's metadata.

    Args:
        path: the file.
        config: transformers' configuration for it; it is changed in place.

    Raises:
        ModelError: the metadata hold a key that changes the results and that no field stands for.
    """
    file, text = read_gguf(path), config.get_text_config()
    if file.general.get("general.type", "model") != "model":
        raise ModelError(
            f"--model {path.name}: general.type is {file.general['general.type']}; name the file of the model"
        )
    if (count := file.general.get("split.count", 1)) > 1:
        raise ModelError(
            f"--model {path.name}: is one of {count} parts (split.count); join them with llama-gguf-split --merge"
        )
    keys = dict(file.keys)
    if keys.get("expert_count", 0) and file.architecture not in _SPARSE:
        raise ModelError(
            f"--model {path.name}: {file.architecture}.expert_count is {keys['expert_count']}, and hwsim reads experts "
            f"from GGUF files of {' and '.join(_SPARSE)} only; {WAY_OUT}"
        )
    _set_scale(file.architecture, text)
    _set_rope(path, file, keys, text)
    for key in sorted(keys, key=lambda key: (not key.startswith("attention."), key)):  # head_dim before its parts
        value, known = _single(keys[key]), _FIELDS.get(key)
        if key in _HARMLESS or key in READ.get(file.architecture, ()):
            continue
        if known and (_same(known.get(text), value) or (known.set(text, value) and _same(known.get(text), value))):
            continue
        if any(_same(neutral, value) for neutral in _NEUTRAL.get(key, ())):
            continue
        says = f", which would be {known.get(text)}" if known and known.get(text) is not None else ""
        raise ModelError(
            f"--model {path.name}: {file.architecture}.{key} is {value}, and transformers cannot apply it{says}; "
            f"{WAY_OUT}"
        )
    if odd := [key for key in file.general if not key.startswith(_TOKENIZER)]:
        raise ModelError(
            f"--model {path.name}: {odd[0]} is a key that hwsim does not know, so results may be wrong; {WAY_OUT}"
        )


class _Field(NamedTuple):
    """What a configuration says of a key: reads it, and sets it if the model can do so (returns whether)."""

    get: Callable[[Any], Any]
    set: Callable[[Any, Any], bool]


def _never(_config: Any, _value: Any) -> bool:
    return False


def _plain(*names: str) -> _Field:
    """A field of the configuration, under the first of some names that it has."""

    def name_of(config: Any) -> str | None:
        return next((name for name in names if hasattr(config, name)), None)

    def get(config: Any) -> Any:
        name = name_of(config)
        return getattr(config, name) if name else None

    def put(config: Any, value: Any) -> bool:
        name = name_of(config)
        if name:
            setattr(config, name, value)
        return name is not None

    return _Field(get, put)


def _fixed(*names: str) -> _Field:
    """A field that transformers reads from every file: another value means that it did not understand the file."""
    return _Field(_plain(*names).get, _never)


def _head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _rope(config: Any, kind: str = "full_attention") -> dict[str, Any]:
    """Parameters of the rotary embedding; those of one kind of layers where the kinds differ."""
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    inner = rope.get(kind)
    return inner if isinstance(inner, dict) else rope


def _set_theta(kind: str) -> _Field:
    def put(config: Any, value: Any) -> bool:
        rope = _rope(config, kind)
        if "rope_theta" in rope:
            rope["rope_theta"] = value
        return "rope_theta" in rope

    return _Field(lambda config: _rope(config, kind).get("rope_theta"), put)


def _turned(config: Any) -> int:
    """Dimensions of a head that the rotary embedding turns."""
    part = _rope(config).get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0
    return int(_head_dim(config) * part)


def _set_turned(config: Any, value: Any) -> bool:
    if config.model_type not in _PARTIAL:
        return False
    _rope(config)["partial_rotary_factor"] = config.partial_rotary_factor = value / _head_dim(config)
    return True


def _kv_heads(config: Any) -> int:
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def _sliding(config: Any) -> list[bool] | None:
    types = getattr(config, "layer_types", None)
    return [kind == "sliding_attention" for kind in types] if types else None


def _set_sliding(config: Any, value: Any) -> bool:
    """The layers with a window: a list of flags, or every how many layers one has none."""
    count = config.num_hidden_layers
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        value = [bool((layer + 1) % value) for layer in range(count)]
    if _sliding(config) is None or not isinstance(value, list) or len(value) != count:
        return False
    config.layer_types = ["sliding_attention" if windowed else "full_attention" for windowed in value]
    return True


_FIELDS = {
    "attention.head_count": _fixed("num_attention_heads"),
    "attention.head_count_kv": _Field(_kv_heads, _never),
    "attention.key_length": _Field(_head_dim, _plain("head_dim").set),
    "attention.key_length_swa": _Field(_head_dim, _never),
    "attention.layer_norm_epsilon": _plain(*_EPSILONS),
    "attention.layer_norm_rms_epsilon": _plain(*_EPSILONS),
    "attention.sliding_window": _plain("sliding_window"),
    "attention.sliding_window_pattern": _Field(_sliding, _set_sliding),
    "attention.value_length": _Field(_head_dim, _never),
    "attention.value_length_swa": _Field(_head_dim, _never),
    "attn_logit_softcapping": _plain("attn_logit_softcapping"),
    "block_count": _Field(lambda config: config.num_hidden_layers, _never),
    "embedding_length": _fixed("hidden_size"),
    "expert_count": _fixed("num_local_experts", "num_experts"),
    "expert_feed_forward_length": _plain("moe_intermediate_size"),
    "expert_shared_feed_forward_length": _plain("shared_expert_intermediate_size"),
    "expert_used_count": _fixed("num_experts_per_tok"),
    "feed_forward_length": _fixed("intermediate_size", "n_inner"),
    "final_logit_softcapping": _plain("final_logit_softcapping"),
    "logit_scale": _plain("logit_scale"),
    "rope.dimension_count": _Field(_turned, _set_turned),
    "rope.dimension_count_swa": _Field(_turned, _never),
    "rope.freq_base": _set_theta("full_attention"),
    "rope.freq_base_swa": _set_theta("sliding_attention"),
    "use_parallel_residual": _plain("use_parallel_residual"),
    "vocab_size": _fixed("vocab_size"),
}  # keys with what a configuration says of them; llama.cpp's names are those of gguf's constants.py


def _single(value: Any) -> Any:
    """The value that a list of one for each layer holds, if all are the same; zero marks layers without attention."""
    if isinstance(value, list) and value and not isinstance(value[0], bool):
        values = {entry for entry in value if entry} or {0}
        return values.pop() if len(values) == 1 else value
    return value


def _same(ours: Any, theirs: Any) -> bool:
    """Whether two values are equal, up to the rounding of a file that stores float32."""
    if isinstance(ours, int | float) and isinstance(theirs, int | float):
        return math.isclose(ours, theirs, rel_tol=1e-6)
    return bool(ours == theirs)


def _set_scale(architecture: str, config: Any) -> None:
    """Gemma's scale of attention: no key holds it; llama.cpp knows it from the size of the model."""
    if architecture in ("gemma2", "gemma3"):
        largest = config.num_hidden_layers == {"gemma2": 46, "gemma3": 62}[architecture]  # the models of 27 billion
        config.query_pre_attn_scalar = (
            config.hidden_size // config.num_attention_heads if largest else _head_dim(config)
        )


def _set_rope(path: Path, file: Gguf, keys: dict[str, Any], config: Any) -> None:
    """Apply the scaling of rotary frequencies, and take its keys out of `keys`.

    Frequencies that a tensor scales one by one (Llama 3, Phi-3) become transformers' longrope, which divides by them.
    """
    theirs = {key: keys.pop(key) for key in list(keys) if key.startswith("rope.scal") and key not in _HARMLESS}
    kind = theirs.pop("rope.scaling.type", "linear" if "rope.scale_linear" in theirs else "none")
    factor = float(theirs.pop("rope.scaling.factor", theirs.pop("rope.scale_linear", 1.0)) or 1.0)
    original = theirs.pop("rope.scaling.original_context_length", None)
    rope, longest = _rope(config), getattr(config, "max_position_embeddings", None)
    if file.factors and kind in ("none", "longrope"):
        both = file.factors.get(FREQUENCIES)
        parts = {"short_factor": file.factors.get(SHORT, both), "long_factor": file.factors.get(LONG, both)}
        if (
            all(part and len(part) == _turned_after(keys, config) // 2 for part in parts.values())
            and "rope_theta" in rope
        ):
            attention = float(theirs.pop("rope.scaling.attn_factor", 1.0))
            rope.update(parts, rope_type="longrope", attention_factor=attention)
            rope["original_max_position_embeddings"] = int(original or longest or 1)
            kind = "done"
    elif kind == "linear" and not file.factors:
        if factor != 1.0:
            rope.update(rope_type="linear", factor=factor)
        kind = "done"
    elif kind == "yarn" and not file.factors and original:
        slopes = {"rope.scaling.yarn_beta_fast": "beta_fast", "rope.scaling.yarn_beta_slow": "beta_slow"}
        for key, name in slopes.items():
            if key in theirs:
                rope[name] = float(theirs.pop(key))
        rope.update(rope_type="yarn", factor=factor, original_max_position_embeddings=int(original))
        kind = "done"
    elif kind == "none" and factor == 1.0:
        kind = "done"
    left = {key: value for key, value in theirs.items() if not _same(value, 1.0)}
    if kind != "done" or left:
        key, value = next(iter(left.items()), ("rope.scaling.type", kind))
        raise ModelError(
            f"--model {path.name}: {file.architecture}.{key} is {value}, and transformers cannot apply it; {WAY_OUT}"
        )


def _turned_after(keys: dict[str, Any], config: Any) -> int:
    """Dimensions that are turned once the file's own number is applied."""
    return int(keys.get("rope.dimension_count", _turned(config)))

"""A LoRA adapter as peft saves it: its size, and whether it fits a model. Reads no weights and needs no torch.

An adapter is a folder with ``adapter_config.json`` and ``adapter_model.safetensors``. ``hwsim train lora`` adds
``hwsim.json``, which names the model and the policy that it was trained for.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from hwsim.errors import SettingError
from hwsim.model.shape import MLP, Matrix, ModelShape

CONFIG, WEIGHTS, ABOUT = "adapter_config.json", "adapter_model.safetensors", "hwsim.json"
_LONGEST_HEADER = 10**8  # bytes, the limit of the safetensors library
_NAME = re.compile(r"\.(\d+)\.((?:[A-Za-z_]\w*\.)*)(\w+)\.lora_([AB])(?:\.\w+)?\.weight$")
_FLOATS = {"F64", "F32", "F16", "BF16"}
_APPLIED = {  # fields that peft applies when it puts an adapter on a model, and those that change no result
    "peft_type", "r", "target_modules", "exclude_modules", "lora_alpha", "alpha_pattern", "use_rslora",
    "layers_to_transform", "layers_pattern", "fan_in_fan_out", "bias", "task_type", "init_lora_weights",
    "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "lora_dropout",
    "megatron_core", "qalora_group_size", "runtime_config", "ensure_weight_tying",
    "loftq_config", "eva_config", "corda_config", "lora_ga_config",  # of initialisations, see _INITIALISED
}  # fmt: skip
_INITIALISED = {True, False, None, "gaussian", "eva", "orthogonal"}  # others, such as pissa, change the model's weights
_MODULES = {  # modules of transformers -> matrices of the model's shape
    "q_proj": ("q",), "k_proj": ("k",), "v_proj": ("v",), "qkv_proj": ("q", "k", "v"),
    "o_proj": ("o",), "out_proj": ("o",), "dense": ("o",),
    "gate_proj": ("gate",), "up_proj": ("up",), "gate_up_proj": ("gate", "up"), "down_proj": ("down",),
    "fc1": ("up",), "fc2": ("down",), "fc_in": ("up",), "fc_out": ("down",), "c_fc": ("up",),
    "dense_h_to_4h": ("up",), "dense_4h_to_h": ("down",), "w1": ("gate",), "w3": ("up",), "w2": ("down",),
    "Wi": ("gate", "up"), "input_linear": ("gate", "up"), "output_linear": ("down",),
    "query_key_value": ("q", "k", "v"), "c_attn": ("q", "k", "v"), "Wqkv": ("q", "k", "v"),
}  # fmt: skip
_EITHER = {"c_proj", "Wo"}  # of attention or of the MLP, by the module that they lie in


def matrices_of(parents: str, module: str) -> tuple[str, ...] | None:
    """The matrices of the model's shape that a module of a decoder layer stores; None if its name does not tell.

    Args:
        parents: dotted names of the modules within the layer that it lies in.
        module: its own name.
    """
    if module in _EITHER:
        return ("o",) if "attn" in parents else ("down",)
    return _MODULES.get(module)


class Adapter(NamedTuple):
    """Facts about an adapter, without its weights.

    Attributes:
        folder: folder of the adapter.
        rank: rank of its matrices.
        parameters: number of parameters of all its matrices.
        mlp_parameters: number of those that belong to the MLP.
        sha256: of the file of its weights.
        about: description by ``hwsim train lora``; empty for other adapters.
        merged: assume that its product is added to the model's weights, so that it costs no bytes of its own.
    """

    folder: Path
    rank: int
    parameters: int
    mlp_parameters: int
    sha256: str
    about: dict[str, Any]
    merged: bool = False

    @property
    def counted(self) -> int:
        """Parameters that lie in DRAM and are read at every token, in addition to the model's own."""
        return 0 if self.merged else self.parameters

    @property
    def counted_mlp(self) -> int:
        """The part of `counted` that belongs to the MLP and counts in its density."""
        return 0 if self.merged else self.mlp_parameters

    def provenance(self) -> dict[str, Any]:
        """Facts for the provenance of a result, without paths."""
        trained = {key: self.about[key] for key in ("policy", "text", "tokens") if key in self.about}
        return {
            "name": self.folder.name, "sha256": self.sha256, "rank": self.rank, "parameters": self.parameters,
            "merged": self.merged, "trained": trained,
        }  # fmt: skip


def read_adapter(folder: Path, model: ModelShape, *, merged: bool = False) -> Adapter:
    """Read the facts of an adapter, and check that it fits a model.

    Raises:
        SettingError: it is missing or damaged, adapts other modules than linear layers, or belongs to another model.
    """
    where = f"--lora {folder}"
    config = _json(folder / CONFIG, where)
    if config.get("peft_type") != "LORA":
        raise SettingError(f"{where}: {CONFIG} says {config.get('peft_type')!r}; it must be a LORA adapter of peft")
    rank = config.get("r")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise SettingError(f"{where}: {CONFIG} has r={rank!r}; it must be a whole number from 1")
    _check_fields(config, where)
    weights = folder / WEIGHTS
    shapes = _shapes(weights, where)
    parameters = of_mlp = 0
    for name, shape in shapes.items():
        stored = _check(name, shape, rank, model, where)
        parameters += shape[0] * shape[1]
        of_mlp += shape[0] * shape[1] if set(stored) & set(MLP) else 0
    about = _json(folder / ABOUT, where) if (folder / ABOUT).exists() else {}
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Adapter(folder, rank, parameters, of_mlp, digest, about, merged)


def _check_fields(config: dict[str, Any], where: str) -> None:
    """Refuse fields of peft's LoraConfig that make something else of an adapter than hwsim and peft compute here."""
    odd = sorted(key for key, value in config.items() if value and key not in _APPLIED)
    if config.get("bias") not in (None, "none"):
        odd.append("bias")
    if odd:
        raise SettingError(
            f"{where}: {CONFIG} has {odd[0]}; hwsim knows plain LoRA of one rank, without biases; merge the adapter "
            "into the model instead (peft's merge_and_unload) and give the merged model"
        )
    start = config.get("init_lora_weights")
    if not isinstance(start, bool | str | None) or start not in _INITIALISED:
        raise SettingError(
            f"{where}: {CONFIG} has init_lora_weights={start!r}, which changes the model's own weights; convert the "
            "adapter (peft's save_pretrained with path_initial_model_for_weight_conversion), or merge it into the model"
        )
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise SettingError(f"{where}: {CONFIG} has task_type={config['task_type']!r}; it must be CAUSAL_LM")


def _json(path: Path, where: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(
            f"{where}: {path.name} cannot be read: {error.strerror}; give a folder of `hwsim train lora` or of peft"
        ) from error
    except ValueError as error:
        raise SettingError(f"{where}: {path.name} is damaged: no JSON text") from error
    if not isinstance(content, dict):
        raise SettingError(f"{where}: {path.name} must hold a JSON object")
    return content


def _shapes(path: Path, where: str) -> dict[str, tuple[int, int]]:
    """Names and shapes of the tensors, from the header of the safetensors file."""
    damaged = SettingError(f"{where}: {path.name} is damaged, or no safetensors file")
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_LONGEST_HEADER, path.stat().st_size - 8):
                raise damaged
            header = json.loads(file.read(length))
            tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
            types = {name: str(entry["dtype"]) for name, entry in tensors.items()}
            shapes = {name: (int(entry["shape"][0]), int(entry["shape"][1])) for name, entry in tensors.items()}
            end = max(int(entry["data_offsets"][1]) for entry in tensors.values())
    except OSError as error:
        raise SettingError(
            f"{where}: {path.name} cannot be read: {error.strerror}; peft's save_pretrained writes it"
        ) from error
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise damaged from error
    if path.stat().st_size != 8 + length + end:
        raise damaged
    if packed := sorted(name for name, kind in types.items() if kind not in _FLOATS):
        raise SettingError(
            f"{where}: {path.name}: {packed[0]} has the type {types[packed[0]]}; hwsim knows float weights only; save "
            "the adapter as float16 or float32"
        )
    return shapes


def _check(name: str, shape: tuple[int, int], rank: int, model: ModelShape, where: str) -> tuple[str, ...]:
    """Check that one tensor fits the model; returns the matrices that its module stores."""
    match = _NAME.search(name)
    stored = matrices_of(match[2], match[3]) if match else None
    if match is None or stored is None:
        raise SettingError(
            f"{where}: {name}: hwsim knows adapters of a decoder layer's q, k, v, o and MLP only; merge this one into "
            "the model (peft's merge_and_unload) and give the merged model"
        )
    layer, part = int(match[1]), match[4]
    own = 0 if part == "A" else 1
    if shape[own] != rank:
        raise SettingError(
            f"{where}: {name} has rank {shape[own]}, {CONFIG} says r={rank}; they belong to two adapters"
        )
    matrices = model.matrices(layer) if layer < model.num_hidden_layers else {}
    parts = [matrices[matrix] for matrix in stored if matrix in matrices]
    size = _outer(parts, part)
    if not parts or shape[1 - own] != size:
        raise SettingError(
            f"{where}: {name} is {list(shape)}, which does not fit {model.name} "
            f"({model.num_hidden_layers} layers, hidden {model.hidden_size}, intermediate {model.intermediate_size}); "
            "it was trained for another model"
        )
    return stored


def _outer(parts: list[Matrix], part: str) -> int:
    """Number of a module's inputs (part A) or outputs (part B); the outputs of fused matrices add up."""
    return parts[0].columns if parts and part == "A" else sum(matrix.rows for matrix in parts)

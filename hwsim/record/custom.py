"""Code that a model brings along: it runs only where the user trusts it, and provenance tells it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from hwsim.errors import ModelError
from hwsim.record.sources import Source

_USED = ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")  # the entries of auto_map that hwsim loads


def custom_classes(source: Source) -> list[str]:
    """The classes of its own code that a model's folder names, each ``module.Class``, for what hwsim loads."""
    if source.gguf:
        return []
    classes: dict[str, None] = {}
    for file in ("config.json", "tokenizer_config.json"):
        auto_map = _read(source, file).get("auto_map")
        if isinstance(auto_map, list | tuple):  # of old tokenizers
            auto_map = {"AutoTokenizer": auto_map}
        classes |= dict.fromkeys(named_classes(auto_map, _USED))
    return list(classes)


def named_classes(auto_map: Any, entries: Sequence[str]) -> list[str]:
    """The classes, each ``module.Class``, that the given entries of an `auto_map` name; it may be damaged or None."""
    classes: dict[str, None] = {}
    for entry in entries:
        named = auto_map.get(entry) if isinstance(auto_map, dict) else None
        names = named if isinstance(named, list | tuple) else [named]
        classes |= dict.fromkeys(str(name) for name in names if name)
    return list(classes)


def unknown_classes(classes: list[str], kind: object, transformers: Any) -> list[str]:
    """Those of the `classes` that transformers does not have; `kind` is the model_type of the configuration."""
    known = kind in transformers.CONFIG_MAPPING
    return [name for name in classes if not (known and hasattr(transformers, name.rpartition(".")[2]))]


def check_code(source: Source, transformers: Any) -> None:
    """Refuse a model whose own code would be needed but is not trusted.

    A class that transformers has under the same name needs no code of the model: many checkpoints bring along the code
    from before transformers knew their kind.

    Raises:
        ModelError: the code is not trusted, or lies in another repository than the model.
    """
    classes = custom_classes(source)
    if source.trusted:
        if elsewhere := [name for name in classes if "--" in name]:
            repository, _, own = elsewhere[0].partition("--")
            raise ModelError(
                f"--model {source.name}: auto_map names code of another repository, {repository}; copy its files *.py "
                f"into the model's folder and write {own} in auto_map"
            )
        return
    needed = unknown_classes(classes, _read(source, "config.json").get("model_type"), transformers)
    if needed:
        raise ModelError(
            f"--model {source.name}: {source.origin} needs code of its own, {needed[0]}, and hwsim runs none unasked; "
            "read that code, and give --trust-remote-code to run it"
        )


def code_provenance(source: Source) -> dict[str, Any]:
    """What a result tells of a model's own code: empty if none is used, else its classes and the hash of all its files.

    The hash is the SHA-256 over the names and contents of all ``*.py`` of the folder.
    """
    classes = custom_classes(source) if source.trusted else []
    if not classes:
        return {}
    digest = hashlib.sha256()
    for path in sorted(source.folder.rglob("*.py")):
        name = path.relative_to(source.folder).as_posix()
        digest.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return {"custom_code": {"classes": classes, "sha256": digest.hexdigest()}}


def fill_buffers(model: Any, config: Any, transformers: Any) -> None:
    """Compute the buffers that no file holds, such as rotary frequencies, of a model of its own code.

    transformers makes a model without memory before it loads the weights. Then it computes such buffers anew for its
    own modules only; those of others would hold what happens to be in memory.
    """
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        made = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    for name, buffer in made.named_non_persistent_buffers():
        model.get_buffer(name).copy_(buffer)


def _read(source: Source, file: str) -> dict[str, Any]:
    """A file of JSON in a model's folder; empty if it is missing or damaged, which transformers reports."""
    try:
        content = json.loads((source.folder / file).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}

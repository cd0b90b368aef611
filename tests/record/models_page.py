"""The page of models in the documentation, made of the architectures that are tested.

``python -m tests.record.models_page`` writes it anew.
"""

from __future__ import annotations

from typing import Any

from hwsim.record.inventory import Inventory
from tests.conftest import REPOSITORY
from tests.record.architectures import CONFIGS, REFUSED, make_architecture

PAGE = REPOSITORY / "docs" / "reference" / "models.md"

_HEAD = """# Models

`hwsim record`, `eval`, `generate`, `tune` and `train` take any causal language model that transformers can load.
hwsim does not go by a list of names. It counts the parameters of the model itself, follows one forward pass through
its modules, and tries each MLP on random numbers. It refuses a model that it cannot count in full, in one line. How it
counts: [the model](../explanation/model.md#what-is-counted).

Each kind below is tested with a tiny random checkpoint against transformers itself: parameters, KV entries, recorded
signals, losses, masks of columns and rows, and decoding token by token. Other kinds of decoders usually work, too.

| kind | class | layers | MLP | also counted |
|---|---|---|---|---|
"""

_REFUSED = """
## Refused

Kinds of which a tiny checkpoint is refused, with the reason:

| kind | reason |
|---|---|
"""


def row(name: str, inventory: Inventory, model: Any) -> str:
    """The row of an architecture."""
    shape = inventory.shape
    kinds = dict.fromkeys(layer.attention + (f" of {layer.window}" if layer.window else "") for layer in shape.by_layer)
    mlp = next(part.mlp for part in inventory.parts if part.mlp)
    words = ["gated" if shape.gated else "no gate"]
    words += ["fused"] if mlp.fused else []
    words += ["a norm before down"] if mlp.inner else []
    widths = {layer.intermediate_size for layer in shape.by_layer}
    words += ["not in all layers"] if 0 in widths else []
    words += ["of several widths"] if len(widths - {0}) > 1 else []
    others = {
        "an LM head of its own width": shape.lm_head_parameters is not None,
        "matrices outside the layers": shape.outside_parameters,
        "rows of embeddings for each layer": shape.embedding_row,
    }
    also = ", ".join(text for text, there in others.items() if there)
    return f"| `{name}` | {type(model).__name__} | {', '.join(kinds)} | {', '.join(words)} | {also} |"


def refusal(kind: str) -> str:
    """The row of a kind that is refused."""
    return f"| `{kind}` | {REFUSED[kind][0]} |"


def write() -> None:
    """Write the page."""
    import torch

    from hwsim.record.extras import libraries
    from hwsim.record.inventory import take_inventory

    libraries()
    rows = []
    for name in CONFIGS:
        model = make_architecture(name)
        rows.append(row(name, take_inventory(model, name, torch), model))
    refusals = [refusal(kind) for kind in REFUSED]
    PAGE.write_text(_HEAD + "\n".join(rows) + "\n" + _REFUSED + "\n".join(refusals) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()

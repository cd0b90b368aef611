"""The page of models in the documentation, made of the architectures that are tested.

``python -m tests.record.models_page`` writes it anew.
"""

from __future__ import annotations

from typing import Any

from hwsim.record.inventory import Inventory
from tests.conftest import REPOSITORY
from tests.record.architectures import CONFIGS, REFUSED, make_architecture
from tests.record.mixtures import MIXTURES, make_mixture

PAGE = REPOSITORY / "docs" / "reference" / "models.md"

_HEAD = """# Models

`hwsim record`, `eval`, `generate`, `tune` and `train` take any causal language model that transformers can load.
hwsim does not go by a list of names. It counts the parameters of the model itself, follows one forward pass through
its modules, and tries each MLP and the experts of each layer on random numbers. It refuses a model that it cannot count
in full, in one line. How it counts: [the model](../explanation/model.md#what-is-counted).

Each kind below is tested with a tiny random checkpoint against transformers itself: parameters, KV entries, recorded
signals, losses, masks of columns and rows, and decoding token by token. Other kinds of decoders usually work, too.

| kind | class | layers | MLP | also counted |
|---|---|---|---|---|
"""

_MIXTURES = """
## Mixtures of experts

Tested in the same way: number, width and weights of experts, the router's logits, ids, weights, inputs and glu of the
chosen experts, and the rule by which weights follow from logits. Without a rule, a policy can only leave out experts
that the model has chosen.

| kind | class | layers | experts of the tiny model | router's weights | also |
|---|---|---|---|---|---|
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


def mixture_row(name: str, inventory: Inventory, model: Any) -> str:
    """The row of a mixture of experts."""
    shape, made = inventory.shape, MIXTURES[name]
    experts = shape.experts
    assert experts is not None
    weights = next(part.experts.weights for part in inventory.parts if part.experts)
    kinds = dict.fromkeys(layer.attention + (f" of {layer.window}" if layer.window else "") for layer in shape.by_layer)
    words = [f"{experts.used} of {experts.count}", "gated" if experts.gated else "no gate"]
    words += ["gate and up alternate"] if weights.layout.startswith("pairs") else []
    words += ["biases"] if any(weights.biases) else []
    words += [f"read vectors of {experts.input_size} numbers"] if experts.input_size else []
    score, divided = made.rule or ("no rule", False)
    rule = score + (" / sum" if divided else "") + (" x scale" if made.scale != 1 else "")
    gate = " with a sigmoid gate" if experts.shared_gate else ""
    others = {
        "shared experts" + gate: experts.shared_parameters,
        "a dense MLP beside them": made.dense,
        "dense layers": any(layer.intermediate_size and not layer.experts for layer in shape.by_layer),
    }
    also = ", ".join(text for text, there in others.items() if there)
    return f"| `{name}` | {type(model).__name__} | {', '.join(kinds)} | {', '.join(words)} | {rule} | {also} |"


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
    mixtures = []
    for name in MIXTURES:
        model = make_mixture(name)
        mixtures.append(mixture_row(name, take_inventory(model, name, torch), model))
    tables = (_HEAD, rows), (_MIXTURES, mixtures), (_REFUSED, [refusal(kind) for kind in REFUSED])
    PAGE.write_text("".join(head + "\n".join(lines) + "\n" for head, lines in tables), encoding="utf-8")


if __name__ == "__main__":
    write()

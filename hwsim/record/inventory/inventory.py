"""The inventory of a model: each parameter is counted, or named as one that no token reads as a matrix."""

from __future__ import annotations

from typing import Any, NamedTuple

from hwsim.errors import ModelError
from hwsim.model.layers import LayerShape
from hwsim.model.shape import ModelShape
from hwsim.record.inventory.attention import KVOfLayer, Projections, find_projections, kv_of_layers
from hwsim.record.inventory.experts import FoundExperts, find_experts, refuse_experts, shared_reader
from hwsim.record.inventory.matrices import matrix_modules
from hwsim.record.inventory.mlp import MLP_NAMES, Mlp, find_mlp
from hwsim.record.inventory.reading import TOKENS, Reads, read_once

_ACTS = ("hidden_activation", "hidden_act", "activation_function", "mlp_hidden_act")


class LayerParts(NamedTuple):
    """The modules of one decoder layer that signals are taken from and masks are applied to, by name.

    Attributes:
        mlp: the MLP; None if the layer has none.
        attention: the matrices of plain attention; None for any other kind.
        experts: the experts; None in a dense layer.
    """

    mlp: Mlp | None
    attention: Projections | None
    experts: FoundExperts | None = None


class Counted(NamedTuple):
    """What a parameter is counted as.

    Attributes:
        layer: number of its layer; None: outside the layers.
        matrices: names as in `hwsim.model.shape.PART_OF`, each with the number of weights that the parameter has of it;
            a fused one has several. Of a table that rows are looked up in, the number of a row.
    """

    layer: int | None
    matrices: tuple[tuple[str, int], ...]


class Inventory(NamedTuple):
    """What a model has.

    Attributes:
        shape: its layers, matrices and KV entries.
        layers_name: name of the list of decoder layers among the model's modules.
        parts: the modules of each layer.
        uncounted: numbers of parameters that are not counted, by the reason: norms, biases and scales; embeddings, of
            which a token reads one row; what a text never uses, such as a vision tower.
        counted: what each parameter is counted as, by its name in the model; without those in `uncounted`, except
            tables of which a row counts.
    """

    shape: ModelShape
    layers_name: str
    parts: list[LayerParts]
    uncounted: dict[str, int]
    counted: dict[str, Counted]


def take_inventory(model: Any, name: str, torch: Any) -> Inventory:
    """Take the inventory of a model.

    Args:
        model: a causal language model of transformers; its weights may be on the meta device.
        name: what results call the model.
        torch: the library.

    Raises:
        ModelError: the model is not a decoder that hwsim knows, or has parameters that it cannot account for.
    """
    kind = type(model).__name__
    try:
        reads = read_once(model, torch)
    except ModelError:
        refuse_experts(model, kind)
        raise
    layers_name, layers = _decoder_layers(model, reads, kind)
    hidden = _hidden_size(model, layers)
    _refuse_repeats(reads, layers_name, len(layers), kind)
    kv = kv_of_layers(layers, reads.cache, kind)
    parts = [
        _parts(layer, f"{layers_name}.{number}", hidden, kv[number], reads, torch)
        for number, layer in enumerate(layers)
    ]
    if not any(part.mlp or part.experts for part in parts):
        raise ModelError(_no_mlp(layers[0], f"{layers_name}.0"))
    for number, (layer, part) in enumerate(zip(layers, parts, strict=True)):
        if part.mlp is None and part.experts is None and _looks_like_mlp(layer, f"{layers_name}.{number}", reads):
            raise ModelError(_no_mlp(layer, f"{layers_name}.{number}"))
    _check_calls(reads, layers_name, parts, kind)
    uncounted, counted = _sort(model, reads, layers_name, parts, hidden)
    shape = _shape(name, model, hidden, parts, kv, counted)
    total = sum(parameter.numel() for parameter in model.parameters())
    check_sum(shape, uncounted, total, kind)
    return Inventory(shape, layers_name, parts, uncounted, counted)


# ---------------------------------------------------------------------- the layers


def _decoder_layers(model: Any, reads: Reads, kind: str) -> tuple[str, Any]:
    """The list of decoder layers: of all lists whose modules ran, the one with the most parameters that were read."""
    used = {name for name, _ in model.named_parameters() if name in reads}
    lists = {
        name: sum(parameter.numel() for key, parameter in module.named_parameters() if f"{name}.{key}" in used)
        for name, module in model.named_modules()
        if type(module).__name__ == "ModuleList"
        # a text skips layers that look at an image
        and any(f"{name}.{index}" in reads.calls for index in range(len(module)))
    }
    lists = {name: size for name, size in lists.items() if size}
    if not lists:
        raise ModelError(f"{kind}: has no list of decoder layers that a text runs through; choose a decoder")
    name = max(lists, key=lists.__getitem__)
    return name, model.get_submodule(name)


def _hidden_size(model: Any, layers: Any) -> int:
    """Width of the hidden states: the number of inputs of most matrices."""
    config = model.config.get_text_config()
    for key in ("hidden_size", "n_embd", "d_model", "dim"):
        if isinstance(size := getattr(config, key, None), int):
            return size
    sizes = [matrix.inputs for layer in layers for matrix in matrix_modules(layer)]
    return max(set(sizes), key=sizes.count)


def _parts(layer: Any, where: str, hidden: int, kv: KVOfLayer, reads: Reads, torch: Any) -> LayerParts:
    def read(name: str) -> bool:
        return f"{where}.{name}.weight" in reads

    experts = find_experts(layer, where, hidden, reads, torch)
    mlp = find_mlp(layer, hidden, shared_reader(experts, read), torch)
    if experts and mlp and not (mlp.known and "." in mlp.up):
        mlp = None  # two matrices that only have the sizes of one
    taken = [*(mlp.names() if mlp else []), *(experts.shared if experts else [])]
    return LayerParts(mlp, find_projections(layer, hidden, kv, taken), experts)


def _looks_like_mlp(layer: Any, where: str, reads: Reads) -> bool:
    """Whether a layer in which no MLP was found multiplies by matrices of a module that is called an MLP."""
    return any(
        any(part in matrix.name.lower() for part in MLP_NAMES) and f"{where}.{matrix.name}.weight" in reads
        for matrix in matrix_modules(layer)
    )


def _no_mlp(layer: Any, where: str) -> str:
    matrices = ", ".join(f"{matrix.name} {matrix.inputs}x{matrix.outputs}" for matrix in matrix_modules(layer))
    return (
        f"{where} ({type(layer).__name__}): has no MLP that hwsim knows, which is one or two matrices to n "
        f"neurons and one back; its matrices are {matrices[:200] or 'none'}; choose another model"
    )


def _refuse_repeats(reads: Reads, layers_name: str, count: int, kind: str) -> None:
    """Refuse a model that runs a layer, or a part of one, more than once for each token."""
    times = {f"{layers_name}.{number}": reads.calls.get(f"{layers_name}.{number}", 0) for number in range(count)}
    times |= {name: len(items) for name, items in reads.within.items()}
    name = max(times, key=times.__getitem__)
    if times[name] > 1:
        raise ModelError(
            f"{name}: {kind} uses it {times[name]} times for each token; hwsim counts one read of each matrix; choose "
            "a model that does not repeat its layers"
        )


def _check_calls(reads: Reads, layers_name: str, parts: list[LayerParts], kind: str) -> None:
    """Refuse an MLP that does not see each token once."""
    for number, part in enumerate(parts):
        for name in part.mlp.names() if part.mlp else ():
            module = f"{layers_name}.{number}.{name}"
            calls, rows = reads.products.get(f"{module}.weight", 1), reads.rows.get(module, TOKENS)
            if calls > 1 or rows != TOKENS:
                raise ModelError(
                    f"{module}: {kind} multiplies by it {calls} times for a text, with {rows} vectors for {TOKENS} "
                    "tokens; hwsim knows MLPs that see each token once; choose another model"
                )


# ---------------------------------------------------------------------- the sums


def _sort(
    model: Any, reads: Reads, layers_name: str, parts: list[LayerParts], hidden: int
) -> tuple[dict[str, int], dict[str, Counted]]:
    """Sort all parameters.

    Returns:
        Numbers of those that are not counted, by the reason; and what the others are counted as, by their names.
    """
    uncounted: dict[str, int] = {}
    counted: dict[str, Counted] = {}
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None:
        raise ModelError(f"{type(model).__name__}: has no LM head, so it cannot be a causal language model")
    cut = {
        f"{layers_name}.{number}.{module}.weight": names
        for number, part in enumerate(parts)
        for module, names in _cut(part).items()
    }
    biases: set[str] = set()
    for number, part in enumerate(parts):
        if part.experts:
            start = f"{layers_name}.{number}."
            cut |= {start + name: names for name, names in part.experts.names().items()}
            biases |= {start + name for name in part.experts.biases()}

    def leave(reason: str, count: int) -> None:
        uncounted[reason] = uncounted.get(reason, 0) + count

    for name, parameter in model.named_parameters():
        count = int(parameter.numel())
        if parameter is head.weight:  # the LM head reads all of it
            counted[name] = Counted(None, (("lm_head", count),))
        elif name not in reads:
            leave("never used by a text", count)
        elif parameter.ndim < 2 or name in biases or _one_row(name, parameter, reads):
            leave("norms, biases and scales", count)
        elif name in reads.looked_up and name not in reads.products and name not in reads.other:
            leave("embeddings, of which a token reads a row", count)
            width = int(parameter.shape[-1])
            # tables of positions have the width of the hidden states, and count as the embedding does: not
            if parameter is not table.weight and width != hidden:
                counted[name] = Counted(None, (("embedding_row", width),))
        elif name.startswith(f"{layers_name}."):
            number = int(name[len(layers_name) + 1 :].partition(".")[0])
            counted[name] = Counted(number, _shares(cut.get(name, ["other"]), count, parts[number]))
        else:
            counted[name] = Counted(None, (("outside", count),))
    return {reason: count for reason, count in uncounted.items() if count}, counted


def _one_row(name: str, parameter: Any, reads: Reads) -> bool:
    """Whether a parameter is a vector that is stored as a matrix of one row, and enters no product."""
    return name not in reads.products and name not in reads.looked_up and parameter.numel() == max(parameter.shape)


def _cut(part: LayerParts) -> dict[str, list[str]]:
    """The modules of a layer whose matrices a policy can cut, each with the names of its matrices."""
    modules: dict[str, list[str]] = {}
    if part.attention:
        for name in ("query", "key", "value", "out"):
            modules.setdefault(getattr(part.attention, name), []).append(name[0])
    if part.mlp:
        modules[part.mlp.up] = ["gate", "up"] if part.mlp.fused else ["up"]
        modules[part.mlp.down] = ["down"]
        if part.mlp.gate:
            modules[part.mlp.gate] = ["gate"]
    return modules


def _shares(names: list[str], count: int, part: LayerParts) -> tuple[tuple[str, int], ...]:
    """The weights of each matrix in one parameter: halves of gate and up, and rows by the heads of q, k and v."""
    heads = dict.fromkeys(names, 1)
    if part.attention and "k" in names and len(names) > 1:
        heads |= {"q": part.attention.heads, "k": part.attention.key_value_heads, "v": part.attention.key_value_heads}
    return tuple((name, count * heads[name] // sum(heads.values())) for name in names)


def _sum(counted: dict[str, Counted], name: str, layer: int | None = None) -> int:
    """Weights of all matrices of a name, in a layer or outside."""
    return sum(count for own in counted.values() if own.layer == layer for key, count in own.matrices if key == name)


def _shape(
    name: str,
    model: Any,
    hidden: int,
    parts: list[LayerParts],
    kv: list[KVOfLayer],
    counted: dict[str, Counted],
) -> ModelShape:
    """The shape; what is as in a plain decoder is left out."""
    config = model.config.get_text_config()
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    mlps = [part.mlp for part in parts if part.mlp]
    widest = max((mlp.neurons for mlp in mlps), default=0)
    gated = {mlp.gated for mlp in mlps} or {part.experts.shape.gated for part in parts if part.experts}
    if len(gated) > 1:
        raise ModelError(f"{type(model).__name__}: some of its MLPs have a gate and others none; choose another model")
    heads, pairs, size = _heads(config, parts, hidden)
    fields: dict[str, Any] = {
        "name": name,
        "num_hidden_layers": len(parts),
        "hidden_size": hidden,
        "intermediate_size": widest,
        "num_attention_heads": heads,
        "num_key_value_heads": pairs,
        "head_dim": size,
        "vocab_size": int(table.weight.shape[0]),
        "tie_word_embeddings": head.weight is table.weight,
        "hidden_act": next((act for key in _ACTS if isinstance(act := getattr(config, key, None), str)), "unknown"),
        "gated": gated.pop(),
        "outside_parameters": _sum(counted, "outside"),
        "embedding_row": _sum(counted, "embedding_row"),
        "inner_norm": any(mlp.inner for mlp in mlps),
    }
    if head.weight.numel() != table.weight.shape[0] * hidden:
        fields["lm_head_parameters"] = int(head.weight.numel())
    total_heads = getattr(config, "num_attention_heads", None)
    others = [0] * len(parts)  # weights of matrices that no policy cuts
    for own in counted.values():
        for key, count in own.matrices:
            if own.layer is not None and key == "other":
                others[own.layer] += count
    layers = [
        _layer(number, part, kv, others[number], total_heads if isinstance(total_heads, int) else heads)
        for number, part in enumerate(parts)
    ]
    if widest:
        plain = ModelShape(**fields)
        if tuple(layers) == plain.by_layer:
            return plain
    return ModelShape(**fields, layers=tuple(layers))


def _heads(config: Any, parts: list[LayerParts], hidden: int) -> tuple[int, int, int]:
    """Heads, KV heads and their size: of the first layer with plain attention, else what the configuration says."""
    found = next((part.attention for part in parts if part.attention), None)
    if found is not None:
        return found.heads, found.key_value_heads, found.head_dim
    heads = getattr(config, "num_attention_heads", None)
    heads = heads if isinstance(heads, int) and heads > 0 else 1
    pairs = getattr(config, "num_key_value_heads", None)
    pairs = pairs if isinstance(pairs, int) and pairs > 0 and heads % pairs == 0 else heads
    size = getattr(config, "head_dim", None)
    return heads, pairs, size if isinstance(size, int) and size > 0 else max(1, hidden // heads)


def _layer(number: int, part: LayerParts, kv: list[KVOfLayer], others: int, heads: int) -> LayerShape:
    """The shape of one layer.

    Args:
        number: of the layer.
        part: its modules.
        kv: KV entries and states of all layers.
        others: weights of its matrices that no policy cuts.
        heads: heads of attention that has no matrices q, k, v and o.
    """
    own, attention = kv[number], part.attention
    read = own if own.source is None else kv[own.source]
    latent = read.keys != read.values and read.heads == 1
    kinds = list(own.states)[-1:]  # a recurrent state comes with a convolution of its own
    if own.source is not None:
        kinds.insert(0, "shared")
    elif own.keys:
        kinds.insert(0, "latent" if latent else "full" if own.window is None else "window")
    if attention is not None:
        heads = attention.heads
    return LayerShape(
        attention="+".join(kinds) or "none",
        window=own.window,
        kv_elements=own.keys + own.values,
        kv_from=own.source,
        state_elements=sum(own.states.values()),
        macs_per_entry=_macs(read, heads, latent=latent),
        num_attention_heads=attention.heads if attention else 0,
        num_key_value_heads=attention.key_value_heads if attention else 0,
        head_dim=attention.head_dim if attention else 0,
        other_parameters=others,
        intermediate_size=part.mlp.neurons if part.mlp else 0,
        gated=part.mlp.gated if part.mlp else True,
        experts=part.experts.shape if part.experts else None,
    )


def _macs(read: KVOfLayer, heads: int, *, latent: bool) -> int:
    """Multiplications of one token's attention for each entry that it reads.

    Every head multiplies a key and adds up a value. With compressed entries, which hold a shared vector c and a
    rotated key r, it multiplies c and r and adds up c, after its matrices were absorbed into query and output.
    """
    if not read.keys:
        return 0
    if latent:
        return heads * (2 * max(read.keys, read.values) + min(read.keys, read.values))
    return heads * (read.keys + read.values) // read.heads


def check_sum(shape: ModelShape, uncounted: dict[str, int], total: int, kind: str) -> None:
    """Refuse a model whose counted parameters and named others are not all that it has.

    Raises:
        ModelError: some are missing or counted twice.
    """
    layers = range(shape.num_hidden_layers)
    counted = shape.all_mlp_parameters + sum(map(shape.attention_parameters, layers))
    counted += shape.head_parameters + shape.outside_parameters
    if counted + sum(uncounted.values()) != total:
        raise ModelError(
            f"{kind}: has {total} parameters, of which hwsim counts {counted} and names {sum(uncounted.values())} as "
            "never read in full; it cannot account for the rest; please report this model"
        )

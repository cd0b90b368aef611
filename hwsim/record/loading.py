"""Loading a model: first its structure without weights, then the weights, whole or layer by layer from disk."""

from __future__ import annotations

from typing import Any, NamedTuple

from hwsim.errors import ModelError, SettingError
from hwsim.model.shape import ModelShape
from hwsim.record.checkpoint import (
    check_complete,
    check_loaded,
    check_places,
    check_quantisation,
    check_scales,
    check_taken,
    place,
    read_tensors,
    that_matter,
)
from hwsim.record.custom import check_code, custom_classes, fill_buffers
from hwsim.record.extras import Libraries, no_bars, told_as
from hwsim.record.gguf_config import complete_config
from hwsim.record.gguf_file import check_tensors, check_whole
from hwsim.record.hooks import Layer, layers_of
from hwsim.record.inventory import Inventory, take_inventory
from hwsim.record.layerwise import load_layerwise
from hwsim.record.memory import available_bytes
from hwsim.record.sources import Source
from hwsim.util.units import show_size

_GGUF_PEAK = 2.2  # peak memory in units of the weights: transformers holds them twice while it converts
DTYPES = ("float32", "bfloat16", "float16")


class Structure(NamedTuple):
    """A model without its weights.

    Attributes:
        config: its configuration.
        inventory: what it has and what a token reads.
        loader: class of transformers that loads it, such as ``AutoModelForCausalLM``.
        outside: parameters outside the layers.
        layer_parameters: parameters of each layer.
        longest: tokens of the longest window that the model can read; None: unknown.
        empty: the model itself, on torch's meta device.
    """

    config: Any
    inventory: Inventory
    loader: Any
    outside: int
    layer_parameters: list[int]
    longest: int | None
    empty: Any

    @property
    def shape(self) -> ModelShape:
        """The shape of the model."""
        return self.inventory.shape

    @property
    def layers_name(self) -> str:
        """Name of the list of decoder layers among the model's modules."""
        return self.inventory.layers_name

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.outside + sum(self.layer_parameters)


def read_structure(source: Source, libraries: Libraries) -> Structure:
    """Read a model's configuration and take its inventory, without loading weights.

    Raises:
        ModelError: the configuration is damaged, the model is not supported, or its own code is not trusted.
    """
    check_code(source, libraries.transformers)
    with told_as(f"--model {source.name}: its configuration cannot be used"):
        if source.gguf:
            check_whole(source.name, source.weights[0])
        config = libraries.transformers.AutoConfig.from_pretrained(source.folder, **_options(source))
        if source.gguf:
            complete_config(source.weights[0], config)
        return structure_of(config, source.name, libraries, trusted=source.trusted)


def structure_of(config: Any, name: str, libraries: Libraries, *, trusted: bool = False) -> Structure:
    """The structure of the model that a configuration describes.

    Args:
        config: of transformers.
        name: what results call the model.
        libraries: torch and transformers.
        trusted: whether the code of the model's own folder may run.

    Raises:
        ModelError: the model is not supported.
    """
    loader = _loader(config, libraries.transformers)
    with libraries.torch.device("meta"):
        empty = loader.from_config(config, trust_remote_code=trusted).eval()
    inventory = take_inventory(empty, name, libraries.torch)
    inside = f"{inventory.layers_name}."
    outside = sum(parameter.numel() for key, parameter in empty.named_parameters() if not key.startswith(inside))
    layers = empty.get_submodule(inventory.layers_name)
    sizes = [sum(parameter.numel() for parameter in layer.parameters()) for layer in layers]
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    return Structure(config, inventory, loader, outside, sizes, longest, empty)


def _loader(config: Any, transformers: Any) -> Any:
    """The class that loads a model to generate text; a model that also sees images generates from text alone."""
    text, whole = transformers.AutoModelForCausalLM, transformers.AutoModelForImageTextToText
    nested = config.get_text_config() is not config or type(config) not in text._model_mapping
    # whole, as its checkpoints are; text refuses the types that it does not know
    return whole if nested and type(config) in whole._model_mapping else text


def _options(source: Source) -> dict[str, Any]:
    """Options of transformers' from_pretrained; without an answer to the question of trust, it would ask the user."""
    return {"trust_remote_code": source.trusted, **({"gguf_file": source.gguf} if source.gguf else {})}


def load_tokenizer(source: Source, libraries: Libraries) -> Any:
    """The model's tokenizer.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    with told_as(f"--model {source.name}: its tokenizer cannot be loaded"):
        tokenizer = libraries.transformers.AutoTokenizer.from_pretrained(source.folder, **_options(source))
        if source.gguf and _pre_tokenizer(source) == "smollm":
            # transformers treats every byte-level GGUF tokenizer as GPT-2's; SmolLM was trained on single digits
            from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

            steps = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
            tokenizer.backend_tokenizer.pre_tokenizer = Sequence(steps)
        return tokenizer


def _pre_tokenizer(source: Source) -> str:
    import gguf

    field = gguf.GGUFReader(source.weights[0]).get_field("tokenizer.ggml.pre")
    return str(field.contents()) if field else ""


def find_device(device: str, torch: Any) -> str:
    """The device of ``--device``, checked.

    Raises:
        SettingError: torch cannot use it on this machine.
    """
    try:
        torch.empty(0, device=device)
    except Exception as error:
        usable = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        raise SettingError(f"--device {device}: torch cannot use it here; usable: {', '.join(usable)}") from error
    return device


def find_dtype(dtype: str, device: str, structure: Structure) -> str:
    """The type to compute in: ``auto`` is float32 on a CPU, where it is the fastest, else the checkpoint's own."""
    if dtype != "auto":
        return dtype
    own = str(getattr(structure.config, "dtype", None) or "float32").removeprefix("torch.")
    return "float32" if device == "cpu" or own not in DTYPES else own


class Loaded(NamedTuple):
    """A model ready to run."""

    model: Any
    layers: list[Layer]
    inventory: Inventory
    from_disk: bool  # each forward pass reads the layers one by one


def load_model(
    source: Source, structure: Structure, libraries: Libraries, device: str, dtype: str, max_memory: int | None
) -> Loaded:
    """Load the weights; if they do not fit, leave the layers on disk and read each when it runs.

    Args:
        device: device that it runs on.
        dtype: torch's name of the type to compute in.
        max_memory: bytes that weights may take; None: the free memory.

    Raises:
        ModelError: weights are damaged or incomplete, or memory cannot even hold one layer.
    """
    torch = libraries.torch
    itemsize = torch.empty(0, dtype=getattr(torch, dtype)).element_size()
    free = _free(torch, device) if max_memory is None else max_memory
    need = structure.parameters * itemsize
    from_disk = need * (_GGUF_PEAK if source.gguf else 1) > free
    kind = getattr(torch, dtype)
    if elsewhere := getattr(structure.config, "transformers_weights", None):
        raise ModelError(
            f"--model {source.name}: config.json: transformers_weights {elsewhere}: hwsim reads model.safetensors or "
            "the shards of its index; give the file that name, and take the field out"
        )
    with told_as(f"--model {source.name}: its weights cannot be loaded"), no_bars():
        if from_disk:
            _check_from_disk(source, structure, itemsize, free, given=max_memory is not None)
            model = _from_disk(source, structure, libraries, kind, device)
        else:
            model = _whole(source, structure, libraries, kind, device)
        if source.trusted and custom_classes(source):
            fill_buffers(model, structure.config, libraries.transformers)
        if from_disk and (source.folder / "generation_config.json").is_file():  # transformers reads it with the weights
            model.generation_config = libraries.transformers.GenerationConfig.from_pretrained(source.folder)
        model.eval()
        return Loaded(model, layers_of(model, structure.inventory), structure.inventory, from_disk)


def _empty(source: Source, structure: Structure, libraries: Libraries, dtype: Any) -> Any:
    """The model on the meta device."""
    with libraries.torch.device("meta"):
        return structure.loader.from_config(structure.config, dtype=dtype, trust_remote_code=source.trusted)


def _from_disk(source: Source, structure: Structure, libraries: Libraries, dtype: Any, device: str) -> Any:
    """The model whose layers are read when they run."""
    check_quantisation(source.name, structure.config, from_disk=True)
    model, tensors = _empty(source, structure, libraries, dtype), read_tensors(source, libraries.torch)
    placed = place(source.name, model, tensors)
    check_places(source.name, model, tensors, placed)
    return load_layerwise(source.name, model, tensors, placed, structure.layers_name, dtype=dtype, device=device)


def _whole(source: Source, structure: Structure, libraries: Libraries, dtype: Any, device: str) -> Any:
    """The model with all weights in memory; whatever transformers would leave out in silence is refused."""
    options: dict[str, Any] = {"dtype": dtype, **_options(source)}
    if device != "cpu":
        options["device_map"] = {"": device}
    empty = _empty(source, structure, libraries, dtype)
    ties = dict(empty.all_tied_weights_keys)
    if source.gguf:
        check_tensors(source.name, source.weights[0], empty)
    else:
        tensors = read_tensors(source, libraries.torch)
        if check_quantisation(source.name, structure.config, from_disk=False):
            check_scales(source.name, tensors)
            options["quantization_config"] = libraries.transformers.FineGrainedFP8Config(dequantize=True)
        else:
            check_places(source.name, empty, tensors, place(source.name, empty, tensors))
    model, info = structure.loader.from_pretrained(
        source.folder, config=structure.config, output_loading_info=True, **options
    )
    check_complete(source.name, set(info["missing_keys"]))
    check_taken(source.name, that_matter(model, set(info["unexpected_keys"])))
    check_loaded(source.name, model, ties)
    return model


def _free(torch: Any, device: str) -> int:
    """Bytes that weights may take on a device."""
    return int(0.9 * torch.cuda.mem_get_info(device)[0]) if device.startswith("cuda") else available_bytes()


def _check_from_disk(source: Source, structure: Structure, itemsize: int, free: int, *, given: bool) -> None:
    """Refuse a model that cannot be loaded layer by layer; `given`: whether ``--max-memory`` set the limit `free`."""
    limit = f"--max-memory gives {show_size(free)}" if given else f"free are {show_size(free)}"
    way_out = "or give more" if given else "or a machine with more memory"
    if source.gguf:
        raise ModelError(
            f"--model {source.name}: needs {show_size(structure.parameters * itemsize * _GGUF_PEAK)}, {limit}, "
            "and a GGUF file cannot be loaded layer by layer; "
            f"{'give more, or' if given else 'give'} a folder of safetensors instead"
        )
    # experts that lie in the files one by one are read, then stacked
    copies = 2 if structure.shape.experts else 1
    least = (structure.outside + copies * max(structure.layer_parameters)) * itemsize
    if least > free:
        raise ModelError(
            f"--model {source.name}: even layer by layer it needs {show_size(least)}, {limit}; "
            f"choose a smaller --dtype, {way_out}"
        )
    if source.trusted and custom_classes(source):
        # nothing says which of its buffers a model's own code computes when it is made
        raise ModelError(
            f"--model {source.name}: does not fit into memory, {limit}, and a model of its own code cannot be loaded "
            f"layer by layer; choose a smaller --dtype, {way_out}"
        )
    if any(path.suffix == ".bin" for path in source.weights):
        raise ModelError(
            f"--model {source.name}: does not fit into memory, {limit}, and its weights are .bin files, which "
            "cannot be loaded layer by layer; save it anew with transformers' save_pretrained, as safetensors"
        )

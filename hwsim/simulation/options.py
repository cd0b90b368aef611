"""What a user chooses, in plain values, made into objects: for the command line, Python and sweeps alike."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from hwsim.cache.cache import CacheSetup
from hwsim.cache.unit_sets import read_units
from hwsim.errors import SettingError, UnitError, did_you_mean
from hwsim.memory.neuron_order import read_layout
from hwsim.memory.shares import Shares, parse_shares, read_shares, shares_file
from hwsim.model.shape import Bits
from hwsim.policy import Policy
from hwsim.prefetch import Prefetch
from hwsim.simulation.densities import Layered, read_densities
from hwsim.simulation.plugins import PREFETCHES, build, check_density
from hwsim.simulation.settings import Settings
from hwsim.timing.reads import ReadSetup
from hwsim.trace.synth import bundled
from hwsim.util.explain import problem
from hwsim.util.units import parse


def find_trace(name: str | Path) -> Path:
    """A file; ``sample`` stands for the trace that comes with hwsim where no file has that name."""
    return bundled() if str(name) == "sample" and not Path(name).exists() else Path(name)


def read_bits(text: str) -> Bits:
    """Read ``mlp=4.5,attention=4``; what is not named keeps its default.

    Raises:
        SettingError: an unknown part, or a number out of bounds.
    """
    values = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not part.strip():
            continue
        if not equals or not name.strip():
            raise SettingError(f"--bits {part}: write --bits key=value")
        values[name.strip()] = value.strip()
    for name in values:
        if name not in Bits.model_fields:
            raise SettingError(f"--bits {name}: no such part of a model{did_you_mean(name, Bits.model_fields)}")
    try:
        return Bits.model_validate(values)
    except ValidationError as error:
        found = problem(error)
        raise SettingError(f"--bits {found.field}={found.value}: {found.rule}") from error


def make_settings(
    *,
    dram: int | str | None = None,
    kv_tokens: int | None = None,
    bits: str | Bits = "",
    timing: str = "events",
    overlap: str = "none",
    seed: int = 0,
    per_token: bool = False,
    lora: str | Path | None = None,
    lora_merged: bool = False,
    cache_scope: str = "matrix",
    cache_shares: str | Path = "equal",
    block: int = 1,
    layout: str | Path | None = None,
    admission: str | None = None,
    pin: str | Path | None = None,
    warm: str | Path | None = None,
    bundle: bool = False,
    packed: bool = False,
    merge: int | str | None = None,
    gap: int | str = 0,
    prefetch: str | Path | Prefetch | None = None,
    prefetch_parameters: Mapping[str, Any] | None = None,
    fills: bool = False,
    engine: str | None = None,
    ignore: str | Sequence[str] = (),
    kv_window: int | None = None,
    prefill_chunk: int | None = None,
) -> Settings:
    """Settings by the names and values of the command line's options.

    Raises:
        HwsimError: one is impossible, or a file is missing or something else.
    """
    if lora_merged and lora is None:
        raise SettingError("--lora-merged: no adapter is given; give --lora FOLDER, too")
    shares = None
    if str(cache_shares) != "equal":
        text = str(cache_shares)
        if file := shares_file(text):
            shares = read_shares(file)
        else:
            shares = Shares(None, text) if text == "traffic" else parse_shares(text)
    pinned, warmed = (None if each is None else read_units(Path(each)) for each in (pin, warm))
    return Settings(
        dram=dram, kv_tokens=kv_tokens, bits=bits if isinstance(bits, Bits) else read_bits(bits),
        timing=timing, overlap=overlap, seed=seed, per_token=per_token,  # type: ignore[arg-type]
        lora=None if lora is None else Path(lora), lora_merged=lora_merged,
        cache_scope=cache_scope, cache_shares=shares, block=block,  # type: ignore[arg-type]
        neurons=None if layout is None else read_layout(Path(layout)),
        caches=CacheSetup(admission, pinned, warmed),  # type: ignore[arg-type]
        reads=ReadSetup(bundle, packed, _size("merge", merge), None if gap == "auto" else _size("gap", gap)),
        prefetch=_prefetch(prefetch, prefetch_parameters or {}), fills=fills, engine=engine,
        ignore=tuple(each.strip() for each in (ignore.split(",") if isinstance(ignore, str) else ignore) if each),
        kv_window=kv_window, prefill_chunk=prefill_chunk,
    )  # fmt: skip


def _size(option: str, value: int | str | None) -> int | None:
    """Bytes, or text such as 256KiB."""
    if not isinstance(value, str):
        return value
    try:
        return int(parse(value, "size")) if value.strip("0") else 0
    except UnitError as error:
        raise SettingError(f"--{option} {value}: {error}") from error


def _prefetch(rule: str | Path | Prefetch | None, parameters: Mapping[str, Any]) -> tuple[str, Prefetch] | None:
    """What guesses masks, by its name or file, with its parameters."""
    if rule is None:
        if parameters:
            raise SettingError(f"--set prefetch.{next(iter(parameters))}: nothing is read ahead; give --prefetch, too")
        return None
    return (type(rule).__name__, rule) if isinstance(rule, Prefetch) else PREFETCHES.make(str(rule), parameters)


def make_policy(
    name: str,
    kind: type[Policy],
    parameters: Mapping[str, Any],
    density: float | str | Path | list[float] | None = None,
) -> Policy:
    """A policy of a class, with its parameters.

    Args:
        name: what messages call it.
        kind: the class.
        parameters: its fields; text is read as the field's type. Of a field that is one number, a list has one for each
            layer.
        density: a number, a list or a file of one for each layer; None: its own.

    Raises:
        SettingError: a parameter is unknown or out of bounds, lists differ in length, or it takes no density.
    """
    values, by_layer, sources = dict(parameters), {}, []
    if density is not None:
        check_density(name, kind)
        if "density" in parameters:
            raise SettingError("--density and --set density=... both set the density; give one")
        if isinstance(density, str | Path):
            by_layer["density"] = read_densities(Path(density))
            sources.append(f"--density {density}")
        else:
            values["density"] = density
    for key, value in (
        parameters.items() if density is None else (*parameters.items(), ("density", values.get("density")))
    ):
        found = _by_layer(kind, key, value)
        if found is not None:
            by_layer[key] = found
            sources.append(f"--set {key}")
    if not by_layer:
        return build(kind, f"policy {name}", values)
    lengths = {len(each) for each in by_layer.values()}
    at = sources[0]
    if len(lengths) > 1:
        told = ", ".join(f"{key} {len(each)}" for key, each in by_layer.items())
        raise SettingError(f"{at}: lists of one value for each layer must have one length: {told}")
    copies = [
        build(
            kind, f"{at}: layer {layer}: policy {name}", values | {key: each[layer] for key, each in by_layer.items()}
        )
        for layer in range(lengths.pop())
    ]
    if not copies:
        raise SettingError(f"{at}: the list is empty; give one value for each layer")
    return Layered(layers=tuple(copies), source=at, named=tuple(by_layer))


def _by_layer(kind: type[Policy], key: str, value: Any) -> list[Any] | None:
    """The list that stands for a field of one number, or its text; None: it is something else."""
    field = kind.model_fields.get(key)
    if field is None or not {field.annotation, *get_args(field.annotation)} & {int, float}:
        return None
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return value if isinstance(value, list) else None


def takes_density(kind: type[Any]) -> bool:
    """Whether a policy has a density that can be chosen; that of `dense` has one value only."""
    field = kind.model_fields.get("density")
    if field is None:
        return False
    bounds = {name: getattr(rule, name) for rule in field.metadata for name in ("ge", "le") if hasattr(rule, name)}
    return "ge" not in bounds or bounds["ge"] != bounds.get("le")

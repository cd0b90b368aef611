"""Preparation of a recording: check and complete the settings, read the text, make the header."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import hwsim
from hwsim.errors import ModelError, SettingError, did_you_mean
from hwsim.model.shape import EXPERT_SIGNALS, ROUTER_AHEAD, SIGNALS
from hwsim.record.custom import code_provenance
from hwsim.record.extras import Libraries, libraries, require_extra
from hwsim.record.loading import (
    DTYPES,
    Loaded,
    Structure,
    find_device,
    find_dtype,
    load_model,
    load_tokenizer,
    read_structure,
)
from hwsim.record.sources import Source, find_source, weights_hash
from hwsim.record.stored import Found, find_stored
from hwsim.record.text import Text, find_text, read_windows
from hwsim.trace import FLOAT16, Encoding, Sequence, TraceHeader
from hwsim.trace.header import STORED_UNKNOWN
from hwsim.util.files import spare

Progress = Callable[[str, int, int], None]
"""Callback: receives (phase, steps done, steps in all)."""

_ALL_SIGNALS = (*SIGNALS, *EXPERT_SIGNALS, ROUTER_AHEAD)
_MOST_TOKENS = 10**12
_PASSING = {"transformers_version", "dtype", "torch_dtype"}  # fields of a configuration that decide no signal
_TOKENS_FROM_DISK = 4096  # tokens of one pass when each pass reads all layers from disk: enough to amortise the reads


@dataclass(frozen=True)
class Settings:
    """How to record.

    Attributes:
        tokens: how many tokens of the text.
        context: tokens of one window; each window is a sequence of its own.
        prompt: length of each window's prompt in tokens; the prompt is not decoded.
        signals: names; None: those that describe an MLP: input, up and gate, or input and glu without a gate; and
            router, experts, expert_weights and expert_input where a layer has experts.
        device: a device of torch.
        dtype: float32, bfloat16 or float16; auto: float32 on a CPU, else the checkpoint's own.
        max_memory: bytes that weights may take; None: the free memory.
        norms: also record the norms of the weights' columns, for policies that weigh by them.
        encoding: how the trace stores the signals.
        trust_remote_code: whether code that the model brings along may run.
    """

    tokens: int = 512
    context: int = 512
    prompt: int = 0
    signals: tuple[str, ...] | None = None
    device: str = "cpu"
    dtype: str = "auto"
    max_memory: int | None = None
    norms: bool = False
    encoding: Encoding = FLOAT16
    trust_remote_code: bool = False


class Prepared(NamedTuple):
    """Everything that a recording needs except the weights.

    Attributes:
        settings: with signals, device and dtype filled in.
        ids: the text's tokens, int32 ``[tokens]``.
        header: of the trace that is going to be recorded.
    """

    source: Source
    libraries: Libraries
    structure: Structure
    settings: Settings
    ids: np.ndarray
    header: TraceHeader

    def load(self, progress: Progress) -> Loaded:
        """Load the weights."""
        progress("loading weights", 0, 1)
        settings = self.settings
        loaded = load_model(
            self.source, self.structure, self.libraries, settings.device, settings.dtype, settings.max_memory
        )
        progress("loading weights", 1, 1)
        return loaded


def prepare(model: str, text: str, settings: Settings, progress: Progress, *, writes: Iterable[Path] = ()) -> Prepared:
    """Find and check the model, the text and the settings, and read everything except the weights.

    Args:
        model: as for `record`.
        text: as for `record`.
        settings: what to record.
        progress: callback, see `Progress`.
        writes: files that are going to be written; none of them may be a file that is read.

    Raises:
        HwsimError: the model or the text is not available, or a setting is impossible.
    """
    _check(settings)
    require_extra()
    source, words = find_source(model, settings.trust_remote_code), find_text(text)
    for target in writes:
        spare(target, [words.path, *_files(source)])
    progress("reading the model's configuration", 0, 1)
    used = libraries()
    structure = read_structure(source, used)
    settings = _resolve(settings, structure, used)
    progress("reading the model's configuration", 1, 1)
    progress("reading text and checking weights", 0, 1)
    ids, prefix = read_windows(words, load_tokenizer(source, used), settings.tokens, settings.context)
    if ids.max() >= structure.shape.vocab_size:
        raise ModelError(
            f"--model {source.name}: its tokenizer made token {ids.max()}, the model knows "
            f"{structure.shape.vocab_size}; they do not belong together"
        )
    header = _header(source, words, structure, settings, used, ids, prefix, find_stored(source, structure, used))
    progress("reading text and checking weights", 1, 1)
    return Prepared(source, used, structure, settings, ids, header)


def _files(source: Source) -> list[Path]:
    """The files that a model is read from: its GGUF file, or all of its folder except traces."""
    if source.gguf:
        return source.weights
    suffixes = (".npz", ".partial", ".progress.json")  # by hwsim, where it runs in the model's folder
    return [*source.weights, *(path for path in source.folder.iterdir() if not path.name.endswith(suffixes))]


def passes(done: int, settings: Settings, from_disk: bool, together: int = 1) -> Iterator[tuple[int, int, int]]:
    """The forward passes that remain, each (first token, windows, tokens of a window).

    Args:
        done: tokens that are recorded already.
        settings: of the recording.
        from_disk: each pass reads all layers from disk, so it takes many windows.
        together: windows of a pass where the text has so many.
    """
    together = max(together, _TOKENS_FROM_DISK // settings.context if from_disk else 1)
    start = done
    while start < settings.tokens:
        windows = min(together, (settings.tokens - start) // settings.context)
        length = settings.context if windows else settings.tokens - start
        yield start, max(1, windows), length
        start += max(1, windows) * length


def _check(settings: Settings) -> None:
    """Refuse impossible settings, as far as they show before torch is imported."""
    for name, least in (("tokens", 1), ("context", 1), ("prompt", 0)):
        if getattr(settings, name) < least:
            raise SettingError(f"--{name} {getattr(settings, name)}: must be at least {least}")
    if settings.tokens > _MOST_TOKENS:
        raise SettingError(f"--tokens {settings.tokens}: must be at most {_MOST_TOKENS}; no text has more")
    for signal in settings.signals or ():
        if signal not in _ALL_SIGNALS:
            raise SettingError(f"--signals {signal}: no such signal{did_you_mean(signal, _ALL_SIGNALS)}")
    if settings.dtype not in ("auto", *DTYPES):
        raise SettingError(f"--dtype {settings.dtype}: must be one of auto, {', '.join(DTYPES)}")
    shortest = settings.tokens % settings.context or min(settings.context, settings.tokens)
    if settings.prompt >= shortest:
        raise SettingError(
            f"--prompt {settings.prompt}: leaves nothing to decode of the shortest window, {shortest} tokens; "
            "give a shorter prompt, or make --tokens a multiple of --context"
        )


def _resolve(settings: Settings, structure: Structure, used: Libraries) -> Settings:
    """The settings with signals, device and dtype filled in for the model."""
    shape, longest = structure.shape, structure.longest
    if longest is not None and min(settings.context, settings.tokens) > longest:
        raise SettingError(f"--context {settings.context}: {shape.name} reads windows of at most {longest} tokens")
    signals = _signals(settings.signals, structure)
    ordered = tuple(signal for signal in _ALL_SIGNALS if signal in signals)
    if "expert_glu" in ordered and settings.encoding != FLOAT16:
        raise SettingError(f"--encoding {settings.encoding}: expert_glu is stored as float16; leave out one of the two")
    if settings.norms and not shape.layers_with("norm_down"):
        raise SettingError(f"--norms: all MLPs of {shape.name} are experts, which have no norms; leave it out")
    device = find_device(settings.device, used.torch)
    dtype = find_dtype(settings.dtype, device, structure)
    return replace(settings, signals=ordered, device=device, dtype=dtype)


def _signals(asked: tuple[str, ...] | None, structure: Structure) -> tuple[str, ...]:
    """The signals to record: those that were asked for, checked, or all that describe the MLP."""
    shape, mlps = structure.shape, [parts.mlp for parts in structure.inventory.parts if parts.mlp]
    unknown = next((mlp for mlp in mlps if not mlp.known), None)
    if asked is None:
        experts = EXPERT_SIGNALS[:-1] if shape.experts else ()
        if not mlps:
            return experts
        if not shape.gated or unknown:
            return ("input", "glu", *experts)
        return ("input", "up", "gate", *(["glu"] if shape.inner_norm else []), *experts)
    given = f"--signals {','.join(asked)}: {shape.name}"
    if {"up", "gate"} & set(asked):
        if not shape.gated:
            raise SettingError(f"{given} has no gate; it has input and glu, the activated output of up")
        if unknown:
            raise SettingError(f"{given}: {unknown.up}: {unknown.why}; give --signals input,glu")
    for signal in asked:
        if not shape.layers_with(signal):
            if signal == ROUTER_AHEAD and shape.experts:
                raise SettingError(
                    f"{given} has no layer with {signal}: no two layers with experts follow each other; leave it out"
                )
            if signal in (*EXPERT_SIGNALS, ROUTER_AHEAD):
                raise SettingError(f"{given} has no layer with {signal}: it is a dense model; leave {signal} out")
            if not mlps and signal in ("input", "up", "gate", "glu"):
                raise SettingError(
                    f"{given} has no layer with {signal}: all its MLPs are experts; give {','.join(EXPERT_SIGNALS)}"
                )
            kinds = ", ".join(sorted({layer.attention for layer in shape.by_layer}))
            raise SettingError(
                f"{given} has no layer with {signal}: its attention ({kinds}) has no matrices q, k, v and o of plain "
                f"sizes; leave {signal} out"
            )
    return asked


def _header(
    source: Source,
    words: Text,
    structure: Structure,
    settings: Settings,
    used: Libraries,
    ids: np.ndarray,
    prefix: list[int],
    found: Found,
) -> TraceHeader:
    """The header; it names everything that decides the signals, so that other conditions make another recording."""
    starts = range(0, settings.tokens, settings.context)
    lengths = [min(settings.context, settings.tokens - start) for start in starts]
    fields = {
        "origin": "recorded",
        "model": structure.shape,
        "signals": list(settings.signals or ()),
        "sequences": [Sequence(tokens=length, prompt=settings.prompt) for length in lengths],
        "encoding": settings.encoding,
        "uncounted": structure.inventory.uncounted,
        "stored": found.stored,
        "provenance": {
            "hwsim": hwsim.__version__,
            "python": platform.python_version(),
            "torch": str(used.torch.__version__),
            "transformers": str(used.transformers.__version__),
            "weights": {"origin": source.origin, "sha256": weights_hash(source)},
            **code_provenance(source),
            **({STORED_UNKNOWN: found.why} if found.why else {}),
            "config_sha256": _config_hash(structure.config),
            "text": {"name": words.name, "sha256": words.sha256},
            "tokens_sha256": hashlib.sha256(ids.astype("<i4").tobytes()).hexdigest(),
            "window_prefix": prefix,
            "command": {
                "model": source.name,
                "text": words.name,
                "tokens": settings.tokens,
                "context": settings.context,
                "prompt": settings.prompt,
                "signals": list(settings.signals or ()),
                "device": settings.device,
                "dtype": settings.dtype,
                **({"norms": True} if settings.norms else {}),
            },
        },
    }
    return TraceHeader.model_validate(fields)


def _config_hash(config: Any) -> str:
    """SHA-256 of a model's configuration without the fields that name its location and the library's version."""
    fields = {key: value for key, value in config.to_dict().items() if key not in _PASSING and not key.startswith("_")}
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode()).hexdigest()

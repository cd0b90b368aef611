"""The recording itself: windows of the text go through the model, every layer's signals go straight to disk."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

import hwsim
from hwsim.errors import HwsimError, OutputError, SettingError, TraceError, did_you_mean
from hwsim.model import SIGNALS, ModelShape
from hwsim.record.extras import Libraries, libraries, require_extra, told_as
from hwsim.record.hooks import Taps
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
from hwsim.record.losses import Losses
from hwsim.record.sources import Source, find_source, weights_hash
from hwsim.record.text import Text, find_text, read_tokens
from hwsim.trace import Sequence, Trace, TraceHeader, TraceWriter

Progress = Callable[[str, int, int], None]
"""Is told (phase, done, of how many)."""

_TOKENS_FROM_DISK = 4096  # tokens of one pass when each pass loads all layers from disk: enough to pay for the loading
_ADDED_BY_WRITER = {"clipped_values"}


@dataclass(frozen=True)
class Settings:
    """How to record.

    Attributes:
        tokens: how many tokens of the text.
        context: tokens of one window; each window is a sequence of its own.
        prompt: first tokens of each window that are its prompt: no part of the decode.
        signals: names; None: all that tell an MLP (input, up, gate; without a gate input, glu).
        device: a device of torch.
        dtype: float32, bfloat16 or float16; auto: float32 on a CPU, else the checkpoint's own.
        max_memory: bytes that weights may take; None: what is free.
    """

    tokens: int = 512
    context: int = 512
    prompt: int = 0
    signals: tuple[str, ...] | None = None
    device: str = "cpu"
    dtype: str = "auto"
    max_memory: int | None = None


class Recorded(NamedTuple):
    """What came of it."""

    path: Path
    resumed: int  # tokens that an earlier, interrupted run had recorded; all of them: nothing was left to do


def record(
    path: str | Path,
    model: str,
    text: str = "persuasion",
    settings: Settings | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Recorded:
    """Record a model over a text.

    An interrupted recording goes on where it stopped when it is called again with the same arguments; the file is the
    same, byte for byte. A finished one is recognised and left alone.

    Args:
        path: the trace to write.
        model: a short name (`hwsim.catalog.MODELS`), a hub id, a folder, or a GGUF file.
        text: a UTF-8 file, or the name of a bundled text.
        settings: how much and what.
        overwrite: replace a trace that is already there.
        progress: is told how far it is.

    Raises:
        HwsimError: one of its kinds; the model or text cannot be had, a setting is impossible, the disk is full.
    """
    path, settings = Path(path), settings or Settings()
    _check(settings)
    require_extra()
    tell = progress or (lambda phase, done, total: None)
    source, words = find_source(model), find_text(text)
    tell("reading the model's configuration", 0, 1)
    loaded_libraries = libraries()
    structure = read_structure(source, loaded_libraries)
    settings = _resolve(settings, structure, loaded_libraries)
    tell("reading the model's configuration", 1, 1)
    tell("reading text and checking weights", 0, 1)
    ids = read_tokens(words, load_tokenizer(source, loaded_libraries), settings.tokens)
    if ids.max() >= structure.shape.vocab_size:
        raise HwsimError(f"--model {source.name}: its tokenizer has more tokens than the model's {ids.max()}")
    header = _header(source, words, structure.shape, settings, loaded_libraries)
    tell("reading text and checking weights", 1, 1)
    if path.exists() and not overwrite:
        if _holds(path, header):
            return Recorded(path, settings.tokens)
        raise OutputError(f"{path}: exists and holds something else; name another file with -o, or give --overwrite")
    with TraceWriter(path, header, tokens=True, nll=True) as writer:
        resumed = writer.done
        if resumed < settings.tokens:
            tell("loading weights", 0, 1)
            loaded = load_model(
                source, structure, loaded_libraries, settings.device, settings.dtype, settings.max_memory
            )
            tell("loading weights", 1, 1)
            with told_as(f"--model {source.name}: cannot be run"):
                _run(loaded, ids, writer, settings, loaded_libraries, tell)
        writer.finish()
    return Recorded(path, resumed)


def _check(settings: Settings) -> None:
    """What can be refused before torch is imported."""
    for name, least in (("tokens", 1), ("context", 1), ("prompt", 0)):
        if getattr(settings, name) < least:
            raise SettingError(f"--{name} {getattr(settings, name)}: must be at least {least}")
    for signal in settings.signals or ():
        if signal not in SIGNALS:
            raise SettingError(f"--signals {signal}: no such signal{did_you_mean(signal, SIGNALS)}")
    if settings.dtype not in ("auto", *DTYPES):
        raise SettingError(f"--dtype {settings.dtype}: must be one of auto, {', '.join(DTYPES)}")
    shortest = settings.tokens % settings.context or min(settings.context, settings.tokens)
    if settings.prompt >= shortest:
        raise SettingError(
            f"--prompt {settings.prompt}: leaves nothing to decode of the shortest window, {shortest} tokens; "
            "give a shorter prompt, or make --tokens a multiple of --context"
        )


def _resolve(settings: Settings, structure: Structure, used: Libraries) -> Settings:
    """Fill in what was left open, now that the model is known."""
    shape, longest = structure.shape, structure.longest
    if longest is not None and min(settings.context, settings.tokens) > longest:
        raise SettingError(f"--context {settings.context}: {shape.name} reads windows of at most {longest} tokens")
    signals = settings.signals or (("input", "up", "gate") if shape.gated else ("input", "glu"))
    wrong = {"up", "gate"} & set(signals) if not shape.gated else set()
    if wrong:
        raise SettingError(
            f"--signals {','.join(signals)}: {shape.name} has no gate; it has input and glu, the activated fc1"
        )
    ordered = tuple(signal for signal in SIGNALS if signal in signals)
    device = find_device(settings.device, used)
    return Settings(
        settings.tokens,
        settings.context,
        settings.prompt,
        ordered,
        device,
        find_dtype(settings.dtype, device, structure),
        settings.max_memory,
    )


def _header(source: Source, words: Text, shape: ModelShape, settings: Settings, used: Libraries) -> TraceHeader:
    starts = range(0, settings.tokens, settings.context)
    lengths = [min(settings.context, settings.tokens - start) for start in starts]
    fields = {
        "origin": "recorded",
        "model": shape,
        "signals": list(settings.signals or ()),
        "sequences": [Sequence(tokens=length, prompt=settings.prompt) for length in lengths],
        "provenance": {
            "hwsim": hwsim.__version__,
            "python": platform.python_version(),
            "torch": str(used.torch.__version__),
            "transformers": str(used.transformers.__version__),
            "weights": {"origin": source.origin, "sha256": weights_hash(source)},
            "text": {"name": words.name, "sha256": words.sha256},
            "command": {
                "model": source.name,
                "text": words.name,
                "tokens": settings.tokens,
                "context": settings.context,
                "prompt": settings.prompt,
                "signals": list(settings.signals or ()),
                "device": settings.device,
                "dtype": settings.dtype,
            },
        },
    }
    return TraceHeader.model_validate(fields)


def _holds(path: Path, header: TraceHeader) -> bool:
    """Whether the file is the finished trace of this very recording."""
    try:
        with Trace(path) as trace:
            there = trace.header
    except TraceError:
        return False
    known = {key: value for key, value in there.provenance.items() if key not in _ADDED_BY_WRITER}
    return there.model_copy(update={"provenance": known}) == header


def _passes(done: int, settings: Settings, from_disk: bool) -> Iterator[tuple[int, int, int]]:
    """(first token, windows, tokens of one) of each forward pass that is still to be run."""
    together = max(1, _TOKENS_FROM_DISK // settings.context) if from_disk else 1
    start = done
    while start < settings.tokens:
        windows = min(together, (settings.tokens - start) // settings.context)
        length = settings.context if windows else settings.tokens - start
        yield start, max(1, windows), length
        start += max(1, windows) * length


def _run(
    loaded: Loaded, ids: np.ndarray, writer: TraceWriter, settings: Settings, used: Libraries, tell: Progress
) -> None:
    at = writer.done
    length = 0
    layers = len(loaded.layers)

    def emit(layer: int, signal: str, values: np.ndarray) -> None:
        writer.write(layer, signal, at, values)
        tell("recording", at + length * layer // layers, settings.tokens)

    tell("recording", at, settings.tokens)
    taps, losses = Taps(loaded.layers, list(settings.signals or ()), emit), Losses(loaded.model, used)
    try:
        for at, windows, each in _passes(writer.done, settings, loaded.from_disk):
            length = windows * each
            part = ids[at : at + length]
            nats = losses.run(part.reshape(windows, each))
            writer.write_tokens(at, part)
            writer.write_nll(at, nats.reshape(-1))
            writer.commit(at + length)
            tell("recording", at + length, settings.tokens)
    finally:
        taps.remove()
        losses.remove()


__all__ = ["Recorded", "Settings", "record"]

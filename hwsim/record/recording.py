"""The recording: the model reads the text window by window, and every layer's signals go straight to disk."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hwsim.errors import ModelError, OutputError, TraceError
from hwsim.record.extras import told_as
from hwsim.record.hooks import Taps
from hwsim.record.loading import Loaded
from hwsim.record.prepare import Prepared, Progress, Settings, passes, prepare
from hwsim.record.runner import Runner
from hwsim.trace import Trace, TraceHeader, TraceWriter
from hwsim.trace.writer import unfinished
from hwsim.util.files import check_new_file, spare

_ADDED_BY_WRITER = {"clipped_values"}


class Recorded(NamedTuple):
    """Result of `record`."""

    path: Path
    resumed: int  # tokens that an earlier, interrupted run had recorded; all of them if it had finished


def record(
    path: str | Path,
    model: str,
    text: str = "persuasion",
    settings: Settings | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    writes: Iterable[Path] = (),
) -> Recorded:
    """Record a model over a text.

    Called again with the same arguments, an interrupted recording resumes where it stopped; the file is the same, byte
    for byte. A finished recording is recognised and left alone.

    Args:
        path: the trace to write.
        model: a short name (`hwsim.model.catalog.MODELS`), a hub id, a folder, or a GGUF file.
        text: a UTF-8 file, or the name of a bundled text.
        settings: what to record.
        overwrite: replace a trace that exists already, or was begun with other arguments.
        progress: callback, see `Progress`.
        writes: other files that the caller is going to write; they may be neither the model's files, the text nor the
            trace.

    Raises:
        HwsimError: a subclass; the model or text is not available, a setting is impossible, the disk is full.
    """
    path = Path(path)
    tell = progress or (lambda phase, done, total: None)
    check_new_file(path)
    writes = tuple(writes)
    outputs = [path, *unfinished(path)]
    for file in writes:
        spare(file, outputs, "writes the trace to")
    ready = prepare(model, text, settings or Settings(), tell, writes=[*outputs, *writes])
    tokens = ready.settings.tokens
    if path.exists() and not overwrite:
        if _holds(path, ready.header):
            return Recorded(path, tokens)
        raise OutputError(f"{path}: exists and holds something else; name another file with -o, or give --overwrite")
    norms = ready.settings.norms
    with TraceWriter(path, ready.header, tokens=True, nll=True, norms=norms, overwrite=overwrite) as writer:
        resumed = writer.done
        if resumed < tokens:
            loaded = ready.load(tell)
            with told_as(f"--model {ready.source.name}: cannot be run"):
                _run(ready, loaded, writer, tell)
        writer.finish()
    return Recorded(path, resumed)


def _holds(path: Path, header: TraceHeader) -> bool:
    """Whether the file is the finished trace of this very recording, with stored bytes or without."""
    try:
        with Trace(path) as trace:
            stored = trace.header
    except TraceError:
        return False
    provenance = {key: value for key, value in stored.provenance.items() if key not in _ADDED_BY_WRITER}
    return stored.model_copy(update={"provenance": provenance}).without_additions() == header.without_additions()


def _run(ready: Prepared, loaded: Loaded, writer: TraceWriter, tell: Progress) -> None:
    settings, at, length = ready.settings, writer.done, 0

    def emit(layer: int, signal: str, values: np.ndarray) -> None:
        if len(values) != length:
            raise ModelError(f"layer {layer}: computed {signal} of {len(values)} tokens, the pass has {length}")
        writer.write(layer, signal, at, values)
        tell("recording", at + length * layer // len(loaded.layers), settings.tokens)

    tell("recording", at, settings.tokens)
    # a resumed trace has its norms already: they are written in the first pass
    on_norm = writer.write_norm if settings.norms and not writer.done else None
    runner = Runner(loaded.model, ready.libraries)
    if not writer.done:
        runner.check_causal()
    taps = Taps(loaded.layers, list(settings.signals or ()), emit, on_norm, half=True)
    try:
        for at, windows, window_tokens in passes(writer.done, settings, loaded.from_disk):
            length = windows * window_tokens
            part = ready.ids[at : at + length]
            nats = runner.losses(part.reshape(windows, window_tokens))
            taps.check_pass()
            writer.write_tokens(at, part)
            writer.write_nll(at, nats.reshape(-1))
            writer.commit(at + length)
            tell("recording", at + length, settings.tokens)
    finally:
        taps.remove()
        runner.remove()

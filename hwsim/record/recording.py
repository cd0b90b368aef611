"""The recording itself: windows of the text go through the model, every layer's signals go straight to disk."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hwsim.errors import OutputError, TraceError
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
    writes: Iterable[Path] = (),
) -> Recorded:
    """Record a model over a text.

    An interrupted recording goes on where it stopped when it is called again with the same arguments; the file is the
    same, byte for byte. A finished one is recognised and left alone.

    Args:
        path: the trace to write.
        model: a short name (`hwsim.model.catalog.MODELS`), a hub id, a folder, or a GGUF file.
        text: a UTF-8 file, or the name of a bundled text.
        settings: how much and what.
        overwrite: replace a trace that is already there, or was begun with other arguments.
        progress: is told how far it is.
        writes: what the caller is going to write besides; refused where it is the model's, the text or the trace.

    Raises:
        HwsimError: one of its kinds; the model or text cannot be had, a setting is impossible, the disk is full.
    """
    path = Path(path)
    tell = progress or (lambda phase, done, total: None)
    check_new_file(path)
    writes = tuple(writes)
    own = [path, *unfinished(path)]
    for other in writes:
        spare(other, own, "writes the trace to")
    ready = prepare(model, text, settings or Settings(), tell, writes=[*own, *writes])
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
    """Whether the file is the finished trace of this very recording."""
    try:
        with Trace(path) as trace:
            there = trace.header
    except TraceError:
        return False
    known = {key: value for key, value in there.provenance.items() if key not in _ADDED_BY_WRITER}
    return there.model_copy(update={"provenance": known}) == header


def _run(ready: Prepared, loaded: Loaded, writer: TraceWriter, tell: Progress) -> None:
    settings, at, length = ready.settings, writer.done, 0

    def emit(layer: int, signal: str, values: np.ndarray) -> None:
        writer.write(layer, signal, at, values)
        tell("recording", at + length * layer // len(loaded.layers), settings.tokens)

    tell("recording", at, settings.tokens)
    # what was committed holds the norms, too: they are written in the first pass
    on_norm = writer.write_norm if settings.norms and not writer.done else None
    taps = Taps(loaded.layers, list(settings.signals or ()), emit, on_norm, half=True)
    runner = Runner(loaded.model, ready.libraries)
    try:
        for at, windows, each in passes(writer.done, settings, loaded.from_disk):
            length = windows * each
            part = ready.ids[at : at + length]
            nats = runner.losses(part.reshape(windows, each))
            writer.write_tokens(at, part)
            writer.write_nll(at, nats.reshape(-1))
            writer.commit(at + length)
            tell("recording", at + length, settings.tokens)
    finally:
        taps.remove()
        runner.remove()

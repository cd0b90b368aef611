"""Convert a trace: store it in another encoding, or with fewer signals."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from hwsim.errors import OutputError, SettingError, TraceError, did_you_mean
from hwsim.model.shape import EXPERT_SIGNALS, NORMS, ROUTER_AHEAD, SIGNALS
from hwsim.trace.encoding import FLOAT16, Encoding
from hwsim.trace.header import TraceHeader
from hwsim.trace.reader import Trace
from hwsim.trace.writer import TraceWriter, unfinished
from hwsim.util.files import check_new_file, spare

_ALL_SIGNALS = (*SIGNALS, *EXPERT_SIGNALS, ROUTER_AHEAD)
_BLOCK = 2**20  # values that are held at once

Progress = Callable[[str, int, int], None]
"""Callback: receives (phase, steps done, steps in all)."""


def convert(
    source: Trace,
    path: str | Path,
    encoding: Encoding,
    *,
    signals: Iterable[str] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> TraceHeader:
    """Write a trace in another encoding; all that is not encoded is copied as it is.

    What the source's encoding has lost stays lost: values are read from it as `Trace.read` gives them. If it keeps only
    a share of each row, the new header names that share, whatever the new encoding.

    Args:
        source: open trace.
        path: file to write.
        encoding: of the new file.
        signals: names of the signals to write; ``glu`` is computed from ``up`` and ``gate`` if it was not recorded.
            None: all recorded signals.
        overwrite: replace a file that is already there.
        progress: callback, see `Progress`.

    Returns:
        The header that was written.

    Raises:
        SettingError: an unknown signal, one that the encoding cannot store, or a larger share than the source keeps.
        TraceError: the source lacks a signal, or is damaged.
        OutputError: the file cannot be written, or exists already.
    """
    path, tell = Path(path), progress or (lambda phase, done, total: None)
    check_new_file(path)
    for target in (path, *unfinished(path)):
        spare(target, [source.path])
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: exists; name another file with -o, or give --overwrite")
    signal_names = _signals(source, signals)
    header = _header(source, _encoding(source, encoding), signal_names)
    ids, losses, norms = source.tokens(), source.nll(), source.has(next(iter(NORMS)))
    layers, steps = source.model.num_hidden_layers, _steps(source)
    sparse = source.model.layers_with("experts") if "experts" in signal_names else []
    flags, accepted = {layer: source.residency(layer) for layer in sparse}, source.accepted()
    writer = TraceWriter(
        path, header, tokens=ids is not None, nll=losses is not None, norms=norms,
        residency=any(own is not None for own in flags.values()), accepted=accepted is not None, overwrite=overwrite,
    )  # fmt: skip
    with writer:
        # nothing is committed before the end: an interrupted conversion leaves no file, and begins anew
        for layer in range(layers):
            for signal in signal_names:
                for start, stop in steps if source.model.signal_width(signal, layer) else ():
                    writer.write(layer, signal, start, source.read(layer, signal, start, stop))
            for name in NORMS if norms and source.model.signal_width("norm_down", layer) else ():
                writer.write_norm(layer, name, source.norm(layer, name))
            if (own := flags.get(layer)) is not None:
                writer.write_residency(layer, 0, own)
            tell("converting", layer + 1, layers)
        if ids is not None:
            writer.write_tokens(0, ids)
        if losses is not None:
            writer.write_nll(0, losses)
        if accepted is not None:
            writer.write_accepted(0, accepted)
        writer.commit(header.tokens)
        clipped = header.provenance.get("clipped_values")
        writer.finish({"clipped_values": writer.clipped + (clipped if isinstance(clipped, int) else 0)})
    return header


def _encoding(source: Trace, target: Encoding) -> Encoding:
    """The new encoding, with the share of each row that the source keeps."""
    share = source.header.encoding.share
    if share is None:
        return target
    if target.share is None:
        return Encoding(name=target.name, share=share)
    if target.share > share:
        raise SettingError(
            f"--keep-share {target.share:g}: {source.path} keeps {share:g} of each row, and the rest is lost; "
            f"give at most {share:g}"
        )
    return target


def _signals(source: Trace, names: Iterable[str] | None) -> list[str]:
    """The names of the signals to write, in the order of the headers; refuses signals that the source lacks."""
    recorded = source.header.signals
    if names is None:
        return list(recorded)
    names = list(names)
    for signal in names:
        if signal not in _ALL_SIGNALS:
            raise SettingError(f"--signals {signal}: no such signal{did_you_mean(signal, _ALL_SIGNALS)}")
        if not source.has(signal):
            raise TraceError(f"{source.path}: has no signal {signal!r}; it holds {', '.join(recorded)}")
        if signal == "glu" and "glu" not in recorded:
            source.check_whole("glu, the product of up and gate,")
    return [signal for signal in _ALL_SIGNALS if signal in names]


def _header(source: Trace, encoding: Encoding, signals: list[str]) -> TraceHeader:
    header = source.header
    if "expert_glu" in signals and encoding != FLOAT16:
        raise SettingError(f"--encoding {encoding}: expert_glu is stored as float16; name the other --signals")
    origin: dict[str, Any] = {"hash": source.hash, "encoding": header.encoding.model_dump(exclude_none=True)}
    if list(header.signals) != signals:
        origin["signals"] = list(header.signals)
    if "converted_from" in header.provenance:
        origin["converted_from"] = header.provenance["converted_from"]
    changed = {
        "signals": signals,
        "encoding": encoding.model_dump(),
        "provenance": header.provenance | {"converted_from": origin},
    }
    return TraceHeader.model_validate(header.model_dump() | changed)


def _steps(source: Trace) -> list[tuple[int, int]]:
    """Blocks of tokens, each (start, stop)."""
    tokens, shape = source.header.tokens, source.model
    step = max(1, _BLOCK // max(shape.signal_width(signal) for signal in _ALL_SIGNALS))
    return [(start, min(start + step, tokens)) for start in range(0, tokens, step)]

"""The import of a router trace: its format, and two passes, one that checks and counts, one that fills arrays."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hwsim.errors import OutputError, SettingError, did_you_mean
from hwsim.trace.header import Sequence, TraceHeader
from hwsim.trace.importing import bigmoe, general
from hwsim.trace.importing.arrays import Arrays
from hwsim.trace.importing.columns import Rows
from hwsim.trace.importing.lines import Block, LineFile
from hwsim.trace.importing.order import Part
from hwsim.trace.importing.router import RouterFile
from hwsim.trace.writer import TraceWriter, unfinished
from hwsim.util.files import check_new_file, spare
from hwsim.util.units import printable

_READERS: dict[str, Callable[[LineFile, Block], RouterFile]] = {
    bigmoe.NAME: bigmoe.read,
    general.CSV: general.read_csv,
    general.JSON: general.read_json,
}
FORMATS = tuple(_READERS)
"""Names of the formats: route_trace v1 of BigMoeOnEdge, and the general form as CSV and as JSON lines."""
DROPPED = ("router", "device")

Progress = Callable[[str, int, int], None]
"""Callback: receives (phase, steps done, steps in all)."""


class Imported(NamedTuple):
    """What an import made.

    Attributes:
        header: of the trace.
        notes: remarks of one line: what was assumed, and what the user should know.
    """

    header: TraceHeader
    notes: list[str]


def import_trace(
    file: str | Path,
    path: str | Path,
    *,
    format: str | None = None,
    dropped: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Imported:
    """Write a trace of the experts that another program's router chose.

    Memory holds the arrays of the trace, 7 bytes for each row of the file at most, and one block of the file.

    Args:
        file: router trace: "route_trace v1" of BigMoeOnEdge, or the general form as CSV or JSON lines.
        path: trace to write.
        format: one of `FORMATS`; None: the content tells.
        dropped: what to make of experts that the device left out: ``router``: the router's choice, as if none had been
            left out, without the device's cache flags; ``device``: what the device used. Needed only if there are any.
        overwrite: replace a file that is already there.
        progress: callback, see `Progress`.

    Raises:
        SettingError: an unknown format or choice, or a choice that is needed and not made.
        TraceError: the file cannot be read, contradicts itself, or is not complete.
        OutputError: the trace cannot be written, or exists already.
    """
    path, file = Path(path), Path(file)
    if format is not None and format not in FORMATS:
        raise SettingError(f"format {format}: no such format{did_you_mean(format, FORMATS)}")
    if dropped is not None and dropped not in DROPPED:
        raise SettingError(f"dropped {dropped}: must be router or device")
    check_new_file(path)
    for target in (path, *unfinished(path)):
        spare(target, [file])
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: exists; name another file with -o, or give --overwrite")
    router = _open(LineFile(file), format)
    tell = progress or (lambda phase, done, total: None)
    scan = _scan(router, tell)
    choice = _choice(router, scan, dropped)
    header = _header(router, scan, choice)
    arrays = Arrays(
        router, header, weights=scan.weights, residency="residency" in scan.columns and choice != "router",
        accepted="accepted" in scan.columns, without_dropped=choice == "device",
    )  # fmt: skip
    arrays.fill(tell)
    writer = TraceWriter(
        path, header, residency=arrays.residency is not None, accepted=arrays.accepted is not None, overwrite=overwrite
    )
    with writer:
        arrays.write(writer)
        writer.commit(header.tokens)
        writer.finish()
    return Imported(header, router.preamble.notes + _notes(router, scan, choice))


def _open(source: LineFile, name: str | None) -> RouterFile:
    """The file, by its content or as the named format."""
    with closing(source.blocks()) as blocks:
        block = next(blocks)
    if name is None:
        name = bigmoe.NAME if bigmoe.is_one(block) else general.JSON if general.is_json(block) else general.CSV
    return _READERS[name](source, block)


@dataclass
class _Scan:
    """What the first pass saw.

    Attributes:
        parts: the sequences.
        columns: that the file has.
        known, unknown: first lines with a weight and with an unknown one.
        dropped: first line of an expert that the device left out.
        prefetched: decoded rows whose expert a prefetch had read.
    """

    parts: list[Part] = field(default_factory=list)
    columns: frozenset[str] = frozenset()
    known: int | None = None
    unknown: int | None = None
    dropped: int | None = None
    prefetched: int = 0

    @property
    def weights(self) -> bool:
        """Whether weights are known."""
        return "weight" in self.columns and self.known is not None

    def add(self, rows: Rows) -> None:
        """Take in some rows."""
        values = rows.values
        self.columns = frozenset(values)
        if "weight" in values:
            unknown = np.isnan(values["weight"])
            self.known = self.known or _first(rows, ~unknown)
            self.unknown = self.unknown or _first(rows, unknown)
        if "dropped" in values:
            self.dropped = self.dropped or _first(rows, values["dropped"] > 0)
        if "residency" in values:
            self.prefetched += int(((values["residency"] > 1) & (values["phase"] > 0)).sum())


def _first(rows: Rows, where: np.ndarray) -> int | None:
    return rows.first + int(np.argmax(where)) if where.any() else None


def _scan(router: RouterFile, tell: Progress) -> _Scan:
    scan, order = _Scan(), router.order()
    for rows in router.rows():
        order.place(rows)
        scan.add(rows)
        tell("checking rows", rows.first + len(rows), rows.first + len(rows) + 1)
    scan.parts = order.finish()
    if scan.known is not None and scan.unknown is not None:
        raise router.source.error(
            f"weight is nan, line {scan.known} has one; all must be numbers, or all nan", scan.unknown
        )
    return scan


def _choice(router: RouterFile, scan: _Scan, dropped: str | None) -> str | None:
    """What to make of dropped experts; None if there are none."""
    if scan.dropped is None:
        return None
    if dropped is None:
        raise SettingError(
            f"{router.source.path}: line {scan.dropped}: dropped is 1, the device left this expert out; choose "
            "--dropped router (what the router chose, without the flags of the cache) or "
            "--dropped device (what the device used)"
        )
    return dropped


def _header(router: RouterFile, scan: _Scan, choice: str | None) -> TraceHeader:
    preamble = router.preamble
    origin: dict[str, Any] = {
        "file": printable(router.source.path.name),
        "format": router.format,
        "preamble": preamble.other,
        "sha256": router.source.sha256,
    }
    if choice:
        origin["dropped"] = choice
    if starts := [part.start for part in scan.parts if part.start]:
        origin["continued_at"] = starts
    return TraceHeader(
        origin="recorded",
        model=preamble.shape(),
        signals=["experts", "expert_weights"] if scan.weights else ["experts"],
        sequences=[Sequence(tokens=part.tokens, prompt=part.prompt) for part in scan.parts],
        provenance={"imported": origin},
    )


def _notes(router: RouterFile, scan: _Scan, choice: str | None) -> list[str]:
    notes = []
    if any(part.short for part in scan.parts):
        last = router.preamble.layers - 1
        notes.append(f"layer {last} has experts for the last token of a prompt only, as llama.cpp computes it")
    if "weight" in scan.columns and not scan.weights:
        notes.append("weight is nan in all rows: the trace has no expert_weights")
    if scan.prefetched and choice != "router":
        notes.append(f"{scan.prefetched} experts were found because a prefetch had read them; they count as cached")
    if continued := [str(number) for number, part in enumerate(scan.parts) if part.start]:
        shown = ", ".join(continued[:3]) + (", ..." if len(continued) > 3 else "")
        notes.append(f"sequences that continue a conversation: {shown}; --keep-cache replays them with a warm cache")
    return notes

"""``hwsim trace import``: a trace of the experts that another program's router chose."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hwsim.cli.common import JsonOption, check_target, note, output, progress_bar, to_json, write_json
from hwsim.util.files import spare


class FormatName(StrEnum):
    """Formats of router traces."""

    BIGMOE = "bigmoe"
    CSV = "csv"
    JSONL = "jsonl"


class DroppedName(StrEnum):
    """What to make of experts that the device left out."""

    ROUTER = "router"
    DEVICE = "device"


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Options of ``hwsim trace import``."""

    file: Annotated[Path, typer.Argument(metavar="FILE", help="Router trace: CSV or JSON lines.")]
    out: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Trace to write.")]
    format: Annotated[
        FormatName | None,
        typer.Option(
            help="bigmoe: route_trace v1 of BigMoeOnEdge; csv, jsonl: the general form.",
            show_default="what the content says",
        ),
    ] = None
    dropped: Annotated[
        DroppedName | None,
        typer.Option(
            help="Experts that the device left out. router: as if it had used them, without its cache flags; device: "
            "without them. Needed if the file has any.",
        ),
    ] = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is already there.")] = False
    json: JsonOption = None


def import_trace(options: ImportOptions) -> None:
    """Make a trace of a router trace: which experts each token used, in each layer, and what they weigh.

    Example: hwsim trace import phone.route.csv -o phone.npz
    """
    from hwsim.report.expertinfo import sizes_of
    from hwsim.trace import Trace
    from hwsim.trace.importing import import_trace as run
    from hwsim.util.units import printable, show_size

    out, json = options.out, options.json
    check_target(json, options.file)
    if json and json != "-":
        spare(Path(json), [out], "writes the trace to")
    with progress_bar() as progress:
        imported = run(
            options.file, out, format=options.format, dropped=options.dropped, overwrite=options.overwrite,
            progress=progress,
        )  # fmt: skip
    header = imported.header
    with Trace(out) as written:
        size = written.size
        flags = [name for name in ("residency", "accepted") if getattr(written, f"has_{name}")]
    if json:
        data = {
            "file": str(out),
            "bytes": size,
            "model": header.model.model_dump(),
            "signals": list(header.signals),
            "flags": flags,
            "tokens": header.tokens,
            "decoded": header.decoded,
            "sequences": [sequence.model_dump() for sequence in header.sequences],
            "provenance": header.provenance,
            "notes": imported.notes,
        }
        write_json(json, to_json(data))
    if json != "-":
        sequences = f"{len(header.sequences)} sequence{'s' if len(header.sequences) > 1 else ''}"
        output().print(
            f"{printable(str(out))}, {show_size(size)}: {header.tokens} tokens in {sequences}, "
            f"{header.decoded} decoded; {', '.join([*header.signals, *flags])}",
            markup=False,
            soft_wrap=True,
        )
        output().print(
            f"{header.model.name}: {'; '.join(sizes_of(header.model).values())}",
            markup=False,
            soft_wrap=True,
        )
    for text in imported.notes:
        note(text)
    if json and json != "-":
        note(f"Written to {json}")

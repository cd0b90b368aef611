"""``hwsim trace convert``: a trace in another encoding, or with fewer signals."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from hwsim.cli import options as o
from hwsim.cli.common import JsonOption, check_target, find_trace, note, output, progress_bar, to_json, write_json
from hwsim.errors import SettingError
from hwsim.util.files import spare


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Options of ``hwsim trace convert``."""

    trace: Annotated[Path, typer.Argument(metavar="TRACE", help="Trace file; sample: the bundled one.")]
    out: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Trace to write.")]
    encoding: o.EncodingOf = o.EncodingName.FLOAT16
    keep_share: o.KeepShare = None
    signals: Annotated[
        str | None,
        typer.Option(metavar="A,B,...", help="Only these; glu is made of up and gate.", show_default="all recorded"),
    ] = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is already there.")] = False
    json: JsonOption = None


def convert(options: ConvertOptions) -> None:
    """Store a trace in another encoding, or with fewer signals; what was lost before stays lost.

    Example: hwsim trace convert sample -o small.npz --encoding int8
    """
    from hwsim.trace import Trace
    from hwsim.trace import convert as run
    from hwsim.util.units import printable, show_size

    json, out, signals = options.json, options.out, options.signals
    chosen = o.read_encoding(options.encoding, options.keep_share)
    wanted = None if signals is None else [name.strip() for name in signals.split(",") if name.strip()]
    if wanted == []:
        raise SettingError("--signals: names none; leave it out for all that are recorded")
    trace = find_trace(options.trace)
    check_target(json, trace)
    if json and json != "-":
        spare(Path(json), [out], "writes the trace to")
    with Trace(trace) as opened, progress_bar() as progress:
        before = opened.size
        run(opened, out, chosen, signals=wanted, overwrite=options.overwrite, progress=progress)
    with Trace(out) as written:
        header, size = written.header, written.size
    if json:
        data = {
            "file": str(out),
            "encoding": header.encoding.model_dump(exclude_none=True),
            "signals": list(header.signals),
            "tokens": header.tokens,
            "bytes": size,
            "bytes_before": before,
        }
        write_json(json, to_json(data))
    if json != "-":
        output().print(
            f"{printable(str(out))}: {header.tokens} tokens, signals {', '.join(header.signals)}, {header.encoding}; "
            f"{show_size(size)}, before {show_size(before)}",
            markup=False,
            soft_wrap=True,
        )
    if json and json != "-":
        note(f"Written to {json}")

"""``hwsim trace info`` and ``hwsim trace verify``: show the content of a trace, and check that it is sound."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hwsim.cli.common import (
    JsonOption,
    check_target,
    find_trace,
    note,
    output,
    progress_bar,
    to_json,
    write_json,
)
from hwsim.errors import TraceError

TraceArgument = Annotated[Path, typer.Argument(metavar="TRACE", help="Trace file; sample: the bundled one.")]


def info(
    trace: TraceArgument,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Take statistics of the first N tokens only.", show_default="all")
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Show every layer on a line of its own.")] = False,
    json: JsonOption = None,
) -> None:
    """Show what a trace holds, where it is from, and how sparse and how steady its signals are.

    Example: hwsim trace info sample
    """
    import dataclasses

    from hwsim.analysis.tracestats import trace_stats
    from hwsim.report.traceinfo import finite_perplexity, render_trace
    from hwsim.trace import Trace

    trace = find_trace(trace)
    check_target(json, trace)
    with Trace(trace) as opened:
        with progress_bar() as progress:
            stats = trace_stats(opened, tokens=tokens, progress=progress)
        header = opened.header
        if json:
            data = {
                "format": "hwsim-trace-info",
                "version": 1,
                "file": str(opened.path),
                "bytes": opened.size,
                "hash": opened.hash,
                "origin": header.origin,
                "model": header.model.model_dump(),
                "signals": list(header.signals),
                "encoding": header.encoding.model_dump(exclude_none=True),
                "tokens": header.tokens,
                "decoded": header.decoded,
                "sequences": [sequence.model_dump() for sequence in header.sequences],
                "provenance": header.provenance,
                "dense_perplexity": finite_perplexity(opened),
                "statistics": dataclasses.asdict(stats),
            }
            write_json(json, to_json(data))
        if json != "-":
            console = output()
            console.print(render_trace(opened, stats, layers=layers, width=console.width))
    if json and json != "-":
        note(f"Written to {json}")


def verify(trace: TraceArgument, json: JsonOption = None) -> None:
    """Read all of a trace and check it: checksums, shapes, no NaN. Exit code 1 if it is damaged.

    Example: hwsim trace verify sample
    """
    from hwsim.trace import Trace
    from hwsim.util.units import show_size

    trace = find_trace(trace)
    check_target(json, trace)
    try:
        with Trace(trace) as opened, progress_bar() as progress:
            count, members = len(opened.header.members()), 0
            for members, _ in enumerate(opened.verify(), 1):
                progress("checking", min(members, count), count)
            size = opened.size
    except TraceError as error:
        if json:
            write_json(json, to_json({"file": str(trace), "sound": False, "error": str(error)}))
        raise
    if json:
        write_json(json, to_json({"file": str(trace), "sound": True, "members": members, "bytes": size}))
    if json != "-":
        output().print(f"sound: {members} members, {show_size(size)}")

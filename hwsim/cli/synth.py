"""``hwsim synth``: draw a synthetic trace for the shape of a model with the statistics of a recorded trace."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hwsim.cli.common import (
    JsonOption,
    check_target,
    find_trace,
    listed,
    note,
    output,
    progress_bar,
    to_json,
    write_json,
)
from hwsim.errors import ModelError, OutputError
from hwsim.util.files import check_new_file, spare

if TYPE_CHECKING:
    from hwsim.analysis.tracestats import TraceStats
    from hwsim.model.shape import ModelShape

_COMPARED = 128  # tokens: enough for the statistics, few enough for a large model


@dataclass(frozen=True, kw_only=True)
class SynthOptions:
    """Options of ``hwsim synth``."""

    model: Annotated[
        str,
        typer.Option(
            metavar="NAME|PATH",
            help="Model whose shape to take: a short name such as phi3-medium, or a config.json or its folder.",
        ),
    ]
    tokens: Annotated[int, typer.Option(help="Tokens to draw.")] = 512
    like: Annotated[
        Path,
        typer.Option(metavar="TRACE", help="Recorded trace whose statistics to take; sample: the bundled one."),
    ] = Path("sample")
    context: Annotated[
        int | None,
        typer.Option(help="Tokens of one window; each is a sequence of its own.", show_default="all tokens"),
    ] = None
    prompt: Annotated[int, typer.Option(help="First tokens of each window that are no part of the decode.")] = 0
    signals: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Signals to draw.", show_default="those of --like")
    ] = None
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random numbers.")] = 0
    out: Annotated[
        Path | None, typer.Option("--output", "-o", help="Trace to write.", show_default="MODEL-synthetic.npz")
    ] = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is already there.")] = False
    json: JsonOption = None


def synth(options: SynthOptions) -> None:
    """Draw a trace for a model whose weights are not at hand.

    It has the statistics of a recorded trace. The values are random: they tell speed, never accuracy.

    Example: hwsim synth --model phi3-medium --tokens 200
    """
    from hwsim.analysis.tracestats import trace_stats
    from hwsim.report.traceinfo import render_comparison
    from hwsim.trace import Trace
    from hwsim.trace.synth import Windows, synthesize
    from hwsim.trace.writer import unfinished
    from hwsim.util.units import printable, show_size

    tokens, json, overwrite = options.tokens, options.json, options.overwrite
    shape, configurations = _shape(options.model)
    model = shape.name
    path = options.out or Path(f"{model}-synthetic.npz")
    like = find_trace(options.like)
    check_new_file(path)
    check_target(json, like, *configurations)
    for target in (path, *unfinished(path)):
        spare(target, configurations)
    if json and json != "-":
        spare(Path(json), [path, *unfinished(path)], "writes the trace to")
    if path.is_file() and not overwrite:
        raise OutputError(f"{path}: exists; name another file with -o, or give --overwrite")
    wanted = None if options.signals is None else listed(options.signals)
    with Trace(like) as recorded, progress_bar() as progress:
        header = synthesize(
            path, shape, Windows(tokens, options.context, options.prompt), like=recorded, signals=wanted,
            seed=options.seed, overwrite=overwrite, progress=progress,
        )  # fmt: skip
        with Trace(path) as drawn:
            # statistics depend on the number of tokens, so compare equal numbers
            compared = min(_COMPARED, tokens, recorded.header.tokens)
            fitted = trace_stats(recorded, tokens=compared, progress=progress)
            synthetic = trace_stats(drawn, tokens=compared, progress=progress)
            size = drawn.size
    if json:
        data = {
            "file": str(path),
            "bytes": size,
            "origin": header.origin,
            "model": header.model.name,
            "tokens": header.tokens,
            "sequences": len(header.sequences),
            "signals": list(header.signals),
            "provenance": header.provenance,
            "statistics": {"fitted_to": _plain(fitted), "synthetic": _plain(synthetic)},
        }
        write_json(json, to_json(data))
    if json != "-":
        console = output()
        signal_names = ", ".join(header.signals)
        console.print(
            f"{printable(str(path))}, {show_size(size)}, synthetic: {tokens} tokens of {printable(model)}, "
            f"signals {signal_names}",
            markup=False,
            soft_wrap=True,
        )
        source = printable(f"{recorded.path.name} ({recorded.model.name})")
        console.print(f"fitted to {source}\n", markup=False, soft_wrap=True)
        console.print(render_comparison(fitted, synthetic, console.width))
    if json and json != "-":
        note(f"Written to {json}")


def _shape(model: str) -> tuple[ModelShape, list[Path]]:
    """The shape that ``--model`` names, and the files that it was read from.

    Raises:
        ModelError: it is neither a short name nor the path of a configuration that can be counted.
    """
    from hwsim.model.catalog import MODELS, known_shape
    from hwsim.record.configuration import find_configuration, shape_of_configuration

    if model in MODELS:
        return MODELS[model].shape, []
    if not _is_path(model):
        try:
            return known_shape(model), []
        except ModelError as error:
            raise ModelError(f"{error}; or give a config.json, or a folder that holds one") from error
    path = find_configuration(model)
    return shape_of_configuration(path), [path]


def _is_path(model: str) -> bool:
    """Whether a value is meant as a path: it exists, has a separator, or ends as a file of a model does."""
    try:
        return "/" in model or "\\" in model or model.endswith((".json", ".gguf")) or Path(model).exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _plain(stats: TraceStats) -> object:
    import dataclasses

    return {"tokens": stats.tokens} | {name: dataclasses.asdict(signal) for name, signal in stats.signals.items()}

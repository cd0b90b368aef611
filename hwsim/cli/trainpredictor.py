"""``hwsim train predictor``: train the nets of the policy `predictor` on a trace."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from hwsim.cli import options as o
from hwsim.cli.common import JsonOption, check_target, find_trace, note, output, progress_bar, to_json, write_json
from hwsim.util.units import printable


@dataclass(frozen=True, kw_only=True)
class PredictorOptions:
    """Options of ``hwsim train predictor``."""

    trace: Annotated[
        Path, typer.Argument(metavar="TRACE", help="Trace with input, and glu or up and gate; sample: the bundled one.")
    ]
    out: Annotated[Path, typer.Option("--output", "-o", help="File of nets to write.")]
    density: Annotated[
        float, typer.Option(help="MLP density at which the policy is going to run, the nets counted.")
    ] = 0.5
    rank: Annotated[
        int | None, typer.Option(help="Width of a net's hidden layer.", show_default="a 16th of the hidden size")
    ] = None
    epochs: Annotated[int, typer.Option(help="Passes over the training tokens, at most.")] = 6
    patience: Annotated[int, typer.Option(help="Epochs without a lower validation loss that end a layer.")] = 2
    learning_rate: Annotated[float, typer.Option(help="Of Adam.")] = 3e-3
    seed: Annotated[int, typer.Option(help="Seed of the start and of the order of tokens.")] = 0
    device: o.Device = "cpu"
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is already there.")] = False
    json: JsonOption = None


def predictor(options: PredictorOptions) -> None:
    """Train one net per layer that predicts from the MLP's input which neurons a token needs.

    No model is needed, only its trace. An interrupted training goes on when the same command is given again.

    Example: hwsim train predictor smollm2.npz --density 0.5 -o nets.npz
    """
    from hwsim.report.training import render_predictor
    from hwsim.train.partial import partial_of
    from hwsim.train.predictor import Settings, train

    trace, out, density, json = find_trace(options.trace), options.out, options.density, options.json
    check_target(json, trace)
    writes = [Path(json)] if json and json != "-" else []
    settings = Settings(
        density, options.rank, options.epochs, options.patience, options.learning_rate, options.seed, options.device
    )  # fmt: skip
    try:
        with progress_bar() as progress:
            done = train(out, trace, settings, overwrite=options.overwrite, progress=progress, writes=writes)
    except KeyboardInterrupt as error:
        if (kept := partial_of(out)).exists():
            message = f"finished layers are kept in {kept}; give the same command again to go on"
            raise KeyboardInterrupt(message) from error
        raise
    layers = len(done.header["layers"])
    if json:
        run = {"file": str(done.path), "resumed_at": done.resumed, "was_complete": done.resumed == layers}
        write_json(json, to_json({"format": "hwsim-predictor-training", "version": 1} | run | done.header))
    if json != "-":
        console = output()
        console.print(_head(done.header, done.resumed), markup=False, soft_wrap=True)
        console.print(render_predictor(done.header))
        console.print(_next(options.trace, done.path, density), markup=False, soft_wrap=True)
    if json and json != "-":
        note(f"Result written to {json}")


def _head(header: dict[str, Any], resumed: int) -> str:
    layers, tokens, model = len(header["layers"]), header["tokens"], header["model"]["name"]
    how = "Trained"
    if resumed == layers:
        how = "Already trained"
    elif resumed:
        how = f"Trained, going on from layer {resumed}"
    synthetic = " of a synthetic trace" if header["origin"] == "synthetic" else ""
    return (
        f"{how}: nets of rank {header['rank']} for {layers} layers of {printable(model)}, on {tokens['training']} "
        f"tokens{synthetic}, validated on {tokens['validation']}"
    )


def _next(trace: Path, path: Path, density: float) -> str:
    files = [shlex.quote(printable(f"./{file}" if str(file).startswith("-") else str(file))) for file in (trace, path)]
    return (
        f"Next: hwsim replay {files[0]} --hw pixel8 --dram 50% --policy predictor --density {density:g} "
        f"--set predictor={files[1]}"
    )

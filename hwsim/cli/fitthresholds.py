"""``hwsim fit thresholds``: find thresholds and hot sets in a trace, for the policies that need them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from hwsim.cli import options as o
from hwsim.cli.common import (
    JsonOption,
    check_target,
    find_trace,
    output,
    progress_bar,
    to_json,
    write_json,
)
from hwsim.cli.record import quoted
from hwsim.errors import OutputError, SettingError
from hwsim.util.files import check_new_file, spare
from hwsim.util.units import printable, show_size


@dataclass(frozen=True, kw_only=True)
class ThresholdsOptions:
    """Options of ``hwsim fit thresholds``."""

    trace: Annotated[Path, typer.Argument(metavar="TRACE", help="Recorded trace; sample: the bundled one.")]
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|ID|PATH",
            help="The recorded model: measure the greedy allocation of teal, too. Needs the extra `record`.",
            show_default="no allocation: teal is uniform",
        ),
    ] = None
    torch: o.TorchOptions
    out: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write.", show_default="MODEL-calibration.npz")
    ] = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is already there.")] = False
    json: JsonOption = None


def thresholds(options: ThresholdsOptions) -> None:
    """Find thresholds and hot sets in a recorded trace, for cats, dip-threshold, teal and static, at every density.

    Example: hwsim fit thresholds smollm2.npz -o calibration.npz
    """
    from hwsim.analysis.calibration import KIND
    from hwsim.analysis.calibration import calibrate as run
    from hwsim.trace import Trace
    from hwsim.util.arrayfile import write_arrays

    trace, model, torch, json = find_trace(options.trace), options.model, options.torch, options.json
    check_target(json, trace)
    if model is None and torch != o.TorchOptions():
        raise SettingError(
            "--device, --dtype, --max-memory and --trust-remote-code are for the --model, and none is given"
        )
    memory = torch.memory
    with Trace(trace) as opened:
        path = options.out or Path(f"{opened.model.name}-calibration.npz")
        check_new_file(path)
        spare(path, [trace])
        if json and json != "-":
            spare(Path(json), [path], "writes the calibration to")
        if path.is_file() and not options.overwrite:
            raise OutputError(f"{path}: exists; name another file with -o, or give --overwrite")
        with progress_bar() as progress:
            fitted = run(opened, progress=progress)
            if model is not None:
                from hwsim.train.allocation import allocate

                fitted = allocate(
                    model, opened, fitted, device=torch.device, dtype=torch.dtype, max_memory=memory,
                    trust_remote_code=torch.trust_remote_code, progress=progress,
                )  # fmt: skip
    write_arrays(path, KIND, fitted.header, fitted.arrays)
    summary = {"format": KIND, "version": 1, "file": str(path), "bytes": path.stat().st_size, **fitted.header}
    if json:
        write_json(json, to_json(summary))
    if json != "-":
        _print(summary, options.trace)


def _print(summary: dict[str, Any], trace: Path) -> None:
    console = output()
    synthetic = ", synthetic" if summary["origin"] == "synthetic" else ""
    lines = [
        f"Calibrated: {summary['tokens']} tokens of {summary['model']['name']}{synthetic}, "
        f"signals {', '.join(summary['signals'])}, {show_size(summary['bytes'])}",
    ]
    if synthetic:
        lines.append("The trace is synthetic: its thresholds are those of no model.")
    if "allocation" in summary:
        lines.append(f"Greedy allocation for teal measured on {summary['allocation']['tokens']} tokens.")
    policy = "cats" if "gate" in summary["signals"] else "dip-threshold"
    lines.append(
        f"Next: hwsim replay {quoted(str(trace))} --hw pixel8 --dram 50% --policy {policy} "
        f"--set {quoted('calibration=' + summary['file'])}"
    )
    for line in lines:
        console.print(printable(line), markup=False, soft_wrap=True)

"""``hwsim fit layout``: a trace -> an order of the neurons in which those that are active together lie side by side."""

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
from hwsim.cli.trace import TraceArgument
from hwsim.errors import OutputError
from hwsim.util.files import check_new_file, spare


def layout(
    trace: TraceArgument,
    out: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="File to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is already there.")] = False,
    json: JsonOption = None,
) -> None:
    """Order the neurons so that those which are active together lie side by side in Flash.

    A replay with --layout FILE and --block B reads blocks of B such neighbours. What it gives:
    docs/explanation/model.md.

    Example: hwsim fit layout sample -o neurons.npz
    """
    from hwsim.analysis.coactivation import order_trace
    from hwsim.memory.neuron_order import write_layout
    from hwsim.trace import Trace
    from hwsim.util.units import printable

    trace = find_trace(trace)
    check_new_file(out)
    spare(out, [trace])
    check_target(json, trace)
    if json and json != "-":
        spare(Path(json), [out], "writes the layout to")
    if out.is_file() and not overwrite:
        raise OutputError(f"{out}: exists; name another file with -o, or give --overwrite")
    with Trace(trace) as opened, progress_bar() as progress:
        neuron_layout, neighbours = order_trace(opened, progress)
    write_layout(out, neuron_layout)
    layers, neurons = neuron_layout.orders.shape
    if json:
        data = {
            "file": str(out),
            "layout": neuron_layout.digest,
            "layers": layers,
            "neurons": neurons,
            "tokens": neighbours.tokens,
            "neighbours_active_together": {"before": neighbours.before, "after": neighbours.after},
        }
        write_json(json, to_json(data))
    if json != "-":
        output().print(
            f"{printable(str(out))}: {neurons} neurons in each of {layers} layers, from {neighbours.tokens} tokens\n"
            f"neighbours are active together at {neighbours.after:.1%} of these tokens, in the model's own order at "
            f"{neighbours.before:.1%}",
            markup=False,
            soft_wrap=True,
        )
    if json and json != "-":
        note(f"Written to {json}")

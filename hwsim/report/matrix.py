"""Several policies on several devices: tokens/s in a table with a line for each policy, a column for each device."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from hwsim.report.columns import Column, fit, rows, table, widen
from hwsim.report.table import device_line, notes, settings_line
from hwsim.simulation.metrics import Result
from hwsim.util.units import printable, show_number

Device = tuple[str, list[Result], Result]
"""The name that the user gave, the results of all policies on this device, and that of the unmasked model."""


def print_matrix(console: Console, devices: list[Device]) -> None:
    """Print the matrix, each rate with its ratio to the unmasked model, and then the notes of all results."""
    first = devices[0][1][0].provenance
    title = f"{first['model']['name']}, {devices[0][1][0].tokens} tokens decoded from {first['trace']['name']} "
    title += f"({first['trace']['origin']}); tokens/s, and how that compares with {_name(devices[0][2])}"
    console.print(Text(printable(title)))
    console.print(Text(settings_line(devices[0][1][0])), style="dim", soft_wrap=not console.is_terminal)
    for device, results, _ in devices:
        console.print(Text(printable(f"{device}: {device_line(results[0])}")), soft_wrap=not console.is_terminal)
    console.print()
    names = [_name(result) for result in devices[0][1]]
    unmasked = _name(devices[0][2])
    with_dense = names if unmasked in names else [unmasked, *names]
    columns = [Column("policy", with_dense, folds=True)]
    for number, (device, results, dense) in enumerate(devices):
        by_name = {_name(result): result for result in (dense, *results)}
        speeds = [by_name[name].throughput_tok_s for name in with_dense]
        cells = [f"{show_number(speed)}  {speed / dense.throughput_tok_s:.2f} x" for speed in speeds]
        columns.append(Column(printable(device), cells, drop=number))
    shown, dropped = fit(columns, console.width, 2)
    matrix = table(shown, 2)
    for row in rows(shown):
        matrix.add_row(*row)
    console.print(matrix)
    console.print()
    device_notes = dict.fromkeys(
        f"{device}: {note}" for device, results, dense in devices for note in notes(results, dense)
    )
    everywhere = [
        note
        for note in dict.fromkeys(line.partition(": ")[2] for line in device_notes)
        if _shared(note, device_notes, devices)
    ]
    for note in everywhere + [line for line in device_notes if line.partition(": ")[2] not in everywhere]:
        console.print(
            Text(f"- {printable(note)}"),
            style="yellow" if "warning" in note else None,
            soft_wrap=not console.is_terminal,
        )
    if dropped:
        console.print(Text("\n").append(widen(dropped)))


def _shared(note: str, device_notes: dict[str, None], devices: list[Device]) -> bool:
    """Whether every device has this note, so that it is printed once."""
    return all(f"{device}: {note}" in device_notes for device, _, _ in devices)


def _name(result: Result) -> str:
    return printable(str(result.provenance["policy"]["name"]))

"""Hardware profiles as tables: every number with its unit, source and confidence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import ConsoleRenderable, Group
from rich.text import Text

from hwsim.device.profile import FlashTable, Profile
from hwsim.report.columns import Column, fit, rows, table, widen
from hwsim.util.units import printable, show_energy, show_rate, show_size, show_time

_SHOW: dict[str, Any] = {
    "budget": show_size,
    "bandwidth": show_rate,
    "peak_bandwidth": show_rate,
    "read_bandwidth": show_rate,
    "latency": show_time,
    "page_size": lambda value: f"{value} B",
    "queue_depth": str,
    "engines": lambda value: ", ".join(f"{printable(name)} {show_rate(rate)}" for name, rate in value.items()),
    "rate": lambda value: f"{value / 1e9:g} GOP/s",
    "rates": lambda value: ", ".join(f"{bits:g} bits {rate / 1e9:g} GOP/s" for bits, rate in value.items()),
    "overhead": show_time,
    "selection": lambda value: f"{show_time(value)} a unit",
    "bookkeeping": lambda value: f"{show_time(value)} a unit",
    "dram_write": lambda value: show_energy(value) + "/B",
    "per_kib": show_time,
    "command": show_time,
    "exponent": lambda value: f"{value:g}",
    "after": show_time,
    "below": lambda value: f"{value} B",
    "factor": lambda value: f"{value:g}",
    "dram_read": lambda value: show_energy(value) + "/B",
    "flash_read": lambda value: show_energy(value) + "/B",
    "compute": lambda value: show_energy(value) + "/OP",
    "base_power": lambda value: f"{value:g} W",
}
_GAP = 2


def render_devices(profiles: dict[str, Profile], width: int = 160) -> ConsoleRenderable:
    """Render all profiles, one line each, with the columns that fit into `width` characters."""
    profile_list = list(profiles.values())
    models = [
        f"{len(p.flash.table.read)} x {len(p.flash.table.queue_depth)} table"
        if p.flash.table
        else "queue"
        if p.flash.queue
        else "flat"
        for p in profile_list
    ]
    columns = [
        Column("\ndevice", list(profiles), folds=True),
        Column("DRAM\nbudget", [show_size(p.dram.budget) for p in profile_list], 1),
        Column("DRAM\nread", [show_rate(p.dram.bandwidth) for p in profile_list]),
        Column("Flash\nread", [show_rate(p.flash.read_bandwidth) for p in profile_list]),
        Column("Flash\nmodel", models, 3),
        Column("confidence\nDRAM", [p.dram.confidence or "-" for p in profile_list], 2, "confidence"),
        Column("\nFlash", [p.flash.confidence or "-" for p in profile_list], 2, "confidence"),
        Column("\nkind", [p.kind or "-" for p in profile_list], 5, folds=True),
        Column("\nwhat it is", [printable(p.name) for p in profile_list], 4, folds=True),
    ]
    return Group(*_fitted(columns, width))


def _fitted(columns: list[Column], width: int) -> list[ConsoleRenderable]:
    """A table of the columns that fit into `width` characters, and a line that names the others."""
    columns, dropped = fit(columns, width, _GAP)
    shown = table(columns, _GAP)
    for column in shown.columns:
        column.justify = "left"
    for name, *cells in rows(columns):
        name.stylize("bold")
        shown.add_row(name, *cells)
    return [shown, widen(dropped)] if dropped else [shown]


def _words(text: str | None) -> str:
    """A text from a profile on one line, printable."""
    return printable(" ".join((text or "").split()))


def render_device(profile: Profile, path: Path, width: int = 160) -> ConsoleRenderable:
    """Render all fields of one profile."""
    parts: list[ConsoleRenderable] = [
        Text(printable(profile.name), style="bold"),
        Text(printable(str(path)), style="dim"),
    ]
    parts += [Text(_words(text)) for text in (profile.source, profile.note) if text]
    lines: list[tuple[str, ...]] = []
    parts_of = {name: getattr(profile.flash, name) for name in ("queue", "spread", "thermal")}
    for section in ("dram", "flash", "queue", "spread", "thermal", "compute", "energy"):
        content = parts_of[section] if section in parts_of else getattr(profile, section)
        if content is None:
            continue
        first = True
        for field in type(content).model_fields:
            value = getattr(content, field)
            if section == "spread" and field == "rate":
                value = ", ".join(f"{share:g} within {show_size(size)}" for size, share in value.items())
            elif value is None or field not in _SHOW:
                continue
            where = ". ".join(_words(text) for text in (content.source, content.note) if text)
            says = (content.confidence or "-", where or "-") if first else ("", "")
            lines.append(
                (section if first else "", field, value if isinstance(value, str) else _SHOW[field](value), *says)
            )
            first = False
    section_, field_, value_, confidence, source = (list(cells) for cells in zip(*lines, strict=True))
    columns = [
        Column("section", section_, 1),
        Column("field", field_),
        Column("value", value_),
        Column("confidence", confidence, 2),
        Column("source", source, 3, folds=True),
    ]
    parts += [Text(""), *_fitted(columns, width)]
    if profile.flash.table:
        parts += [Text(""), *_flash_table(profile.flash.table, width)]
    return Group(*parts)


def _flash_table(flash: FlashTable, width: int) -> list[ConsoleRenderable]:
    sizes = [f"{size // 1024} KiB" if size % 1024 == 0 else f"{size} B" for size in flash.read]
    columns = [Column("request", sizes)]
    for index, depth in enumerate(flash.queue_depth):
        cells = [show_rate(row[index] * flash.unit) for row in flash.read.values()]
        columns.append(Column(f"depth {depth}", cells, index))
    head = Text("Flash, random read by request size and queue depth", style="bold")
    about = f"{flash.confidence or '-'}: {_words(flash.source) or '-'}. {_words(flash.note)}"
    return [head, Text(about), *_fitted(columns, width)]

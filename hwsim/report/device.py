"""Hardware profiles as tables: every number with its unit, source and confidence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import ConsoleRenderable, Group
from rich.table import Table
from rich.text import Text

from hwsim.profile import Profile
from hwsim.units import show_energy, show_rate, show_size, show_time

_SHOW: dict[str, Any] = {
    "budget": show_size,
    "bandwidth": show_rate,
    "peak_bandwidth": show_rate,
    "read_bandwidth": show_rate,
    "latency": show_time,
    "page_size": lambda value: f"{value} B",
    "queue_depth": str,
    "rate": lambda value: f"{value / 1e9:g} GOP/s",
    "overhead": show_time,
    "dram_read": lambda value: show_energy(value) + "/B",
    "flash_read": lambda value: show_energy(value) + "/B",
    "compute": lambda value: show_energy(value) + "/OP",
    "base_power": lambda value: f"{value:g} W",
}
_WIDE = 110  # columns of a terminal


def _grid(*heads: str, wraps: tuple[str, ...] = ("source",)) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for head in heads:
        table.add_column(head, no_wrap=head not in wraps)
    return table


def render_devices(profiles: dict[str, Profile], width: int = 160) -> ConsoleRenderable:
    """All profiles, a line each; what the devices are called in full only where a line has room for it."""
    heads = ["\ndevice", "DRAM\nbudget", "DRAM\nread", "Flash\nread", "Flash\nmodel", "confidence\nDRAM", "\nFlash"]
    full = width >= _WIDE
    table = _grid(*heads, *(["\nwhat it is"] if full else []), wraps=("\nwhat it is",))
    for name, profile in profiles.items():
        flash = profile.flash
        row: list[str | Text] = [
            Text(name, style="bold"),
            show_size(profile.dram.budget),
            show_rate(profile.dram.bandwidth),
            show_rate(flash.read_bandwidth),
            f"{len(flash.table.read)} x {len(flash.table.queue_depth)} table" if flash.table else "flat",
            profile.dram.confidence or "-",
            flash.confidence or "-",
        ]
        if full:
            row.append(Text(profile.name))
        table.add_row(*row)
    return table


def render_device(profile: Profile, path: Path) -> ConsoleRenderable:
    """One profile in full."""
    parts: list[ConsoleRenderable] = [Text(profile.name, style="bold"), Text(f"{path}", style="dim")]
    parts += [Text(text) for text in (profile.source, profile.note) if text]
    table = _grid("section", "field", "value", "confidence", "source")
    for section in ("dram", "flash", "compute", "energy"):
        content = getattr(profile, section)
        if content is None:
            continue
        first = True
        for field in type(content).model_fields:
            value = getattr(content, field)
            if value is None or field not in _SHOW:
                continue
            where = ". ".join(text for text in (content.source, content.note) if text)
            says = (content.confidence or "-", where or "-") if first else ("", "")
            table.add_row(section if first else "", field, _SHOW[field](value), says[0], Text(says[1]))
            first = False
    parts += [Text(""), table]
    if profile.flash.table:
        parts += [Text(""), *_flash_table(profile)]
    return Group(*parts)


def _flash_table(profile: Profile) -> list[ConsoleRenderable]:
    flash = profile.flash.table
    if flash is None:
        return []
    table = _grid("request", *(f"depth {depth}" for depth in flash.queue_depth))
    for size, row in flash.read.items():
        table.add_row(
            f"{size // 1024} KiB" if size % 1024 == 0 else f"{size} B", *(show_rate(v * flash.unit) for v in row)
        )
    head = Text("Flash, random read by request size and queue depth", style="bold")
    return [head, Text(f"{flash.confidence or '-'}: {flash.source or '-'}. {flash.note or ''}"), table]

"""Pages that the site makes of the program itself when mkdocs builds it: command line, options, shipped profiles."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from rich.console import Console

from hwsim.device.profile import known_profiles, load_profile
from hwsim.report.device import render_device, render_devices

sys.path.insert(0, str(Path(__file__).resolve().parent))
from options import page

ROOT = Path(__file__).resolve().parent.parent


def on_files(files: Files, config: Any) -> Files:
    """Add the made pages."""
    made = {"reference/cli.md": command_line(), "reference/options.md": page(), "reference/profiles.md": profiles()}
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def command_line() -> str:
    """Every command with its options, as typer documents them."""
    command = [sys.executable, "-m", "typer", "hwsim.cli.app", "utils", "docs", "--name", "hwsim"]
    made = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    return made.replace("# `hwsim`", "# The command line", 1)


def profiles() -> str:
    """All shipped devices, and each with the source of every number."""
    found = {name: load_profile(path) for name, path in known_profiles().items()}
    parts = [f"# Shipped profiles\n\n`hwsim list devices`:\n\n{_shown(render_devices(found, 150), 150)}"]
    for name, profile in found.items():
        page = _shown(render_device(profile, Path("hw_profiles") / f"{name}.yaml", 120), 120)
        parts.append(f"## {name}\n\n{page}")
    return "\n\n".join(parts)


def _shown(table: Any, width: int) -> str:
    text = io.StringIO()
    Console(file=text, width=width).print(table)
    lines = "\n".join(line.rstrip() for line in text.getvalue().splitlines())
    return f"```text\n{lines}\n```"

"""The reference page of a run's options, made of what `hwsim.simulation.settings.Settings` declares."""

from __future__ import annotations

from hwsim.simulation.settings import Settings
from hwsim.util.option import Declared, declared

_HEAD = """# Options of a run

Each option is declared once, in `hwsim/simulation/settings.py`. It has the same name and meaning on the command line,
as a key of a sweep's YAML (`-` is `_` there), in a file of `--settings` of a command that takes it (text, a whole
number, true or false there, one value each), and as a keyword of `hwsim.replay` and
`hwsim.closed_loop`. A result tells what was chosen under `provenance.settings`.

| option | what it does | values | unit | default | commands |
|---|---|---|---|---|---|
"""


def page(settings: type[Settings] = Settings) -> str:
    """The page.

    Args:
        settings: declares the options.
    """
    return _HEAD + "".join(f"{_row(option)}\n" for option in declared(settings).values())


def _row(option: Declared) -> str:
    declaration = option.option
    default = declaration.shown or ("" if option.plain_default is None else f"`{option.plain_default}`")
    cells = [
        f"`{option.flag}`", declaration.help, _values(option), declaration.unit, default,
        ", ".join(f"`{command}`" for command in declaration.commands),
    ]  # fmt: skip
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _values(option: Declared) -> str:
    declaration = option.option
    if isinstance(declaration.given, tuple):
        return ", ".join(f"`{word}`" for word in declaration.given)
    if declaration.given is bool:
        return "yes or no"
    if declaration.least is not None:
        most = "" if declaration.most is None else f" to {declaration.most:,}"
        return f"whole number from {declaration.least}{most}"
    return f"`{declaration.metavar}`" if declaration.metavar else "text"

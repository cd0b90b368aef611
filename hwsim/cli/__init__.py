"""The command line, the only place where everything meets: one file a command, loading what it needs when it runs.

`app` holds the table of commands, `group` loads a command when it is asked for, and `declared` makes options of the
fields of a dataclass.
"""

from __future__ import annotations

from hwsim.cli.app import app

__all__ = ["main"]


def main() -> None:
    """Run the command line and leave the process with its exit code.

    0: done. 1: a mistake of the user's, told in one line. 2: the command line itself is wrong. 130: interrupted.
    """
    app(prog_name="hwsim")

"""Write the golden results anew. Never run by a test; the reason belongs into docs/log.md.

python -m tests.system.golden.make            # all of them
python -m tests.system.golden.make replays    # one of: replays, outputs
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from tests.system import compare
from tests.system.replays import REPLAYS
from tests.system.run import run_json, write


def replays() -> None:
    """Results of all replays."""
    entries = {line: run_json(f"replay {line}") for line in REPLAYS}
    write("replays.json", {"arithmetic": compare.arithmetic(), **entries})


PARTS: dict[str, Callable[[], None]] = {"replays": replays}


def main(names: list[str]) -> None:
    """Write the parts of these names; without names all."""
    for name in names or PARTS:
        PARTS[name]()


if __name__ == "__main__":
    main(sys.argv[1:])

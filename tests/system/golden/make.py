"""Write the golden results anew. Never run by a test; the reason belongs into docs/log.md.

python -m tests.system.golden.make            # all of them
python -m tests.system.golden.make replays    # one of: replays, outputs
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.system import compare
from tests.system.replays import FILES, JSONS, REPLAYS, TEXTS
from tests.system.run import decided, run, run_json, write, written


def replays() -> None:
    """Results of all replays."""
    entries = {line: run_json(f"replay {line}") for line in REPLAYS}
    write("replays.json", {"arithmetic": compare.arithmetic(), **entries})


def outputs() -> None:
    """What other commands print and write."""
    texts = {line: run(line.split()).splitlines() for line in TEXTS}
    write("texts.json", texts)
    entries = {line: run_json(line) for line in JSONS}
    with TemporaryDirectory() as folder:
        entries |= {line: written(line, Path(folder) / str(number)) for number, line in enumerate(FILES)}
    write("outputs.json", {"arithmetic": compare.arithmetic(), "masks": decided(), **entries})


PARTS: dict[str, Callable[[], None]] = {"replays": replays, "outputs": outputs}


def main(names: list[str]) -> None:
    """Write the parts of these names; without names all."""
    for name in names or PARTS:
        PARTS[name]()


if __name__ == "__main__":
    main(sys.argv[1:])

"""Write the golden results anew. Never run by a test; the reason belongs into docs/log.md.

python -m tests.system.golden.make            # all of them
python -m tests.system.golden.make replays    # one of: replays, outputs, store, loops
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import hwsim
from tests.system import compare
from tests.system.checkpoints import arithmetic
from tests.system.loops import LOOPS, checkpoints, loop, recorded
from tests.system.replays import FILES, JSONS, REPLAYS, TEXTS
from tests.system.run import GOLDEN, decided, run, run_json, swept, write, written

FIRST_GRID = 30907  # bytes of DRAM, by which its runs are known


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


def store() -> None:
    """Keys and results of a sweep; of the results that many runs have alike only the totals."""
    with TemporaryDirectory() as folder:
        results = swept(Path(folder) / "runs.db", hwsim.__version__)
    totals = ("tokens", "throughput_tok_s", "time_s", "unit_requests", "unit_hits", "flash_read_bytes", "energy_j")
    entries: dict[str, Any] = {"arithmetic": compare.arithmetic(), "version": hwsim.__version__}
    for key, result in results.items():
        whole = result["provenance"]["settings"]["dram_budget_bytes"] == FIRST_GRID
        entries[key] = result if whole else {name: result[name] for name in totals}
    write("store.json", entries)


def loops() -> None:
    """Results and masks of closed loops, and a recorded trace; needs torch and transformers.

    Raises:
        SystemExit: weights that are changed by a millionth give other masks, so that rounding would, too.
    """
    with TemporaryDirectory() as folder:
        models = checkpoints(Path(folder) / "models")
        entries = {name: loop(line, models, Path(folder) / f"{name}.npz") for name, line in LOOPS.items()}
        for seed in range(3):
            near = checkpoints(Path(folder) / str(seed), noise=1e-6, seed=seed)
            for name, line in LOOPS.items():
                if loop(line, near, Path(folder) / f"{seed} {name}.npz")["masks"] != entries[name]["masks"]:
                    raise SystemExit(f"{name}: its masks depend on rounding; change the checkpoint or the policy")
        write("loops.json", {"arithmetic": arithmetic(models / "llama"), **entries})
        np.savez(GOLDEN / "recorded.npz", **recorded(models, Path(folder) / "recorded.npz"))  # type: ignore[arg-type]


PARTS: dict[str, Callable[[], None]] = {"replays": replays, "outputs": outputs, "store": store, "loops": loops}


def main(names: list[str]) -> None:
    """Write the parts of these names; without names all."""
    for name in names or PARTS:
        PARTS[name]()


if __name__ == "__main__":
    main(sys.argv[1:])

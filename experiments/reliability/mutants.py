"""Do the tests notice when the code is wrong? Cosmic-ray changes it in one place, and the tests must fail.

    python experiments/reliability/mutants.py SAMPLE WORK [PROCESSES]

For each area, so many of its mutants are drawn (seed 0; of all that cosmic-ray can make, less those of annotations,
which change nothing), each is tested in a clone of what is committed, and the tests that belong to the area are run
until one fails. A mutant that only makes them take more than `LIMIT` is counted as killed, as cosmic-ray does. What is
done is kept in WORK, so the same command goes on. Puts the table into docs/project/reliability.md, and what survived
into docs/results/mutants.txt, to be read: some change nothing that counts.
"""

from __future__ import annotations

import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from cosmic_ray.commands import init
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.work_db import WorkDB, use_db

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "experiments"))

from tables import grid, replaced  # noqa: E402

PAGE, SURVIVORS = ROOT / "docs" / "project" / "reliability.md", ROOT / "docs" / "results" / "mutants.txt"
LIMIT = 240.0  # s


class Area(NamedTuple):
    """What is changed, and which tests must notice; the fast ones first."""

    name: str
    sources: list[str]
    tests: list[str]


AREAS = [
    Area(
        "cache",
        ["hwsim/cache/cache.py", "hwsim/cache/shared.py"],
        ["tests/cache/test_cache.py", "tests/system/test_golden.py", "tests/cache/test_unit_sets.py",
         "tests/cache/test_compiled.py", "tests/cache/test_combined_caches.py", "tests/cache/test_shared_cache.py",
         "tests/evictions"],
    ),
    Area(
        "evictions",
        ["hwsim/evictions"],
        ["tests/cache/test_cache.py", "tests/system/test_golden.py", "tests/evictions", "tests/simulation",
         "tests/cache/test_shared_cache.py"],
    ),
    Area(
        "policies",
        ["policies/hwsim_policies"],
        ["tests/system/test_golden.py", "tests/policies", "tests/analysis/test_calibration.py",
         "tests/simulation/test_densities.py", "tests/train", "tests/closed_loop/test_policy_shapes.py"],
    ),
    Area(
        "closed form",
        ["hwsim/timing/closed_form.py"],
        ["tests/system/test_golden.py", "tests/timing/test_engine.py", "tests/timing/test_events.py",
         "tests/timing/test_mechanisms.py", "tests/timing/test_overlap.py", "tests/system/test_invariants.py"],
    ),
]  # fmt: skip


def main() -> int:
    """Test the mutants; 1 if the tests fail without any."""
    sample, kept = int(sys.argv[1]), Path(sys.argv[2]) / "mutants.jsonl"
    processes = int(sys.argv[3]) if len(sys.argv) > 3 else os.cpu_count() or 1
    kept.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    rows, survivors, counts = [], [], [0, 0, 0]
    with tempfile.TemporaryDirectory() as folder:
        clones = [Path(folder) / str(number) for number in range(processes)]
        for clone in clones:
            subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        for area in AREAS:
            drawn, made = _draw(area, sample)
            if subprocess.run(_tests(area), cwd=clones[0], env=_surroundings(clones[0]), check=False).returncode:
                sys.stderr.write(f"{area.name}: its tests fail without a mutant\n")
                return 1
            found = list(_test(area, drawn, clones, kept))
            alive = [mutant for mutant in found if not mutant["killed"]]
            killed = len(found) - len(alive)
            rows.append([area.name, f"{made:,}", str(len(found)), str(killed), f"{100 * killed / len(found):.1f} %"])
            counts = [sum(pair) for pair in zip(counts, [made, len(found), killed], strict=True)]
            survivors += [f"== {area.name}\n{mutant['diff']}" for mutant in alive]
    rows.append(["all", f"{counts[0]:,}", str(counts[1]), str(counts[2]), f"{100 * counts[2] / counts[1]:.1f} %"])
    head = ["area", "mutants", "of these tested", "killed", "share"]
    minutes = (time.monotonic() - began) / 60
    told = f"cosmic-ray {version('cosmic-ray')}, seed 0, {minutes:.0f} min in {processes} processes."
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(replaced(page, "mutants", f"\n{grid(head, rows)}\n\n{told}"), encoding="utf-8")
    SURVIVORS.write_text("\n\n".join(survivors) + "\n", encoding="utf-8")
    return 0


def _tests(area: Area) -> list[str]:
    return [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *area.tests]


def _surroundings(clone: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": f"{clone}:{clone}/policies", "OMP_NUM_THREADS": "1"}


def _draw(area: Area, sample: int) -> tuple[list[Any], int]:
    """Some mutants, and how many there are."""
    paths = sorted(path for source in area.sources for path in _modules(ROOT / source))
    with use_db(":memory:", WorkDB.Mode.create) as work:
        init([path.relative_to(ROOT) for path in paths], work, {})
        mutants = [item.mutations[0] for item in work.pending_work_items]
    written = {path.relative_to(ROOT): _annotations(path) for path in paths}
    mutants = [m for m in mutants if not any(a <= m.start_pos < b for a, b in written[m.module_path])]
    mutants.sort(key=lambda m: (str(m.module_path), m.start_pos, m.operator_name, m.occurrence))
    return random.Random(0).sample(mutants, min(sample, len(mutants))), len(mutants)


def _modules(path: Path) -> list[Path]:
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def _annotations(path: Path) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where a file's annotations are: (line, column) of beginnings and ends."""
    found: list[ast.expr | None] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            found.append(node.returns)
        elif isinstance(node, ast.arg | ast.AnnAssign):
            found.append(node.annotation)
    return [
        ((node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0)) for node in found if node
    ]


def _test(area: Area, mutants: list[Any], clones: list[Path], kept: Path) -> Iterator[dict[str, Any]]:
    known = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    done = {each["place"]: each for each in known}
    left = [mutant for mutant in mutants if _place(mutant) not in done]
    yield from (done[_place(mutant)] for mutant in mutants if _place(mutant) in done)
    shares = [left[number :: len(clones)] for number in range(len(clones))]
    with ProcessPoolExecutor(len(clones)) as pool:
        for share in pool.map(_test_in, [area] * len(clones), shares, clones, [kept.resolve()] * len(clones)):
            yield from share


def _place(mutant: Any) -> str:
    line, column = mutant.start_pos
    return f"{mutant.module_path}:{line}:{column} {mutant.operator_name} {mutant.occurrence}"


def _test_in(area: Area, mutants: list[Any], clone: Path, kept: Path) -> list[dict[str, Any]]:
    os.chdir(clone)
    os.environ.update(_surroundings(clone))
    found = []
    for mutant in mutants:
        for left in clone.rglob("__pycache__"):  # pyc files do not notice a change within a second
            if not any(left.glob("*.nbi")):
                shutil.rmtree(left, ignore_errors=True)
        result = mutate_and_test([mutant], " ".join(_tests(area)), LIMIT)
        if result.test_outcome is None:
            continue
        killed = result.test_outcome.value == "killed"
        found.append({"place": _place(mutant), "killed": killed, "diff": "" if killed else result.diff})
        with kept.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found[-1]) + "\n")
        sys.stderr.write(f"{area.name}: {_place(mutant)} {result.test_outcome.value}\n")
        sys.stderr.flush()
    return found


if __name__ == "__main__":
    sys.exit(main())

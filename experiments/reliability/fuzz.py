"""Bad files for every reader: how many were read, how many refused, and did any do harm?

    python experiments/reliability/fuzz.py FILES [KIND ...]

Needs a clone, as it uses tests/fuzz. Puts the table into docs/project/reliability.md where all kinds were asked for;
files that did harm are written to fuzz-faults/ in the current folder, and the command ends with 1.
"""

from __future__ import annotations

import platform
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "experiments")]

from tables import replaced  # noqa: E402

from tests.fuzz.drive import HANG_S, drive  # noqa: E402
from tests.fuzz.kinds import all_kinds  # noqa: E402

PAGE = ROOT / "docs" / "project" / "reliability.md"


def main(files: int, only: list[str]) -> int:
    """Drive all kinds; the number of faults."""
    lines = [
        "| file | bad files | refused in one line | read all the same | slowest | faults |",
        "|---|---|---|---|---|---|",
    ]
    faults = []
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for kind in all_kinds(Path(folder)):
            if only and kind.name not in only:
                continue
            told = drive(kind, files, seed=0)
            faults += told.faults
            lines.append(
                f"| {kind.name} | {told.files:,} | {told.refused:,} | {told.read:,} | {told.slowest_s:.2f} s "
                f"| {len(told.faults)} |"
            )
            print(lines[-1], flush=True)
    for number, fault in enumerate(faults):
        Path("fuzz-faults").mkdir(exist_ok=True)
        Path(f"fuzz-faults/{fault.kind}-{number}").write_bytes(fault.content)
        print(f"{fault.kind}-{number}: {fault.why}")
    about = (
        f"Python {platform.python_version()}, seed 0, {time.monotonic() - start:.0f} s on one core; a reader that "
        f"takes longer than {HANG_S} s or 2 GiB more counts as a fault."
    )
    print(about)
    if not only:
        PAGE.write_text(replaced(PAGE.read_text(), "fuzz", "\n".join([*lines, "", about])))
    return len(faults)


if __name__ == "__main__":
    sys.exit(1 if main(int(sys.argv[1]), sys.argv[2:]) else 0)

"""Files far larger than usual: a sparse trace of 50 GB, and a store of 10,000 runs.

    python experiments/reliability/large.py WORK

The trace holds zeros that take no room on the disk, with the right checksums, so it is a valid one. It is opened and
sampled at random places; the store, copies of one run under other keys, is asked by `hwsim runs`. Prints a table of
Markdown. Needs a file system with holes, some 400 MB in WORK, and half a minute for the checksums.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np

from hwsim.model.catalog import known_shape
from hwsim.trace import Sequence, TraceHeader

TOKENS, RUNS = 27_000, 10_000
ZEROS = bytes(1 << 24)
ASK = """
import resource, sys, time
import numpy as np
from hwsim.trace import Trace
began = time.perf_counter()
with Trace(sys.argv[1]) as trace:
    opened = time.perf_counter()
    draw = np.random.default_rng(0)
    for _ in range(1000):
        layer, start = int(draw.integers(trace.model.num_hidden_layers)), int(draw.integers(trace.header.tokens - 16))
        assert not trace.read(layer, "glu", start, start + 16).any()
    done = time.perf_counter()
print(opened - began, done - opened, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


class Holes:
    """A file in which zeros are left out."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")

    def write(self, data: bytes) -> int:
        """Write, or leave a hole."""
        if data is ZEROS:
            self._file.seek(len(data), 1)
        else:
            self._file.write(data)
        return len(data)

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)


def sparse_trace(path: Path) -> None:
    """A valid trace of zeros."""
    header = TraceHeader(
        origin="synthetic", model=known_shape("phi3-medium"), signals=["input", "glu"],
        sequences=[Sequence(tokens=TOKENS)],
    )  # fmt: skip
    with zipfile.ZipFile(Holes(path), "w", zipfile.ZIP_STORED) as archive:  # type: ignore[call-overload]
        with archive.open("header.npy", "w") as member:
            np.lib.format.write_array(member, header.to_array())
        for name, (shape, dtype) in header.members().items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                size = int(np.prod(shape)) * dtype.itemsize
                np.lib.format.write_array_header_1_0(
                    member, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
                )
                for _ in range(size // len(ZEROS)):
                    member.write(ZEROS)
                member.write(bytes(size % len(ZEROS)))


def large_store(path: Path) -> None:
    """One replay's result, many times, under keys and parameters of its own."""
    words = ["--trace", "sample", "--hw", "pixel8", "--policy", "dip", "--dram", "50%", "-o", str(path)]
    subprocess.run([sys.executable, "-m", "hwsim", "sweep", *words], check=True, capture_output=True)
    with sqlite3.connect(path) as db:
        names = [row[1] for row in db.execute("PRAGMA table_info(runs)")]
        row = dict(zip(names, db.execute("SELECT * FROM runs").fetchone(), strict=True))
        result, marks = json.loads(row["result"]), ", ".join("?" * len(names))
        for number in range(RUNS - 1):
            policy = result["provenance"]["policy"] = {
                "name": ["dip", "dip-ca"][number % 2], "parameters": {"density": round(number / RUNS, 6)}, "source": "",
            }  # fmt: skip
            changed = row | {
                "key": f"{number:064x}", "policy": policy["name"], "parameters": json.dumps(policy["parameters"]),
                "request": f"{number}", "result": json.dumps(result),
            }  # fmt: skip
            db.execute(f"INSERT INTO runs VALUES ({marks})", list(changed.values()))


def seconds(*words: str) -> float:
    """How long a command of hwsim takes."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "hwsim", *words], check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> int:
    """Make both, ask them, print the table."""
    work = Path(sys.argv[1])
    work.mkdir(parents=True, exist_ok=True)
    trace, store = work / "sparse.npz", work / "large.db"
    for path in (trace, store):
        path.unlink(missing_ok=True)
    sparse_trace(trace)
    large_store(store)
    done = subprocess.run([sys.executable, "-c", ASK, str(trace)], check=True, capture_output=True, text=True)
    opening, sampling, peak = map(float, done.stdout.split())
    heavy = f"{store.stat().st_size / 1e6:.0f} MB"
    size, room = trace.stat().st_size, trace.stat().st_blocks * 512
    rows = [
        (f"open a trace of {size / 1e9:.1f} GB ({room / 1e6:.1f} MB on the disk)", f"{opening:.3f} s"),
        ("read 1,000 times 16 tokens of one layer at random", f"{sampling:.2f} s, {peak / 1e6:.0f} MB at most"),
        (f"`hwsim runs` of {RUNS:,} runs ({heavy})", f"{seconds('runs', str(store)):.2f} s"),
        ("the same, `--where policy=dip-ca`", f"{seconds('runs', str(store), '--where', 'policy=dip-ca'):.2f} s"),
        ("`hwsim --version`, to compare", f"{seconds('--version'):.2f} s"),
    ]
    with sqlite3.connect(store) as db:
        began = time.perf_counter()
        db.execute("SELECT policy, max(throughput_tok_s) FROM runs GROUP BY policy").fetchall()
        rows.append(("the best of each policy, by SQL", f"{time.perf_counter() - began:.3f} s"))
    lines = ["| | |", "|---|---:|", *(f"| {what} | {took} |" for what, took in rows)]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

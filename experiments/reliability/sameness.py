"""The same input, the same bytes: replays of the bundled sample under other Pythons, hash seeds, locales, time zones.

    python experiments/reliability/sameness.py WORK python3.11 python3.12 ...

For each interpreter an environment with the core alone is made in WORK, kept for the next time. Its numpy is the newest
that it can have, which differs between them, and then the oldest that hwsim names, where a wheel of it exists.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OLDEST = "1.26.4"
RUNS = {
    "dip-ca, lfu": ["--policy", "dip-ca", "--dram", "50%"],
    "dip-ca, lru, pipeline": ["--policy", "dip-ca", "--dram", "60%", "--eviction", "lru", "--overlap", "pipeline"],
    "random, random": ["--policy", "random", "--dram", "50%", "--eviction", "random", "--seed", "3"],
    "dip, belady": ["--policy", "dip", "--dram", "50%", "--eviction", "belady"],
}
SURROUNDINGS = {
    "plain": {},
    "hash seed 1": {"PYTHONHASHSEED": "1"},
    "hash seed 99": {"PYTHONHASHSEED": "99"},
    "locale C": {"LC_ALL": "C"},
    "locale de_DE": {"LC_ALL": "de_DE.UTF-8"},
    "Tokyo": {"TZ": "Asia/Tokyo"},
}


def environment(work: Path, python: str, numpy: str | None) -> Path | None:
    """The `python` of an environment with the core; None where that numpy has no wheel for it."""
    code = "import platform; print(platform.python_version())"
    name = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    folder = work / (name + (f"-numpy-{numpy}" if numpy else ""))
    inside = folder / "bin" / "python"
    if not (folder / "ready").exists():
        subprocess.run([python, "-m", "venv", folder], check=True)
        pip = [inside, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--only-binary=numpy"]
        done = subprocess.run([*pip, *([f"numpy=={numpy}"] if numpy else []), ROOT], check=False)
        if done.returncode:
            return None
        (folder / "ready").touch()
    return inside


def digests(python: Path, extra: dict[str, str]) -> dict[str, str]:
    """SHA-256 of each run's JSON."""
    found = {}
    for name, options in RUNS.items():
        words = [python, "-m", "hwsim", "replay", "sample", "--hw", "oneplus15r", *options, "--json", "-"]
        done = subprocess.run(words, env=os.environ | extra, capture_output=True, check=True, cwd="/")
        found[name] = hashlib.sha256(done.stdout).hexdigest()
    return found


def main() -> int:
    """1 if anything differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("pythons", nargs="+")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    first: dict[str, str] = {}
    worst = 0
    print("| Python | numpy | surroundings | runs | as the first |\n|---|---|---|---:|---|")
    for python in given.pythons:
        for numpy in (None, OLDEST):
            inside = environment(given.work, python, numpy)
            if inside is None:
                continue
            code = "import platform, numpy; print(platform.python_version(), '|', numpy.__version__)"
            which = subprocess.run([inside, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
            for surroundings, extra in SURROUNDINGS.items():
                found = digests(inside, extra)
                first = first or found
                same = found == first
                worst |= not same
                print(f"| {which} | {surroundings} | {len(found)} | {'yes' if same else 'NO'} |", flush=True)
    return worst if first else 1  # no environment, nothing shown


if __name__ == "__main__":
    sys.exit(main())

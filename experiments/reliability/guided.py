"""Bad files that look for new paths through the code: atheris (libFuzzer) mutates what its coverage likes.

    python experiments/reliability/guided.py KIND SECONDS

KIND is one of tests/fuzz/kinds.py. It begins with the kind's good files and with tests/fuzz/corpus/KIND, and puts there
what reached something new, smallest first, `KEPT` files at most; the tests read those files again. A file that does
harm is written to fuzz-faults/ in the current folder, and the command ends with an error; else the number of inputs
goes into the table of docs/project/reliability.md.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

with atheris.instrument_imports(include=["hwsim"]):
    from hwsim.errors import HwsimError
    from tests.fuzz.kinds import all_kinds

KEPT, LARGEST = 30, 16_384
PAGE = ROOT / "docs" / "project" / "reliability.md"
_INPUTS = re.compile(r"^Done (\d+) runs in", re.MULTILINE)


def fuzz(name: str, seconds: str, found: str, seeds: str) -> None:
    """Never comes back: libFuzzer ends the process."""
    folder = Path(tempfile.mkdtemp())
    kind = next(kind for kind in all_kinds(folder) if kind.name == name)
    for number, content in enumerate(kind.seeds):
        (Path(seeds) / f"seed{number}").write_bytes(content)
    path = folder / f"file{kind.ending}"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        try:
            kind.read(path)
        except HwsimError as error:
            if len(str(error).splitlines()) != 1:
                raise AssertionError(f"not one line: {error}") from error

    faults = Path("fuzz-faults")
    faults.mkdir(exist_ok=True)
    flags = [f"-max_total_time={seconds}", "-timeout=10", "-rss_limit_mb=4096", f"-artifact_prefix={faults}/{name}-"]
    atheris.Setup([sys.argv[0], found, seeds, f"-max_len={LARGEST}", *flags], read)
    atheris.Fuzz()


def main() -> int:
    """Fuzz in a process of its own, then keep what is worth it."""
    name, seconds = sys.argv[1:3]
    if len(sys.argv) > 3:
        fuzz(name, seconds, *sys.argv[3:5])
    corpus = ROOT / "tests" / "fuzz" / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as found, tempfile.TemporaryDirectory() as seeds:
        for kept in corpus.iterdir():
            (Path(found) / kept.name).write_bytes(kept.read_bytes())
        done = subprocess.run(
            [sys.executable, __file__, name, seconds, found, seeds], check=False, stderr=subprocess.PIPE, text=True
        )
        sys.stderr.write(done.stderr)
        reached = sorted(Path(found).iterdir(), key=lambda path: (path.stat().st_size, path.name))
        for path in reached[:KEPT]:
            content = path.read_bytes()
            (corpus / hashlib.sha256(content).hexdigest()[:16]).write_bytes(content)
    if (inputs := _INPUTS.search(done.stderr)) and not done.returncode:
        PAGE.write_text(counted(PAGE.read_text(), name, int(inputs[1])))
    return done.returncode


def counted(page: str, name: str, inputs: int) -> str:
    """The page with a kind's number of inputs in its table, and the sum of all."""
    before, rest = page.split("<!-- guided: begin -->\n")
    table, after = rest.split("<!-- guided: end -->")
    rows = dict(re.findall(r"^\| (\w+) \| ([\d,]+) \|$", table, re.MULTILINE))
    rows.pop("all", None)
    rows[name] = f"{inputs:,}"
    rows["all"] = f"{sum(int(each.replace(',', '')) for each in rows.values()):,}"
    lines = ["", "| file | inputs |", "|---|---|", *(f"| {kind} | {count} |" for kind, count in rows.items()), "", ""]
    return f"{before}<!-- guided: begin -->\n" + "\n".join(lines) + f"<!-- guided: end -->{after}"


if __name__ == "__main__":
    sys.exit(main())

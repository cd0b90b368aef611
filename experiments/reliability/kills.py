"""kill -9 at random moments: is everything that was there still whole, and does the same command complete?

    python experiments/reliability/kills.py KILLS [COMMAND ...]

Each command runs undisturbed first. Then, so many times: it is begun anew beside a file of before, killed at a random
moment, looked at (what it writes is as before, or whole), and begun again; its result must be that of the undisturbed
run, byte for byte. Puts the rows of the commands into the table of docs/project/reliability.md, and ends with 1 if
anything was lost. Recordings and trainings are of a small random model, for which the extras `record`, `train` and
`tune` must be there.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "experiments")]

from tables import replaced  # noqa: E402

PAGE = ROOT / "docs" / "project" / "reliability.md"
HWSIM = [sys.executable, "-c", "from hwsim.cli import main; main()"]


def _bytes(path: Path) -> object:
    if path.is_dir():
        return {str(each.relative_to(path)): each.read_bytes() for each in sorted(path.rglob("*")) if each.is_file()}
    return path.read_bytes() if path.exists() else None


def _runs(path: Path) -> object:
    """What a store holds; that of a run that was not finished is nothing."""
    if not path.exists():
        return None
    with sqlite3.connect(path) as db:
        try:
            return db.execute("SELECT key, request, result FROM runs ORDER BY key").fetchall()
        except sqlite3.OperationalError:
            return []


class Command(NamedTuple):
    """What is run.

    Attributes:
        name: of the command.
        words: its arguments; OUT is what it writes.
        out: name of that.
        content: what counts of it.
        grows: whether a part of the result may be there after a kill, which the next run goes on with.
        before: a file that lies there first, of the kind that is written; None: none does.
    """

    name: str
    words: list[str]
    out: str
    content: Callable[[Path], object] = _bytes
    grows: bool = False
    before: bytes | None = b"of before"


_REPLAY = ["replay", "sample", "--hw", "pixel8", "--dram", "60%", "--policy", "dip"]
_COUNT = ["train", "prefetch", "sample", "--policy", "dip", "--hw", "pixel8", "--dram", "60%"]
_SWEEP = ["sweep", "--trace", "sample", "--hw", "pixel8", "--policy", "dip,dip-ca", "--density", "0.4,0.5,0.6,0.7"]
_NEW = ["--overwrite", "-o", "OUT"]
_JSON, _HTML = b'{"of": "before"}', b"<!doctype html>of before"
_MODEL = ["--model", "./model", "--text", "book.txt"]
_SMALL = ["--tokens", "960", "--validation", "96", "--context", "48", "--rank", "4", "--every", "4"]
_TUNE = ["tune", *_MODEL, "--hw", "pixel8", "--dram", "60%", "--tokens", "64", "--context", "32", "--loss", "50"]
_LORA = ["train", "lora", *_MODEL, "--hw", "pixel8", "--dram", "60%", "--policy", "dip", *_SMALL]
COMMANDS = [
    Command("synth", ["synth", "--model", "smollm2-135m", "--tokens", "32", *_NEW], "t.npz"),
    Command("trace convert", ["trace", "convert", "sample.npz", "--encoding", "int8", *_NEW], "t.npz"),
    Command("replay --json", [*_REPLAY, "--json", "OUT"], "r.json", before=_JSON),
    Command("replay --timeline", [*_REPLAY, "--timeline", "OUT"], "t.json", before=_JSON),
    Command("fit layout", ["fit", "layout", "sample", *_NEW], "n.npz"),
    Command("fit thresholds", ["fit", "thresholds", "sample", *_NEW], "c.npz"),
    Command("train prefetch", [*_COUNT, *_NEW], "g.npz"),
    Command("validate --json", ["validate", "--json", "OUT"], "v.json", before=_JSON),
    Command("sweep", [*_SWEEP, "--dram", "60%", "--jobs", "2", "-o", "OUT"], "s.db", _runs, grows=True, before=None),
    Command("report", ["report", "result.json", "-o", "OUT"], "r.html", before=_HTML),
    Command("record", ["record", *_MODEL, "--tokens", "4096", "--context", "64", *_NEW], "t.npz"),
    Command("train predictor", ["train", "predictor", "small.npz", "--epochs", "2", *_NEW], "p.npz"),
    Command("train lora", [*_LORA, *_NEW], "adapter", before=None),
    Command("tune", [*_TUNE, "--trials", "40", "--study", "study.db", "-o", "OUT"], "tuned.yaml", before=None),
]


def _begin(command: Command, folder: Path) -> subprocess.Popen[bytes]:
    words = [command.out if word == "OUT" else word for word in command.words]
    return subprocess.Popen(
        [*HWSIM, *words], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def _killed(command: Command, folder: Path, after: float) -> bool:
    """Begin it and kill it with all its children: whether it was still running."""
    process = _begin(command, folder)
    time.sleep(after)
    running = process.poll() is None
    if running:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return running


def torment(command: Command, kills: int, rng: random.Random, seeds: Path) -> tuple[int, list[str]]:
    """Kill it so many times: how often it was still running, and what was lost."""
    lost, hit = [], 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        shutil.copytree(seeds, folder, dirs_exist_ok=True)
        start = time.monotonic()
        assert _begin(command, folder).wait() == 0, command.name
        lasts = time.monotonic() - start
        whole = command.content(folder / command.out)
        for number in range(kills):
            target = folder / command.out
            for left in folder.iterdir():
                if not (seeds / left.name).exists():
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            before = command.before
            if before is not None:
                target.write_bytes(before)
            hit += _killed(command, folder, rng.uniform(0.02, 1.1) * lasts)
            found = command.content(target)
            part = command.grows and (found is None or set(found) <= set(whole))  # type: ignore[call-overload]
            if found not in (before, whole) and not part:
                lost.append(f"{command.name} {number}: what it writes is neither as before nor whole")
            for seed in seeds.iterdir():
                if _bytes(seed) != _bytes(folder / seed.name):
                    lost.append(f"{command.name} {number}: {seed.name} was changed")
            if _begin(command, folder).wait() != 0:
                lost.append(f"{command.name} {number}: the same command fails")
            elif command.content(target) != whole:
                lost.append(f"{command.name} {number}: the same command finds something else")
    return hit, lost


def _small_model(seeds: Path) -> None:
    """A random checkpoint, a text, and a trace of both."""
    from hwsim.record import BUNDLED, Settings, record  # noqa: PLC0415
    from tests.record.conftest import make_model, save  # noqa: PLC0415

    save(make_model("llama"), seeds / "model")
    shutil.copy(BUNDLED["persuasion"], seeds / "book.txt")
    record(seeds / "small.npz", str(seeds / "model"), str(seeds / "book.txt"), settings=Settings(1024, 64))


def main(kills: int, only: list[str]) -> int:
    """Torment all commands, or those named; how much was lost."""
    rng, lost = random.Random(0), []
    rows: dict[str, list[str]] = {}
    for line in PAGE.read_text().partition("<!-- kills: begin -->")[2].partition("<!-- kills: end -->")[0].splitlines():
        if line.startswith("| `hwsim "):
            name, *numbers = (cell.strip() for cell in line.strip("|").split("|"))
            rows[name.strip("`").removeprefix("hwsim ")] = numbers
    with tempfile.TemporaryDirectory() as place:
        seeds = Path(place)
        sample = ROOT / "traces" / "smollm2-135m-sample.npz"
        shutil.copy(sample, seeds / "sample.npz")
        words = ["replay", "sample", "--hw", "pixel8", "--policy", "dip,dip-ca", "--json", "result.json"]
        subprocess.run([*HWSIM, *words], cwd=seeds, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _small_model(seeds)
        for command in COMMANDS:
            if only and command.name not in only:
                continue
            hit, found = torment(command, kills, rng, seeds)
            lost += found
            rows[command.name] = [str(kills), str(hit), str(len(found))]
            print(command.name, *rows[command.name], *found, flush=True)
    told = [command.name for command in COMMANDS if command.name in rows]
    lines = ["| command | kills | of these while it ran | lost |", "|---|---|---|---|"]
    lines += [f"| `hwsim {name}` | {' | '.join(rows[name])} |" for name in told]
    sums = [sum(int(rows[name][column]) for name in told) for column in range(3)]
    lines.append(f"| all | {' | '.join(map(str, sums))} |")
    PAGE.write_text(replaced(PAGE.read_text(), "kills", "\n".join(lines)))
    return len(lost)


if __name__ == "__main__":
    sys.exit(1 if main(int(sys.argv[1]), sys.argv[2:]) else 0)

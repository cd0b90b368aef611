"""Write the files of this folder as commit 82dddd5 does. Run by hand, with that commit; no test runs it.

    git worktree add /tmp/old 82dddd5
    PYTHONPATH=/tmp/old:/tmp/old/policies python tests/system/files/make.py

Files that a user writes (`text.txt`, `device.yaml`, `rates.csv`, `densities.yaml`, `shares.json`, `sweep.yaml`) lie
here already; all others are replaced. Commands run in an empty folder into which those were copied, so that no path of
a machine gets into a file. What hwsim writes and never reads is left out: reports, timelines, and the ``--json`` of
commands that find no result, such as `hwsim tune` and `hwsim trace info`.
"""

from __future__ import annotations

import json
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))

import small_model  # noqa: E402

COMMIT = "82dddd5"
WRITTEN_BY_HAND = ("text.txt", "device.yaml", "rates.csv", "densities.yaml", "shares.json", "sweep.yaml")
TASKS = ("endings.yaml", "endings.jsonl", "examples.jsonl")  # of tests/closed_loop/tasks

MODEL = "--model tiny --text text.txt"
SHORT = f"{MODEL} --tokens 48 --context 24"
DEVICE = "--hw device.yaml --dram 80%"
ADAPTED = "--hw device.yaml --dram 95%"  # room for an adapter, too
LORA = f"{MODEL} {DEVICE} --policy dip --tokens 288 --validation 24 --context 24 --batch 1 --rank 1 --every 6"
COMMANDS = f"""
record {SHORT} --prompt 4 --signals input,up,gate,attn_input,attn_output -o trace.npz
record {SHORT} --prompt 4 --encoding int8 -o trace-int8.npz
record {SHORT} --prompt 4 --encoding top --keep-share 0.75 -o trace-top.npz
record {SHORT} --prompt 4 --signals input,glu --norms -o trace-norms.npz
synth --model smollm2-135m --tokens 2 --signals input --like trace.npz -o synthetic.npz
calibrate trace.npz --model tiny -o calibration.npz
layout trace.npz -o layout.npz
train predictor trace.npz --density 0.7 --rank 1 --epochs 2 -o nets.npz
train prefetch trace.npz --policy dip {DEVICE} -o guesses.npz
train lora {LORA} -o lora
replay trace.npz {DEVICE} --policy dip --save-cache units.npz --json result.json
replay trace.npz {DEVICE} --policy dip --block 4 --layout layout.npz --save-cache blocks.npz --json blocks.json
replay trace.npz {DEVICE} --policy dip,magnitude --density 0.7 --eviction lru --overlap group --json results.json
replay trace.npz {DEVICE} --policy dip --per-token --json per-token.json
replay trace.npz {DEVICE} --policy dip --timing closed-form --json closed-form.json
replay trace.npz {DEVICE} --policy dip --overlap prefetch --prefetch trained --set prefetch.path=guesses.npz --json prefetch.json
trace curve trace.npz {DEVICE} --policy dip --json curve.json
eval {SHORT} --prompt 4 {DEVICE} --policy dip --save-masks masks.npz --json evaluation.json
eval {SHORT} {ADAPTED} --policy dip --density densities.yaml --lora lora --save-masks masks-lora.npz --json evaluation-lora.json
eval --model tiny {DEVICE} --policy dip --tasks persuasion_endings --tasks-path tasks --limit 2 --json tasks.json
generate --model tiny --prompt Martin --tokens 6 {DEVICE} --policy dip --json generated.json
tune {SHORT} {DEVICE} --loss 50 --trials 4 --study study.db -o tuned.yaml
calibrate-device rates.csv --like device.yaml --name Fitted -o fitted.yaml
new-policy mine -o plugins
new-eviction leaving -o plugins
"""
SWEEP = "sweep sweep.yaml --jobs 1 -o runs.db"  # one run of it fails: cats is given no calibration

# Commands that are killed: the Python that runs before them kills the process when something has become safe on disk.
KILL = "import os, signal, sys\nfrom hwsim.cli import main\n{}\nmain()"
WHEN_A_WINDOW_IS_SAFE = """
from hwsim.trace import TraceWriter
commit = TraceWriter.commit
def kill(self, done):
    commit(self, done)
    self._settle()
    if done == 24:
        os.kill(os.getpid(), signal.SIGKILL)
TraceWriter.commit = kill
"""
WHEN_A_LAYER_IS_SAFE = """
from hwsim.train.partial import Partial
add = Partial.add
def kill(self, arrays, result):
    add(self, arrays, result)
    os.kill(os.getpid(), signal.SIGKILL)
Partial.add = kill
"""
WHEN_A_STATE_IS_SAFE = """
from hwsim.train.adapterfile import Partial
save = Partial.save
def kill(self, torch, state):
    save(self, torch, state)
    os.kill(os.getpid(), signal.SIGKILL)
Partial.save = kill
"""
KILLED = {
    f"record {SHORT} --prompt 4 -o recording.npz": WHEN_A_WINDOW_IS_SAFE,
    "train predictor trace.npz --density 0.7 --rank 1 --epochs 2 -o unfinished-nets.npz": WHEN_A_LAYER_IS_SAFE,
    f"train lora {LORA} -o unfinished-lora": WHEN_A_STATE_IS_SAFE,
}
# Names here: git ignores *.partial and *.progress.json.
RENAMED = {
    "recording.npz.partial": "unfinished/recording",
    "recording.npz.progress.json": "unfinished/recording-progress",
    "unfinished-nets.npz.partial": "unfinished/nets",
    "unfinished-lora.partial": "unfinished/lora",
    "plugins/mine.py": "plugins/mine.txt",
    "plugins/test_mine.py": "plugins/test_mine.txt",
    "plugins/leaving.py": "plugins/leaving.txt",
    "plugins/test_leaving.py": "plugins/test_leaving.txt",
}


def main() -> None:
    check_commit()
    for path in HERE.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in (*WRITTEN_BY_HAND, Path(__file__).name):
            path.unlink()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        for words in COMMANDS.split("\n"):
            if words:
                run(folder, *words.split())
        run(folder, *SWEEP.split(), code=1)
        for words, patch in KILLED.items():
            run(folder, *words.split(), patch=patch, code=-signal.SIGKILL)
        keep(folder)
    versions = {package: version(package) for package in ("numpy", "optuna", "peft", "torch", "transformers")}
    versions |= {"hwsim": "0.1.0", "commit": COMMIT, "python": platform.python_version()}
    (HERE / "versions.json").write_text(json.dumps(versions, indent=2, sort_keys=True) + "\n")


def check_commit() -> None:
    """Refuse another hwsim than that of the commit."""
    import hwsim

    folder = Path(hwsim.__file__).resolve().parent.parent
    same = subprocess.run(["git", "diff", "--quiet", COMMIT, "--", "hwsim", "policies"], cwd=folder, check=False)
    if same.returncode:
        sys.exit(f"{folder} is not commit {COMMIT}")


def prepare(folder: Path) -> None:
    for name in WRITTEN_BY_HAND:
        shutil.copy(HERE / name, folder)
    small_model.save_model(folder / "tiny")
    (folder / "tasks").mkdir()
    for name in TASKS:
        shutil.copy(HERE.parents[1] / "closed_loop" / "tasks" / name, folder / "tasks")


def run(folder: Path, *words: str, patch: str = "", code: int = 0) -> None:
    done = subprocess.run([sys.executable, "-c", KILL.format(patch), *words], cwd=folder, check=False)
    if done.returncode != code:
        sys.exit(f"hwsim {' '.join(words)}: ended with {done.returncode}, not {code}")


def keep(folder: Path) -> None:
    """Copy what was written, but the model and what was read."""
    for there, here in RENAMED.items():
        (folder / here).parent.mkdir(exist_ok=True)
        (folder / there).rename(folder / here)
    for path in sorted(folder.iterdir()):
        if path.name in ("tiny", "tasks", *WRITTEN_BY_HAND):
            continue
        if path.is_dir():
            shutil.copytree(path, HERE / path.name)
        else:
            shutil.copy(path, HERE / path.name)


if __name__ == "__main__":
    main()

"""The paper's experiment (arXiv 2412.01380) on SmolLM2-135M: accuracy and speed of policies, by hwsim's own commands.

    python experiments/results/smollm2.py WORK [--only accuracy,lora,replays,tuned] [--densities 0.5,0.7] [--page FILE]

Everything is kept in the folder WORK (about 4 GB) and made once: text, traces, calibration, nets, adapters, results.
The same command goes on where it was stopped. Where accuracy and replays were run, the tables of the page are written
anew between their markers; what the page says about them is a person's.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from hwsim.closed_loop import Candidate, evaluate
from hwsim.device.profile import load_profile
from hwsim.record import Settings as Reading
from hwsim.simulation.plugins import EVICTIONS as EVICTION
from hwsim.simulation.plugins import POLICIES as POLICY
from hwsim.simulation.run import Conditions
from hwsim.simulation.settings import Settings
from hwsim.util.files import write_atomic

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "experiments"))

import smollm2_tables as tables  # noqa: E402

MODEL = "smollm2-135m"
DEVICE, DRAM = "iphone16-a18", "50%"  # the paper's
TOKENS, CONTEXT = 8192, 512  # of the held-out text
SHORT = 2048  # of its tokens, for the ablations of the device
DENSITIES = (0.5, 0.6, 0.7, 0.8, 0.9)
LEAST = {"magnitude": 2 / 3, "up": 1 / 3, "gate": 1 / 3, "cats": 1 / 3}  # densities that a policy can only exceed
POLICIES = ("oracle", "magnitude", "gate", "up", "cats", "predictor", "dip")
GAMMAS = (0.2, 0.5)
LORA_DENSITY, LORA_TOKENS = 0.5, 196_608  # that the adapter is trained at, and on
NETS_TOKENS = 8192
CALIBRATION_TOKENS = 4096
FLASH = ("0.5 GB/s", "1 GB/s", "2 GB/s", "4 GB/s")
LOSSES = (0.1, 0.2, 0.3, 0.5)  # of perplexity, that is tuned for
TUNING_TOKENS, TRIALS = 6144, 64
TUNING_LORA = 0.72  # density that the adapter which may be on is trained at
UNIFORM = (
    0.74,
    0.76,
    0.78,
    0.8,
    0.82,
    0.84,
    0.86,
    0.88,
    0.9,
    0.94,
    0.98,
)  # densities of what tuned settings stand beside
UNIFORM_LORA = (0.6, 0.64, 0.68, 0.72, 0.76, 0.8)  # the same with the adapter
SHARES = ("40%", "50%", "60%", "70%", "80%", "90%")
EVICTIONS = ("none", "fifo", "lru", "lfu", "belady")


class Workshop:
    """The folder of work, and the commands that fill it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("text", "results", "hw"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self.commands: dict[str, str] = {}

    def path(self, name: str) -> Path:
        """A file of the folder."""
        return self.folder / name

    def hwsim(self, *arguments: object) -> None:
        """Run one command of hwsim, in the folder."""
        words = [str(each) for each in arguments]
        print("$ hwsim", shlex.join(words), flush=True)
        start = time.monotonic()
        program = "from hwsim.cli import main; main()"
        subprocess.run([sys.executable, "-c", program, *words], cwd=self.folder, check=True, stdout=subprocess.DEVNULL)
        print(f"  {time.monotonic() - start:.0f} s", flush=True)

    def made(self, name: str, *arguments: object, there: str = "") -> Path:
        """A file that a command makes with ``-o``; made once, as its command stands beside it.

        Args:
            name: of the file.
            arguments: of the command.
            there: another file that shows that the command was run.
        """
        path, beside = self.path(name), self.path(f"{name}.command")
        command = shlex.join(str(each) for each in arguments)
        done = self.path(there or name).exists() and beside.exists() and beside.read_text() == command
        if not done:
            self.hwsim(*arguments, "-o", name)
            beside.write_text(command)
        return path

    def result(self, name: str, *arguments: object) -> list[dict[str, Any]]:
        """What a command writes with ``--json``, as a list of results; run once."""
        path, beside = self.path(f"results/{name}.json"), self.path(f"results/{name}.command")
        command = shlex.join(str(each) for each in arguments)
        self.commands[name] = command
        if not path.exists() or not beside.exists() or beside.read_text() != command:
            self.hwsim(*arguments, "--json", f"results/{name}.json")
            beside.write_text(command)
        found = json.loads(path.read_text())
        return list(found.get("results", [found]))


def texts(shop: Workshop) -> None:
    """Articles to train on, and articles to judge by."""
    if not shop.path("text/test.txt").exists():
        subprocess.run([sys.executable, HERE / "encyclopaedia.py", shop.path("text")], check=True)


def recording(shop: Workshop, name: str, text: str, tokens: int, signals: str) -> str:
    """A trace, made once."""
    arguments = ("record", "--model", MODEL, "--text", f"text/{text}.txt", "--tokens", tokens, "--context", CONTEXT)
    return shop.made(name, *arguments, "--signals", signals).name


def accuracy(shop: Workshop, densities: list[float]) -> list[dict[str, Any]]:
    """Perplexity, speed and hit rate of every policy at every density, in the closed loop."""
    trace = recording(shop, "calibration-trace.npz", "train", CALIBRATION_TOKENS, "input,up,gate")
    calibration = shop.made("calibration.npz", "fit", "thresholds", trace)
    nets_trace = recording(shop, "nets-trace.npz", "train", NETS_TOKENS, "input,glu")
    rows = []
    for density in densities:
        nets = shop.made(f"nets-{density}.npz", "train", "predictor", nets_trace, "--density", density)
        names = [name for name in POLICIES if density > LEAST.get(name, 0) + 1e-9]
        files: dict[str, dict[str, Any]] = {
            "cats": {"calibration": str(calibration)},
            "predictor": {"predictor": str(nets)},
        }
        asked = [(name, density, name, files.get(name, {})) for name in names]
        asked += [(f"dip-ca, gamma {gamma}", density, "dip-ca", {"gamma": gamma}) for gamma in GAMMAS]
        rows += evaluated(shop, f"grid-{density}", asked)
    return rows


Asked = tuple[str, float, str, dict[str, Any]]
"""Label, density, policy and its other parameters."""


def evaluated(
    shop: Workshop, name: str, asked: list[Asked], lora: Path | None = None, *, merged: bool = False
) -> list[dict[str, Any]]:
    """The closed loop over the held-out text; all that is asked for shares one dense pass.

    As `hwsim eval` does it, but for several settings of one policy, which only Python can ask for.

    Args:
        name: of the file that keeps the results.
        asked: what to run.
        lora: folder of an adapter.
        merged: its product is taken as added to the weights.
    """
    path = shop.path(f"results/{name}.json")
    adapter = json.loads((lora / "hwsim.json").read_text())["done"] if lora else None
    key = json.loads(json.dumps([asked, TOKENS, CONTEXT, DEVICE, DRAM, adapter, merged]))
    if path.exists() and (kept := json.loads(path.read_text()))["key"] == key:
        return list(kept["rows"])
    print(f"evaluating {name}: {', '.join(label for label, *_ in asked)}", flush=True)
    start = time.monotonic()
    made = [POLICY.make(policy, {"density": density, **fields})[1] for _, density, policy, fields in asked]
    settings = Settings(dram=DRAM, lora=lora, lora_merged=merged)
    conditions = Conditions(load_profile(DEVICE), EVICTION.make("lfu")[1], settings, "lfu")
    results = evaluate(
        MODEL, str(shop.path("text/test.txt")), conditions,
        [Candidate(policy, each) for (_, _, policy, _), each in zip(asked, made, strict=True)],
        Reading(tokens=TOKENS, context=CONTEXT),
    )  # fmt: skip
    rows = [
        {"label": label, "asked": density, **row.plain()}
        for (label, density, *_), row in zip(asked, results, strict=True)
    ]
    write_atomic(path, json.dumps({"key": key, "rows": rows}))
    print(f"  {time.monotonic() - start:.0f} s", flush=True)
    return rows


def lora(shop: Workshop, densities: list[float]) -> list[dict[str, Any]]:
    """DIP with an adapter that was trained at one density, judged at all of them."""
    training = ("--policy", "dip", "--density", LORA_DENSITY, "--tokens", LORA_TOKENS, "--validation", 4096)
    how = ("--batch", 2, "--learning-rate", 1e-3, "--every", 32)
    folder = shop.made(
        f"lora-{LORA_DENSITY}", "train", "lora", "--model", MODEL, "--text", "text/train.txt", "--hw", DEVICE,
        "--dram", DRAM, *training, *how,
    )  # fmt: skip

    def judged(label: str, name: str, *, merged: bool) -> list[dict[str, Any]]:
        return evaluated(shop, name, [(label, density, "dip", {}) for density in densities], folder, merged=merged)

    return judged("dip + LoRA", "lora", merged=False) + judged("dip + LoRA, merged", "lora-merged", merged=True)


def curve(shop: Workshop) -> dict[str, Any]:
    """What the training of the adapter saw."""
    found: dict[str, Any] = json.loads(shop.path(f"lora-{LORA_DENSITY}/hwsim.json").read_text())
    return found


def replays(shop: Workshop, densities: list[float]) -> dict[str, Any]:
    """The open loop over the same held-out tokens: its gap to the closed one, evictions, DRAM sizes, Flash speeds."""
    trace = recording(shop, "test-trace.npz", "test", TOKENS, "input,glu")

    short = recording(shop, "short-trace.npz", "test", SHORT, "input,glu")

    def replay(
        name: str, policy: str, *more: object, hw: str = DEVICE, dram: str = DRAM, trace: str = short
    ) -> list[dict[str, Any]]:
        return shop.result(name, "replay", trace, "--hw", hw, "--dram", dram, "--policy", policy, *more)

    found: dict[str, Any] = {"gap": [], "eviction": [], "dram": [], "flash": []}
    for density in densities:
        for label, policy, gamma in (("dip", "dip", ()), *((f"dip-ca, gamma {g}", "dip-ca", g) for g in (0.2, 0.5))):
            more = ("--set", f"gamma={gamma}") if gamma else ()
            name = f"open-{policy}{gamma or ''}-{density}"
            (row,) = replay(name, policy, "--density", density, *more, trace=trace)
            found["gap"].append({"label": label, "asked": density, **row})
    for rule in EVICTIONS:
        for policy in ("dip", "dip-ca") if rule != "belady" else ("dip",):
            more = ("--set", "gamma=0.5") if policy == "dip-ca" else ()
            options = ("--density", 0.5, "--eviction", rule, *more)
            (row,) = replay(f"eviction-{rule}-{policy}", policy, *options, dram="80%")
            found["eviction"].append({"label": policy, "rule": rule, **row})
    options = ("--density", 0.5, "--set", "dip-ca.gamma=0.5")
    for share in SHARES:
        for row in replay(f"dram-{share}", "dense,dip,dip-ca", *options, dram=share):
            found["dram"].append({"label": row["provenance"]["policy"]["name"], "share": share, **row})
    for rate in FLASH:
        profile = f"hw/flash-{rate.split()[0]}.yaml"
        shop.path(profile).write_text(
            f"name: The paper's device with Flash of {rate}\ndram:\n  budget: 4 GB\n  bandwidth: 60 GB/s\n"
            f"flash:\n  read_bandwidth: {rate}\nsource: arXiv 2412.01380, Flash varied\n"
        )
        for row in replay(f"flash-{rate.split()[0]}", "dense,dip,dip-ca", *options, hw=profile):
            found["flash"].append({"label": row["provenance"]["policy"]["name"], "rate": rate, **row})
    return found


def tuned(shop: Workshop) -> dict[str, list[dict[str, Any]]]:
    """DIP-CA tuned, with an adapter that may be on, on text that neither the adapter nor the judgement has seen.

    Returns:
        ``search``: by loss what the study says, and what held-out text says; ``uniform``: DIP-CA as the authors set it,
        at the densities in question; ``adapted``: the same with the adapter.
    """
    whole = shop.path("text/train.txt").read_text()
    later = whole.index("\n\n", int(0.6 * len(whole)))  # the adapter's tokens end before half of it
    write_atomic(shop.path("text/tuning.txt"), whole[later:].strip() + "\n")
    masks = ("--policy", "dip-ca", "--density", TUNING_LORA, "--tokens", LORA_TOKENS, "--validation", 4096)
    how = ("--batch", 2, "--learning-rate", 1e-3, "--every", 32)
    folder = shop.made(
        f"lora-{TUNING_LORA}", "train", "lora", "--model", MODEL, "--text", "text/train.txt", "--hw", DEVICE,
        "--dram", DRAM, *masks, *how,
    )  # fmt: skip

    def at(densities: tuple[float, ...]) -> list[Asked]:
        return [("dip-ca, gamma 0.2", each, "dip-ca", {"gamma": 0.2}) for each in densities]

    uniform = evaluated(shop, "uniform", at(UNIFORM))
    adapted = evaluated(shop, "uniform-lora", at(UNIFORM_LORA), folder, merged=True)
    losses = ",".join(map(str, LOSSES))
    search = (
        "tune", "--model", MODEL, "--hw", DEVICE, "--dram", DRAM, "--text", "text/tuning.txt",
        "--tokens", TUNING_TOKENS, "--loss", losses, "--study", "study.db", "--trials", TRIALS,
        "--least-density", 0.55, "--lora", folder.name, "--lora-merged", "--json", "tuned.json",
    )  # fmt: skip
    shop.made("tuned.yaml", *search, there="tuned.json")
    study, rows = json.loads(shop.path("tuned.json").read_text()), []
    judge = ("eval", "--model", MODEL, "--hw", DEVICE, "--text", "text/test.txt", "--tokens", TOKENS)
    for loss in LOSSES:
        found = study["best"][f"{loss:g}"]
        if found:
            (row,) = shop.result(f"tuned-{loss}", *judge, "--context", CONTEXT, "--settings", f"tuned-{loss:g}.yaml")
            rows.append({"loss": loss, "tuned": found, "judged": row})
    return {"search": rows, "uniform": uniform, "adapted": adapted}


def main() -> None:
    """Run what is asked for, then write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", default="accuracy,lora,replays,tuned", help="parts to run")
    parser.add_argument("--densities", default=",".join(map(str, DENSITIES)))
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results" / "smollm2.md")
    given = parser.parse_args()
    shop, parts = Workshop(given.work.resolve()), given.only.split(",")
    densities = [float(each) for each in given.densities.split(",")]
    texts(shop)
    rows = accuracy(shop, densities) if "accuracy" in parts else []
    rows += lora(shop, densities) if "lora" in parts else []
    opened = replays(shop, densities) if "replays" in parts else {}
    if rows and opened and "accuracy" in parts:  # else what was run is kept for the next time
        tables.write(given.page, rows, opened, curve(shop) if "lora" in parts else {}, shop.commands)
    if "tuned" in parts:
        tables.write_tuned(given.page, **tuned(shop))


if __name__ == "__main__":
    main()

"""What is each mechanism of a device worth? Each left out in turn, on Phi-3-Medium's shape and on SmolLM2.

    python experiments/results/devices.py WORK

SmolLM2's trace is the recorded sample; Phi-3-Medium's is synthetic, drawn with the sample's statistics. The device is
the measured OnePlus 15R; its profile knows no arithmetic, so one with assumed costs stands in where those are ablated.
Prints tables of Markdown and puts them into docs/results/devices.md.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import hwsim
from hwsim.device.profile import Compute, Profile, Thermal, load_profile
from hwsim.simulation.metrics import Result
from hwsim.trace import Trace

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "experiments"))

from tables import replaced  # noqa: E402

POLICY, DRAM = "dip-ca", "50%"
READS = {"bundle": True, "packed": True, "merge": "256KiB", "gap": "auto"}
PAGE = ROOT / "docs" / "results" / "devices.md"


def full_device() -> Profile:
    """The OnePlus 15R with costs of arithmetic that nobody measured on it, and with heat."""
    device = load_profile("oneplus15r")
    compute = Compute.model_validate({
        "rate": "400 GOPS", "overhead": "20 us", "selection": "0.5 ns", "bookkeeping": "5 ns", "confidence": "assumed",
        "source": "assumed, to show what such costs do",
    })  # fmt: skip
    hot = Thermal.model_validate({"after": "1 s", "factor": 0.67})
    flash = device.flash.model_copy(update={"thermal": hot})
    return device.model_copy(update={"compute": compute, "flash": flash, "name": "OnePlus 15R with assumed arithmetic"})


def speed(trace: Trace, device: Profile, **options: object) -> Result:
    """Of one replay."""
    found = hwsim.replay(trace, hw=device, policy=POLICY, density=0.5, dram=DRAM, **options)  # type: ignore[arg-type]
    assert not isinstance(found, list)
    return found


def row(name: str, results: list[Result], against: list[Result]) -> str:
    """A line: tokens/s on each trace, and how much that is of what it is compared with."""
    cells = [
        f"{found.throughput_tok_s:.3g} | {found.throughput_tok_s / base.throughput_tok_s:.2f} x"
        for found, base in zip(results, against, strict=True)
    ]
    return f"| {name} | {' | '.join(cells)} |"


def table(traces: list[Trace], device: Profile, name: str, base: dict, variants: dict[str, dict]) -> list[str]:
    """All variants beside the base, which goes by `name`."""
    against = [speed(trace, device, **base) for trace in traces]
    head = "| | " + " | ".join(f"{trace.model.name}, tokens/s | " for trace in traces) + " |"
    lines = [head, "|---|" + "---|---|" * len(traces), row(name, against, against)]
    for variant, options in variants.items():
        found = [speed(trace, device, **{**base, **options}) for trace in traces]
        lines.append(row(variant, found, against))
    return lines


def guesses(traces: list[Trace], device: Profile, trained: list[Path]) -> list[str]:
    """Rules that read ahead: precision, recall, wasted bytes a token."""
    lines = [
        "| | model | tokens/s | precision | recall | read ahead a token | wasted a token |",
        "|---|---|---|---|---|---|---|",
    ]
    for trace, file in zip(traces, trained, strict=True):
        base = speed(trace, device, overlap="pipeline", **READS)
        lines.append(f"| pipeline, no guess | {trace.model.name} | {base.throughput_tok_s:.4g} | | | | |")
        for rule in ("last-token", "cross-layer", "trained", "oracle"):
            more = {"prefetch_parameters": {"path": str(file)}} if rule == "trained" else {}
            found = speed(trace, device, overlap="prefetch", prefetch=rule, **READS, **more)
            ahead = found.prefetch
            assert ahead is not None
            read, wasted = ahead.read_bytes / found.tokens / 1e3, ahead.wasted_bytes / found.tokens / 1e3
            lines.append(
                f"| {rule} | {trace.model.name} | {found.throughput_tok_s:.4g} | {ahead.precision or 0:.2f} "
                f"| {ahead.recall or 0:.2f} | {read:.0f} kB | {wasted:.0f} kB |"
            )
    return lines


def main(work: Path) -> None:
    """Make the traces, print and write the tables."""
    work.mkdir(parents=True, exist_ok=True)
    phi = work / "phi3-medium.npz"
    if not phi.exists():
        command = [
            "hwsim",
            "synth",
            "--model",
            "phi3-medium",
            "--tokens",
            "48",
            "--signals",
            "input,glu",
            "-o",
            str(phi),
        ]
        subprocess.run(command, check=True)
    other = work / "phi3-medium-other.npz"  # what is trained on one trace is judged on another
    if not other.exists():
        command = [
            "hwsim",
            "synth",
            "--model",
            "phi3-medium",
            "--tokens",
            "48",
            "--signals",
            "input,glu",
            "--seed",
            "1",
        ]
        subprocess.run([*command, "-o", str(other)], check=True)
    traces = [hwsim.load("sample"), hwsim.load(phi)]
    plain, device = load_profile("oneplus15r"), full_device()
    ways = table(traces, plain, "each slice of a unit a read of its own", {}, {
        "bundles: all slices of a unit are one read": {"bundle": True},
        "packed: units without gaps": {"packed": True},
        "bundles, packed": {"bundle": True, "packed": True},
        "bundles, packed, neighbours merged up to 256 KiB": {"bundle": True, "packed": True, "merge": "256KiB"},
        "the same, holes read through": READS,
        "blocks of 8 neighbours": {"block": 8},
        "flat rate (the closed form)": {"timing": "closed-form"},
    })  # fmt: skip
    base = {"overlap": "pipeline", "fills": True, **READS}
    ablation = table(traces, device, "all of it", base, {
        f"without {name}": {"ignore": name}
        for name in ("pages", "requests", "thermal", "compute", "overhead", "selection", "bookkeeping")
    } | {
        "without fills of DRAM": {"fills": False},
        "without overlap": {"overlap": "none"},
        "overlap within groups alone": {"overlap": "group"},
        "without merging": {"merge": None, "gap": 0},
        "without bundles": {"bundle": False},
        "only 40.3 GB/s of DRAM (one thread)": {"engine": "thread"},
    })  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.npz" for number in range(2)]
        for source, file in (("sample", files[0]), (str(other), files[1])):
            command = ["hwsim", "train", "prefetch", source, "--policy", POLICY, "--hw", "oneplus15r", "--dram", DRAM]
            subprocess.run([*command, "-o", str(file)], check=True, stdout=subprocess.DEVNULL)
        ahead = guesses(traces, device, files)
    text = PAGE.read_text()
    for name, lines in (("reads", ways), ("ablation", ablation), ("guesses", ahead)):
        print(f"\n{name}\n", *lines, sep="\n")
        text = replaced(text, name, "\n".join(lines))
    PAGE.write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

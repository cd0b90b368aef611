"""All benchmarks in one command, and the page that shows them.

    python benchmarks/all.py WORK [--only selection,threads,replays,experts,sweep,start,recording,closed-loop] [--large]

Results are kept in docs/project/benchmarks.json with machine, date and commit, and docs/project/benchmarks.md is
written from them; a part that is not run keeps its former figures. A quiet machine, please: medians forgive little.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import closed_loop
import experts
import recording
import replays
import selection
import sweeping
from bench import ROOT, command, machine, paired

from hwsim.device.profile import load_profile
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.simulation.replay import count
from hwsim.simulation.run import Conditions, Source
from hwsim.simulation.settings import Settings
from hwsim.trace import Trace

PAGE, KEPT = ROOT / "docs" / "project" / "benchmarks.md", ROOT / "docs" / "project" / "benchmarks.json"


def threads(work: Path) -> dict[str, Any]:
    """One and two threads for the masks and hits of a replay, and for the whole of it."""
    path, profile = replays.made(work, "phi3-medium", 1000), load_profile("pixel8")
    conditions = Conditions(profile, EVICTIONS.make("lfu")[1], Settings(dram="50%"))
    with Trace(path) as trace:
        run = conditions.run(Source.of_trace(trace), POLICIES.make("dip-ca")[1], "dip-ca")
        part = paired({"1": lambda: count(run, threads=1), "2": lambda: count(run, threads=2)}, 3)
    whole = {str(number): replays.replay(path, threads=number)["s"] for number in (1, 2)}
    return {"masks and hits": part, "whole": whole}


def start(_: Path) -> dict[str, Any]:
    """Cold processes: the help, and a replay of the bundled sample; and what is paid once for the compiled scan."""
    found = {
        "help": [command("--help")[0] for _ in range(6)],
        "sample": [
            command("replay", "sample", "--hw", "pixel8", "--dram", "50%", "--policy", "dip-ca")[0] for _ in range(6)
        ],
    }
    return {name: statistics.median(each[1:]) for name, each in found.items()}


def show_threads(found: dict[str, Any]) -> str:
    """As a table."""
    lines = [
        "| 1,000 tokens of Phi-3-Medium's shape, DIP-CA | 1 thread | 2 threads | |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, each in found.items():
        lines.append(f"| {name} | {each['1']:.2f} s | {each['2']:.2f} s | {each['1'] / each['2']:.2f} x |")
    return "\n".join(lines)


def show_start(found: dict[str, Any]) -> str:
    """As a sentence."""
    return f"`hwsim --help` {found['help']:.2f} s; `hwsim replay sample --policy dip-ca` {found['sample']:.2f} s."


def closed(_: Path) -> dict[str, Any]:
    """The closed loop beside a dense pass."""
    given = closed_loop.parser().parse_args([])
    return closed_loop.measure(given)


def show_closed(found: dict[str, Any]) -> str:
    """As a table."""
    lines = ["| pass | median | tokens/s | to dense |", "| --- | ---: | ---: | ---: |"]
    lines += [
        f"| {name} | {each['median_s']:.2f} s | {each['tokens_per_s']:.0f} | {each['ratio']:.2f} x |"
        for name, each in found["passes"].items()
    ]
    about = f"{found['model']}, windows of {found['context']} tokens, density {found['density']}, "
    about += f"{found['threads']} threads:"
    return "\n".join([about, "", *lines])


PARTS: dict[str, tuple[str, Any, Any]] = {
    "selection": ("Masks and caches, decided", lambda work: selection.run(), selection.show),
    "threads": ("Two threads", threads, show_threads),
    "replays": ("Whole replays", replays.run, replays.show),
    "experts": ("Experts", experts.run, experts.show),
    "sweep": ("Sweeps", lambda work: sweeping.run(), sweeping.show),
    "start": ("From a cold start", start, show_start),
    "recording": ("Recording", lambda work: recording.run(), recording.show),
    "closed-loop": ("The closed loop", closed, show_closed),
}


def main() -> None:
    """Run, keep, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--large", action="store_true", help="replays of 10,000 tokens, too")
    given = parser.parse_args()
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for name in given.only.split(","):
        _, run, _ = PARTS[name]
        found = run(given.work, large=given.large) if name == "replays" else run(given.work)
        kept[name] = {"machine": machine(), "found": found}
        KEPT.write_text(json.dumps(kept, indent=1) + "\n")
        print(f"## {PARTS[name][0]}\n\n{PARTS[name][2](found)}\n", flush=True)
    write(kept)


def write(kept: dict[str, Any]) -> None:
    """Put the figures between the markers of the page."""
    text = PAGE.read_text()
    for name, (_, _, show) in PARTS.items():
        if name not in kept:
            continue
        about = kept[name]["machine"]
        stamp = (
            f"*{about['date']}, commit {about['commit']}; {about['processor']}, {about['cores']} cores, Python "
            f"{about['python']}, numpy {about['numpy']}, numba {about['numba']}.*"
        )
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        before, rest = text.split(begin)
        after = rest.split(end)[1]
        text = f"{before}{begin}\n\n{show(kept[name]['found'])}\n\n{stamp}\n\n{end}{after}"
    PAGE.write_text(text)


if __name__ == "__main__":
    main()

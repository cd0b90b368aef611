"""The images of these pages: what each eviction rule does on the recorded sample, under DIP at half density.

    python docs/evictions/figures.py

Needs matplotlib. Prints the figures that the pages quote.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt

from hwsim.analysis.locality import GroupLocality, locality
from hwsim.evictions.lru import Lru
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.simulation.run import Conditions, Source
from hwsim.simulation.settings import Settings
from hwsim.trace import Trace
from hwsim.util.files import data_folder

HERE = Path(__file__).parent
SHARES = (50, 60, 70, 80, 90)  # --dram, % of the weights
GROUP = "down"  # whose masks fit into its cache from 62 % on; those of `input` do not before 75 %
BESIDE = {"lru": "0.6", "belady-bypass": "0.6"}


def measure(share: int) -> GroupLocality:
    """Hits of all rules at one DRAM budget."""
    conditions = Conditions(None, Lru(), Settings(dram=f"{share}%"))
    rules = {name: EVICTIONS.make(name)[1] for name in EVICTIONS.names()}
    with Trace(data_folder("traces") / "smollm2-135m-sample.npz") as trace:
        run = conditions.run(Source.of_trace(trace), POLICIES.make("dip")[1], "dip")
        return locality(trace, run.sequences, run.masking, rules)[GROUP]


def draw(name: str, found: list[GroupLocality]) -> None:
    """One rule in colour, the others that one compares with in grey."""
    figure, axes = plt.subplots(figsize=(5.2, 3.2), layout="constrained")

    def line(rule: str, part: int, **style: object) -> None:
        axes.plot(SHARES, [100 * group.rates(rule)[part] for group in found], **style)

    axes.plot(SHARES, [100 * group.uniform for group in found], color="0.75", ls=":", label="capacity / units")
    for other, shade in BESIDE.items():
        if other != name:
            line(other, 0, color=shade, ls="-" if other == "lru" else "-.", lw=1, label=other)
    line(name, 1, color="tab:blue", ls="--", label=f"{name}, tokens shuffled")
    line(name, 0, color="tab:blue", marker="o", ms=4, label=name)
    axes.set(xlabel="DRAM, % of the weights", ylabel="hit rate of down's columns, %", xticks=SHARES, ylim=(0, 102))
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE / f"{name}.svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)


def main() -> None:
    """Measure, draw and print."""
    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": "hwsim", "svg.fonttype": "none"}  # the same figure, the same bytes
    found = [measure(share) for share in SHARES]
    for name in found[0].rules:
        draw(name, found)
        rates = [group.rates(name) for group in found]
        cells = "  ".join(
            f"{share} %: {one:.1%} / {other:.1%}" for share, (one, other) in zip(SHARES, rates, strict=True)
        )
        print(f"{name:14} {cells}")
    print("capacity/units ", "  ".join(f"{group.uniform:.1%}" for group in found))


if __name__ == "__main__":
    main()

"""The figures and figures-in-text of these pages: what each policy does on the recorded sample.

    python docs/policies/figures.py [--names dip,oracle] [--gated TRACE] [--nets FILE,FILE]

Needs matplotlib. The sample holds no up and gate and nothing of attention; for the policies that need them TRACE is the
same 78 tokens with all signals, and without it those are left out:
hwsim record --model smollm2-135m --tokens 78 --context 78 --signals input,up,gate,attn_input,attn_output -o TRACE
Calibrations are made from the trace that is replayed. Nets for `predictor` come from `hwsim train predictor`, a file
for each density; without them it is left out.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

from hwsim.analysis.calibration import KIND, calibrate
from hwsim.device.profile import load_profile
from hwsim.masking.counts import Served
from hwsim.masking.observers import Observer
from hwsim.memory.groups import Place
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.simulation.replay import replay
from hwsim.simulation.run import Conditions, Source
from hwsim.simulation.settings import Settings
from hwsim.trace import Trace
from hwsim.util.arrayfile import read_arrays, write_arrays
from hwsim.util.files import data_folder

HERE = Path(__file__).parent
SAMPLE = data_folder("traces") / "smollm2-135m-sample.npz"
DENSITIES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
# what is varied, where it is not the density
VARIED: dict[str, list[dict[str, Any]]] = {
    "dense": [{}],
    "relu": [{}],
    "sliding-window": [{"keep": keep} for keep in (0.05, 0.1, 0.2, 0.3, 0.4, 0.6)],
    "magnitude": [{"density": density} for density in (0.68, 0.7, 0.75, 0.8, 0.9)],
}
NAMES = (
    "dense", "magnitude", "dip", "dip-ca", "approximate-caching", "oracle", "noisy-oracle", "up", "gate", "random",
    "relu", "sliding-window", "cats", "dip-threshold", "static", "teal", "predictor",
)  # fmt: skip
GATED = ("up", "gate", "cats", "teal")


class Point(NamedTuple):
    """One replay: the MLP density, the share of |glu|^2 that the neurons of the masks carry, and the hit rate."""

    density: float
    energy: float
    hits: float


class Energies(Observer):
    """The share of |glu|^2 that the neurons of each mask carry; 1 before the first one."""

    def __init__(self, trace: Trace) -> None:
        self.shares = [1.0]
        self._trace, self._layer, self._energy = trace, -1, np.empty(0)

    def masks(self, place: Place, token: int, served: Served) -> None:
        """Look at the masks of neurons."""
        if place.plan.indices != self._trace.model.intermediate_size:
            return
        if place.layer != self._layer:
            energy = self._trace.read(place.layer, "glu").astype(np.float64) ** 2
            self._layer, self._energy = place.layer, energy / energy.sum(axis=1, keepdims=True)
        self.shares += [float(self._energy[number] @ mask) for number, mask in enumerate(served.masks, token)]


def measure(trace: Trace, name: str, parameters: dict[str, Any]) -> Point:
    """Replay on the pixel8, DRAM for 70 % of the weights, LFU; energy is the mean over tokens and layers."""
    settings = Settings(dram="70%", timing="closed-form")
    conditions = Conditions(load_profile("pixel8"), EVICTIONS.make("lfu")[1], settings, "lfu")
    energies = Energies(trace)
    result = replay(conditions.run(Source.of_trace(trace), POLICIES.make(name, parameters)[1], name), [energies])
    shares = energies.shares
    assert len(shares) in (1, 1 + trace.model.num_hidden_layers * result.tokens)
    return Point(result.mlp_density, float(np.mean(shares[1:] or shares)), result.hit_rate or 0.0)


def curve(trace: Trace, name: str, nets: list[str]) -> list[Point]:
    """The points of one policy, lowest density first."""
    chosen = VARIED.get(name, [{"density": density} for density in DENSITIES])
    if name == "predictor":
        made = [(read_arrays(Path(file), "hwsim-predictor").header["density"], file) for file in nets]
        chosen = [{"density": density, "predictor": file} for density, file in sorted(made)]
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        if "calibration" in POLICIES.find(name)[1].model_fields:
            files["calibration"] = str(Path(folder) / "calibration.npz")
            found = calibrate(trace)
            write_arrays(Path(files["calibration"]), KIND, found.header, found.arrays)
        return [measure(trace, name, parameters | files) for parameters in chosen]


def draw(name: str, points: list[Point], known: dict[str, list[Point]]) -> None:
    """Two panels, the policy before oracle and random in grey."""
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 2.6), layout="constrained")
    for axis, field, title in zip(axes, ("energy", "hits"), ("captured |glu|² energy", "hit rate"), strict=True):
        for other, style in (("oracle", "--"), ("random", ":")):
            if other != name:
                values = known[other]
                axis.plot([p.density for p in values], [getattr(p, field) for p in values], style, c="0.6", label=other)
        axis.plot([p.density for p in points], [getattr(p, field) for p in points], "o-", ms=4, c="C0", label=name)
        axis.set(
            xlabel="MLP density", title=title, xlim=(0.15 if name == "sliding-window" else 0.25, 1.02), ylim=(0, 1.05)
        )
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(HERE / f"{name}.svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)


def main() -> None:
    """Draw them, and print every point."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--names", default=",".join(NAMES))
    options.add_argument("--gated", type=Path, help="the sample's tokens with up and gate")
    options.add_argument("--nets", default="", help="files of nets for predictor")
    asked = options.parse_args()
    nets = [file for file in asked.nets.split(",") if file]
    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": "hwsim", "svg.fonttype": "none", "font.size": 9}
    with Trace(SAMPLE) as sample, Trace(asked.gated or SAMPLE) as gated:
        known = {name: curve(sample, name, nets) for name in ("oracle", "random")}
        for name in asked.names.split(","):
            if name in GATED and not asked.gated:
                print(f"{name:20} is left out: give --gated TRACE")
                continue
            if name == "predictor" and not nets:
                print(f"{name:20} is left out: give --nets FILE")
                continue
            points = known.get(name) or curve(gated if name in GATED else sample, name, nets)
            for point in points:
                print(
                    f"{name:20} density {point.density:.3f} energy {point.energy:.3f} hits {point.hits:.3f}", flush=True
                )
            draw(name, points, known)


if __name__ == "__main__":
    main()

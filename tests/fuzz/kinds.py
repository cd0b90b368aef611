"""What a user may hand to hwsim as a file: for each kind good files to start from, and what reads them.

A reader may refuse a file with one of hwsim's errors, one line of text. Anything else is a fault: another exception, a
warning of numpy, a hang, or memory without bounds.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hwsim.analysis.calibration import KIND as CALIBRATION
from hwsim.cache.unit_sets import read_units, write_units
from hwsim.device.fit import read_points
from hwsim.device.profile import known_profiles, load_profile
from hwsim.masking.mask_file import MaskFile, MaskWriter
from hwsim.memory.neuron_order import Layout, read_layout, write_layout
from hwsim.memory.shares import read_shares
from hwsim.prefetch.trained import KIND as PREFETCH
from hwsim.report.page.digest import answers, name, provenance, table
from hwsim.report.page.figures import all_figures
from hwsim.report.page.inputs import read_inputs
from hwsim.simulation.densities import read_densities
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.simulation.replay import count
from hwsim.simulation.settings import Settings
from hwsim.studies.sweep import Store
from hwsim.studies.sweep.spec import read_spec
from hwsim.trace import Encoding, Trace
from hwsim.util.arrayfile import read_arrays, write_arrays
from tests.conftest import flat_profile
from tests.device.test_flash_times import FIO, LINES
from tests.runs import replay, replay_masks, run_of
from tests.trace.test_damage import TINY, make_tiny


class Kind(NamedTuple):
    """One kind of file.

    Attributes:
        name: what it is.
        ending: of its files' names.
        text: whether it is text.
        seeds: good files, their content.
        read: reads one.
    """

    name: str
    ending: str
    text: bool
    seeds: list[bytes]
    read: Callable[[Path], object]


def _trace(folder: Path, encoding: Encoding) -> bytes:
    return make_tiny(folder / "seed.npz", encoding).read_bytes()


def _read_trace(path: Path) -> object:
    """Verify it, and replay it."""
    with Trace(path) as trace:
        list(trace.verify())  # it goes on only where somebody asks
        return replay(trace, flat_profile(), POLICIES.make("dip")[1], EVICTIONS.make("lru")[1], Settings(dram="60%"))


def _masks(folder: Path) -> bytes:
    source, path = folder / "for-masks.npz", folder / "masks.npz"
    source.write_bytes(_trace(folder, Encoding()))
    policy = POLICIES.make("dip")[1]
    with Trace(source) as trace:
        run = run_of(trace, flat_profile(), policy, EVICTIONS.make("lru")[1], Settings(dram="60%"), policy_name="dip")
        writer = MaskWriter(path)
        writer.begin(trace.header, run.masking, run.placement)
        count(run, [writer])
        writer.finish()
    return path.read_bytes()


def _read_masks(path: Path) -> object:
    return replay_masks(MaskFile(path), flat_profile(), EVICTIONS.make("lru")[1], Settings(dram="60%"))


def _arrays(folder: Path, kind: str) -> bytes:
    path = folder / "arrays.npz"
    if kind == "layout":
        write_layout(path, Layout({"model": TINY.model_dump()}, np.array([[1, 0, 4, 3, 2]] * 2, np.int32)))
    elif kind == "units":
        sets = {
            f"layers/{layer:03d}/{group}": np.ones(width, bool)
            for layer in range(2)
            for group, width in (("input", 3), ("down", 5))
        }
        write_units(path, {"hwsim": "0", "settings": {"block": 1, "layout": None}}, sets)
    elif kind == "prefetch":
        write_arrays(path, PREFETCH, {}, {"layers/000/down": np.full((2, 5), 0.5, np.float32)})
    else:
        write_arrays(path, CALIBRATION, {"model": TINY.model_dump()}, {"layers/000/glu/mean": np.ones(5, np.float32)})
    return path.read_bytes()


def _result(folder: Path) -> bytes:
    path = folder / "for-result.npz"
    path.write_bytes(_trace(folder, Encoding()))
    with Trace(path) as trace:
        found = replay(
            trace, flat_profile(energy={"dram_read": "1 pJ/B", "flash_read": "1 pJ/B"}), POLICIES.make("dip")[1],
            EVICTIONS.make("lru")[1], Settings(dram="60%", per_token=True), policy_name="dip",
        )  # fmt: skip
    return found.to_json().encode()


def _read_result(path: Path) -> object:
    found = name(read_inputs([path], lambda _: []).results)
    return answers(found), table(found), all_figures(found, []), provenance(found)


def _store(folder: Path) -> bytes:
    path = folder / "seed.db"
    with Store(path):
        pass
    return path.read_bytes()


def _read_store(path: Path) -> object:
    with Store(path) as store:
        return list(store.results())


SWEEP = b"""
trace: sample
hw: [pixel8, iphone16-a18]
policy: [dense, dip, dip-ca]
density: [0.5, 0.7]
set: {dip-ca.gamma: [0.2, 0.5]}
overlap: [none, pipeline]
grids:
  - {policy: dip, merge: [64KiB, null]}
"""


def all_kinds(folder: Path) -> list[Kind]:
    """Every kind; seeds are made in `folder`."""
    profiles = [path.read_bytes() for path in known_profiles().values()]
    points = ["\n".join(LINES).encode(), json.dumps(FIO).encode()]
    return [
        Kind(
            "trace",
            ".npz",
            False,
            [_trace(folder, e) for e in (Encoding(), Encoding(name="int8"), Encoding(name="top", share=0.7))],
            _read_trace,
        ),
        Kind("masks", ".npz", False, [_masks(folder)], _read_masks),
        Kind("layout", ".npz", False, [_arrays(folder, "layout")], read_layout),
        Kind("units", ".npz", False, [_arrays(folder, "units")], read_units),
        Kind(
            "calibration", ".npz", False, [_arrays(folder, "calibration")], lambda path: read_arrays(path, CALIBRATION)
        ),
        Kind("guesses", ".npz", False, [_arrays(folder, "prefetch")], lambda path: read_arrays(path, PREFETCH)),
        Kind("profile", ".yaml", True, profiles, load_profile),
        Kind("sweep", ".yaml", True, [SWEEP], read_spec),
        Kind("densities", ".yaml", True, [b"[0.5, 0.6, 0.7]", b"- 0.5\n- 0.25\n"], read_densities),
        Kind("shares", ".json", True, [_result(folder)], read_shares),
        Kind("result", ".json", True, [_result(folder)], _read_result),
        Kind("measurements", ".csv", True, points, read_points),
        Kind("store", ".db", False, [_store(folder)], _read_store),
    ]

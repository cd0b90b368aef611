"""What the tests share: small traces with known content, flat devices, and a way to run the command line."""

from __future__ import annotations

import os

# one thread of torch for each process: small models gain nothing from more, and tests that run side by side on the same
# cores, whose threads wait for each other's, take many times as long
os.environ.setdefault("OMP_NUM_THREADS", "1")
# numpy's BLAS keeps its own number of threads, by which a sum may round: golden results are made with it
os.environ.setdefault("OPENBLAS_NUM_THREADS", str(os.cpu_count() or 1))

import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import typer.testing
from hypothesis import settings
from typer.main import get_command
from typer.testing import CliRunner

from hwsim.analysis.calibration import KIND, calibrate
from hwsim.cli.app import app
from hwsim.device.profile import Profile
from hwsim.model.shape import ModelShape
from hwsim.simulation.plugins import POLICIES
from hwsim.testing import SMALL_MODEL, RandomSignals
from hwsim.trace import Sequence, Trace, TraceHeader, TraceWriter
from hwsim.util.arrayfile import write_arrays

settings.register_profile("hwsim", deadline=None)  # a slow machine is no failure
settings.load_profile("hwsim")
# the runner makes all commands anew for each call, which takes longer than most calls; a process makes them once, too
typer.testing._get_command = cache(get_command)

REPOSITORY = Path(__file__).resolve().parent.parent
# the built-in policies that run with their defaults; others read a calibration or nets
_DEFAULTS = [
    name for name in POLICIES.names() if not {"predictor", "calibration"} & POLICIES.find(name)[1].model_fields.keys()
]
FOR_EXPERTS = [
    name for name in _DEFAULTS if any(group.axis == "expert" for group in POLICIES.find(name)[1]().groups(SMALL_MODEL))
]
WITHOUT_A_FILE = [name for name in _DEFAULTS if name not in FOR_EXPERTS]  # for models without experts
SEQUENCES = [Sequence(tokens=40, prompt=6), Sequence(tokens=25)]


def pytest_configure(config: pytest.Config) -> None:
    """Tests that share something dear to make go to one process, where pytest-xdist deals them out."""
    config.addinivalue_line("markers", "xdist_group(name): tests that go to one process")
    if getattr(config.option, "dist", "no") == "load":
        config.option.dist = "loadgroup"


def write_trace(
    path: Path,
    model: ModelShape = SMALL_MODEL,
    sequences: list[Sequence] | None = None,
    signals: tuple[str, ...] = ("input", "up", "gate"),
    seed: int = 0,
) -> Path:
    """A trace of random, correlated signals."""
    header = TraceHeader(
        origin="synthetic",
        model=model,
        signals=list(signals),
        sequences=sequences or SEQUENCES,
        provenance={"seed": seed},
    )
    source = RandomSignals(model, header.tokens, seed)
    with TraceWriter(path, header) as writer:
        for layer in range(model.num_hidden_layers):
            for signal in signals:
                writer.write(layer, signal, 0, source.read(layer, signal))
        writer.commit(header.tokens)
        writer.finish()
    return path


def write_calibration(
    path: Path, model: ModelShape = SMALL_MODEL, signals: tuple[str, ...] | None = None, seed: int = 0
) -> Path:
    """The calibration of a trace of random signals; all that the model has, if none are named."""
    made = ("up", "gate") if model.gated else ("glu",)
    trace = write_trace(
        path.with_suffix(".trace"), model, None, signals or ("attn_input", "attn_output", "input", *made), seed
    )
    with Trace(trace) as opened:
        write_arrays(path, KIND, *calibrate(opened))
    return path


def flat_profile(budget: str = "1 GB", dram: str = "50 GB/s", flash: str = "1 GB/s", **sections: object) -> Profile:
    """A device that knows bandwidths only, and what `sections` add."""
    data = {"name": "flat", "dram": {"budget": budget, "bandwidth": dram}, "flash": {"read_bandwidth": flash}}
    for name, fields in sections.items():
        data[name] = {**data.get(name, {}), **fields}  # type: ignore[dict-item]
    return Profile.model_validate(data)


@pytest.fixture(scope="session")
def small_trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gated model of three layers, two sequences, one with a prompt."""
    return write_trace(tmp_path_factory.mktemp("traces") / "small.npz")


@pytest.fixture
def trace(small_trace: Path):
    """The small trace, open."""
    with Trace(small_trace) as opened:
        yield opened


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(2412_01380)


Hwsim = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def hwsim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hwsim:
    """Run ``hwsim ...`` in an empty folder and in this process, where torch is imported once; as `hwsim_process`."""

    def run(*arguments: object, cwd: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        words = [str(argument) for argument in arguments]
        monkeypatch.chdir(cwd)
        done = CliRunner().invoke(app, words)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return subprocess.CompletedProcess(words, done.exit_code, done.stdout, done.stderr)

    return run


@pytest.fixture
def hwsim_process(tmp_path: Path) -> Hwsim:
    """Run ``hwsim ...`` as a process of its own, in an empty folder; returns exit code, output and errors."""

    def run(*arguments: object, cwd: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from hwsim.cli import main; main()", *map(str, arguments)]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)

    return run

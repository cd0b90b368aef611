"""Predictors (DejaVu style): one net per layer that predicts from the MLP's input which neurons matter.

The target is the top-k mask of |glu|. Its k is that of the policy that uses the nets, whose density includes them.
The nets are trained from a trace, without the model, one layer after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import hwsim
from hwsim.errors import HwsimError, OutputError, SettingError, TraceError
from hwsim.model.shape import ModelShape
from hwsim.record.extras import import_torch, told_as
from hwsim.record.loading import find_device
from hwsim.trace import Trace
from hwsim.train.nets import BATCH, Effort, fit
from hwsim.train.partial import Layer, Partial, partial_of
from hwsim.train.samples import Samples, measure, split, statistics
from hwsim.util.arrayfile import read_arrays, write_arrays
from hwsim.util.files import check_new_file, spare

KIND = "hwsim-predictor"
Progress = Callable[[str, int, int], None]
"""Callback: receives (phase, steps done, steps in all)."""

_RESULTS = ("layers", "recall", "precision", "static")  # fields of a header that hold results, not settings


@dataclass(frozen=True)
class Settings:
    """How to train.

    Attributes:
        density: MLP density of the policy that is going to use the nets, including the nets' parameters.
        rank: width of a net's hidden layer; None: a sixteenth of the model's hidden size.
        epochs: largest number of epochs.
        patience: epochs without a lower validation loss after which a layer is done.
        learning_rate: of Adam.
        seed: of the initial nets and the order of tokens.
        device: a device of torch.
    """

    density: float = 0.5
    rank: int | None = None
    epochs: int = 6
    patience: int = 2
    learning_rate: float = 3e-3
    seed: int = 0
    device: str = "cpu"


class Plan(NamedTuple):
    """Sizes that follow from density and rank.

    Attributes:
        rank: width of a net's hidden layer.
        share: parameters of the nets as a share of the MLP's.
        keep: share of the neurons that a mask holds: density - share.
        k: number of neurons that a mask holds.
    """

    rank: int
    share: float
    keep: float
    k: int


class Trained(NamedTuple):
    """Result of `train`.

    Attributes:
        path: the file.
        header: of the file.
        resumed: layers that an earlier, interrupted run had finished; all of them if nothing was left to do.
    """

    path: Path
    header: dict[str, Any]
    resumed: int


def plan(model: ModelShape, settings: Settings) -> Plan:
    """The sizes of nets and masks; as in the policy, the density includes the nets.

    Raises:
        SettingError: a setting is out of bounds, or the nets use up the density.
    """
    for name, least in (("rank", 1), ("epochs", 1), ("patience", 1), ("seed", 0)):
        value = getattr(settings, name)
        if value is not None and value < least:
            raise SettingError(f"--{name} {value}: must be at least {least}")
    if not 0 < settings.density <= 1:
        raise SettingError(f"--density {settings.density:g}: must be above 0 and at most 1")
    if not 0 < settings.learning_rate <= 1:
        raise SettingError(f"--learning-rate {settings.learning_rate:g}: must be above 0 and at most 1")
    model.check_alike("training a predictor")
    hidden, units = model.hidden_size, model.intermediate_size
    rank = settings.rank or max(1, hidden // 16)
    layers = model.num_hidden_layers
    share = layers * (hidden * rank + rank + rank * units + units) / (layers * model.mlp_parameters)
    if share >= settings.density:
        raise SettingError(
            f"--rank {rank}: the nets alone are {share:.3g} of the MLP, --density is {settings.density:g}; "
            "give a lower --rank or a higher --density"
        )
    keep = settings.density - share
    return Plan(rank, share, keep, max(1, math.floor(keep * units + 1e-9)))


def train(
    path: str | Path,
    trace: str | Path,
    settings: Settings | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    writes: Iterable[Path] = (),
) -> Trained:
    """Train predictors from a trace.

    Called again with the same arguments, an interrupted training resumes after its last finished layer; the file is the
    same, byte for byte. A finished training is recognised and left alone.

    Args:
        path: the file to write, for ``--set predictor=FILE``.
        trace: with the signals ``input``, and ``glu`` or ``up`` and ``gate``.
        settings: density, size and effort.
        overwrite: replace a file that exists already, or layers that were trained with other settings.
        progress: callback, see `Progress`.
        writes: other files that the caller is going to write; they may be neither the trace nor the file.

    Raises:
        HwsimError: a subclass; the trace lacks a signal, a setting is impossible, torch is missing.
    """
    path, settings = Path(path), settings or Settings()
    outputs = [path, partial_of(path)]
    check_new_file(path)
    for target in outputs:
        spare(target, [Path(trace)])
    for file in writes:
        spare(file, [Path(trace)])
        spare(file, outputs, "writes the nets to")
    with Trace(trace) as opened:
        _need_signals(opened)
        opened.check_whole("training")
        planned = plan(opened.model, settings)
        torch = import_torch("training")
        device = find_device(settings.device, torch)
        run_header = _header(opened, settings, planned, str(torch.__version__))
        if path.exists() and not overwrite:
            if (stored := _finished(path, run_header)) is not None:
                return Trained(path, stored, opened.model.num_hidden_layers)
            raise OutputError(
                f"{path}: exists and holds something else; name another file with -o, or give --overwrite"
            )
        with Partial(path, run_header, overwrite=overwrite) as partial:
            resumed = len(partial.layers)
            with told_as("training"):
                _run(opened, settings, planned, torch, device, partial, progress or (lambda phase, done, total: None))
            header = run_header | _results(partial.layers)
            write_arrays(path, KIND, header, _members(partial.layers))
            partial.finish()
    return Trained(path, header, resumed)


def _need_signals(trace: Trace) -> None:
    missing = [signal for signal in ("input", "glu") if not trace.has(signal)]
    if missing:
        raise TraceError(
            f"{trace.path}: has no signal {missing[0]!r}; it holds {', '.join(trace.header.signals)}; record it with: "
            f"hwsim record --model {trace.model.name} --signals input,glu"
        )


def _header(trace: Trace, settings: Settings, planned: Plan, torch_version: str) -> dict[str, Any]:
    """Everything that decides the nets, and facts about them for readers; no time and no path."""
    header, provenance = trace.header, trace.header.provenance
    parts = split(header, trace.path)
    weights, text = provenance.get("weights"), provenance.get("text")
    return {
        "hwsim": hwsim.__version__,
        "torch": torch_version,
        "model": trace.model.model_dump(),
        "weights_sha256": weights.get("sha256") if isinstance(weights, dict) else None,
        "text": text if isinstance(text, dict) else None,
        "origin": header.origin,
        "trace": trace.hash,
        "density": settings.density,
        **planned._asdict(),
        "chance": planned.k / trace.model.intermediate_size,
        "tokens": {
            "training": sum(stop - start for start, stop in parts.training),
            "validation": sum(stop - start for start, stop in parts.validation),
        },
        "settings": {
            "epochs": settings.epochs,
            "patience": settings.patience,
            "learning_rate": settings.learning_rate,
            "batch": BATCH,
            "seed": settings.seed,
            "device": settings.device,
        },
    }


def _run(
    trace: Trace, settings: Settings, planned: Plan, torch: Any, device: str, partial: Partial, tell: Progress
) -> None:
    layers, units, parts = trace.model.num_hidden_layers, trace.model.intermediate_size, split(trace.header, trace.path)
    total = layers * settings.epochs
    for layer in range(len(partial.layers), layers):
        tell("training", layer * settings.epochs, total)
        training, validation = (Samples(trace, layer, planned.k, blocks) for blocks in parts)
        measured = statistics(training, units, planned.k)
        fitted = fit(
            torch,
            training,
            validation,
            measured,
            Effort(planned.rank, settings.epochs, settings.patience, settings.learning_rate, device),
            np.random.default_rng([settings.seed, layer]),  # a layer does not depend on those before it
            tell=lambda epoch, layer=layer: tell("training", layer * settings.epochs + epoch, total),  # type: ignore[misc]
        )
        quality = measure(fitted.net, validation, measured.static, planned.k)
        result = quality._asdict() | {
            "loss": fitted.losses[fitted.epoch],
            "epoch": fitted.epoch,
            "losses": fitted.losses,
        }
        partial.add(fitted.net, result)
    tell("training", total, total)


def _results(layers: list[Layer]) -> dict[str, Any]:
    results = [layer.result for layer in layers]
    means = {name: sum(result[name] for result in results) / len(results) for name in ("recall", "precision", "static")}
    return {"layers": results, **means}


def _members(layers: list[Layer]) -> dict[str, np.ndarray]:
    return {
        f"layers/{number:03d}/{part}": array
        for number, layer in enumerate(layers)
        for part, array in layer.arrays.items()
    }


def _finished(path: Path, run_header: dict[str, Any]) -> dict[str, Any] | None:
    """The header of a finished file with the same settings; None if the file is another one or damaged."""
    try:
        header = read_arrays(path, KIND).header
    except HwsimError:
        return None
    return header if {key: value for key, value in header.items() if key not in _RESULTS} == run_header else None

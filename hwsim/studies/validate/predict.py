"""Predictions of published measurements from their stated conditions, and their errors."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache
from importlib.resources import files
from typing import Any, Literal, NamedTuple

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict

from hwsim.device.profile import load_profile
from hwsim.studies.validate.workload import Workload
from hwsim.timing.events import run_events


class Row(BaseModel):
    """One published measurement; `rows.yaml` lists them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    source: str
    conditions: str
    measured: str
    device: str
    workload: Workload
    assumptions: str = "none"

    @property
    def value(self) -> float:
        """The measured value."""
        return float(self.measured.split()[0])

    @property
    def unit(self) -> str:
        """The unit of the value: tok/s or ms."""
        return self.measured.split()[1]


class LeftOut(BaseModel):
    """Rows that are not predicted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: str
    reason: str


class Rows(BaseModel):
    """The content of `rows.yaml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    predicted: list[Row]
    left_out: list[LeftOut]
    misses: dict[str, str] = {}


class Prediction(BaseModel):
    """A row with its prediction.

    Attributes:
        error: predicted / measured - 1.
        flash_ms, dram_ms, compute_ms: busy time of each device for one token, ms.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    source: str
    conditions: str
    assumptions: str
    unit: Literal["tok/s", "ms"]
    measured: float
    predicted: float
    error: float
    flash_ms: float
    dram_ms: float
    compute_ms: float


class Summary(NamedTuple):
    """Summary of the absolute relative errors of rows."""

    rows: int
    mean: float
    median: float
    worst: float


@cache
def read_rows() -> Rows:
    """Read the list of measurements that comes with hwsim."""
    text = files("hwsim.studies.validate").joinpath("rows.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return Rows.model_validate(content)


def predict(row: Row) -> Prediction:
    """Predict the measurement of a row from its conditions."""
    profile = load_profile(row.device)
    load = row.workload.load(profile)
    timing = run_events(load, overlap=row.workload.overlap)
    seconds = timing.times.total / load.tokens
    predicted = 1.0 / seconds if row.unit == "tok/s" else seconds * 1e3
    busy_ms = {name: 1e3 * value / load.tokens for name, value in asdict(timing.busy).items()}
    return Prediction(
        id=row.id, source=row.source, conditions=row.conditions, assumptions=row.assumptions, unit=row.unit,
        measured=row.value, predicted=predicted, error=predicted / row.value - 1.0,
        flash_ms=busy_ms["flash"], dram_ms=busy_ms["dram"], compute_ms=busy_ms["compute"],
    )  # fmt: skip


def summarize(predictions: list[Prediction]) -> dict[str, Summary]:
    """Summaries of the errors over all rows ("all") and over the rows of each source."""
    sources = list(dict.fromkeys(prediction.source for prediction in predictions))
    groups = {"all": predictions} | {name: [p for p in predictions if p.source == name] for name in sources}
    summaries = {}
    for name, rows in groups.items():
        errors = np.abs([row.error for row in rows])
        summaries[name] = Summary(len(rows), float(errors.mean()), float(np.median(errors)), float(errors.max()))
    return summaries

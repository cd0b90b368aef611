"""Measured data of others: excerpts that lie here, and whole traces in a folder that HWSIM_MEASURED_DATA names."""

from __future__ import annotations

import csv
import gzip
import os
import tempfile
from functools import cache
from pathlib import Path

import pytest

DATA = Path(__file__).parent / "data"
CONFORMANCE = DATA / "moe-cache-eval"
_FOLDER = tempfile.TemporaryDirectory()  # as long as the process


@cache
def excerpt() -> Path:
    """The excerpt of a phone's router trace, unpacked."""
    path = Path(_FOLDER.name, "gptoss-16.route.csv")
    path.write_bytes(gzip.decompress((DATA / "bigmoe" / f"{path.name}.gz").read_bytes()))
    return path


def measured(*parts: str) -> Path:
    """A file of the folder of measured data; the test is skipped without it."""
    folder = os.environ.get("HWSIM_MEASURED_DATA")
    if not folder:
        pytest.skip("HWSIM_MEASURED_DATA names no folder of measured data")
    return Path(folder, *parts)


def write_conformance(path: Path) -> Path:
    """The conformance trace of moe-cache-eval in the general form: decoded tokens only, one byte an expert."""
    with (CONFORMANCE / "events.csv").open(encoding="utf-8", newline="") as file:
        events = list(csv.DictReader(file))
    lines = ["# model=conformance n_layer=3 n_expert=4 n_expert_used=2 expert_bytes=1 dense_bytes=0"]
    lines.append("sequence,phase,token,layer,expert")
    for event in events:
        for expert in event["requested_experts"].split():
            lines.append(f"0,decode,{event['scheduler_step']},{event['layer']},{expert}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path

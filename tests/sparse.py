"""Traces of mixtures of experts with random routing, for tests that need one."""

from __future__ import annotations

from collections.abc import Sequence as Several
from pathlib import Path

from hwsim.testing import SMALL_SPARSE_MODEL, RandomSignals
from hwsim.trace import Sequence, TraceHeader, TraceWriter

ROUTING = ("router", "experts", "expert_weights")
INSIDE = (*ROUTING, "expert_input", "expert_glu")


def write_sparse(path: Path, sequences: Several[Sequence], signals: Several[str] = ROUTING) -> Path:
    """Write a trace of `SMALL_SPARSE_MODEL`."""
    fields = {"origin": "synthetic", "model": SMALL_SPARSE_MODEL, "signals": [*signals], "sequences": [*sequences]}
    header = TraceHeader.model_validate(fields)
    source = RandomSignals(SMALL_SPARSE_MODEL, header.tokens)
    with TraceWriter(path, header) as writer:
        for layer in SMALL_SPARSE_MODEL.layers_with("experts"):
            for signal in signals:
                writer.write(layer, signal, 0, source.read(layer, signal))
        writer.commit(header.tokens)
        writer.finish()
    return path

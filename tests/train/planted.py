"""A trace whose masks follow a rule that a small net can learn, and nets that learnt it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hwsim.model.shape import ModelShape
from hwsim.trace import Sequence, TraceHeader, TraceWriter
from hwsim.train.predictor import Settings, train

MODEL = ModelShape(
    name="planted", num_hidden_layers=2, hidden_size=16, intermediate_size=60, num_attention_heads=2,
    num_key_value_heads=1, head_dim=8, vocab_size=100,
)  # fmt: skip

QUICK = Settings(density=0.6, rank=4, epochs=6, learning_rate=0.03, patience=2)


def planted(path: Path, sequences: int = 10, length: int = 64, signals: tuple[str, ...] = ("input", "glu")) -> Path:
    """|glu| rises with a linear function of the input, of rank 3: the top-k mask is that of W a(x)."""
    rng = np.random.default_rng(5)
    parts = [Sequence(tokens=length, prompt=3 if number % 2 else 0) for number in range(sequences)]
    header = TraceHeader(
        origin="synthetic", model=MODEL, signals=list(signals), sequences=parts,
        provenance={"weights": {"origin": "none", "sha256": "abc"}, "text": {"name": "t.txt", "sha256": "def"}},
    )  # fmt: skip
    with TraceWriter(path, header) as writer:
        for layer in range(MODEL.num_hidden_layers):
            x = 3 * rng.standard_normal((header.tokens, 16)) + 2
            rule = rng.standard_normal((16, 3)) @ rng.standard_normal((3, 60))
            glu = np.exp(0.1 * ((x - 2) @ rule)) * rng.choice([-1, 1], (header.tokens, 60))
            values = {"input": x, "glu": glu, "up": glu, "gate": np.ones_like(glu)}
            for signal in signals:
                writer.write(layer, signal, 0, values[signal])
        writer.commit(header.tokens)
        writer.finish()
    return path


@pytest.fixture(scope="session")
def planted_trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("planted") / "planted.npz")


@pytest.fixture(scope="module")
def nets_file(tmp_path_factory: pytest.TempPathFactory, planted_trace: Path) -> Path:
    return train(tmp_path_factory.mktemp("nets") / "nets.npz", planted_trace, QUICK).path

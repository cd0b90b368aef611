"""Write the inputs anew: traces, nets, adapter and the files that hwsim makes of them.

    python -m tests.system.golden.make_inputs

Needs torch and transformers. They are committed, so this is only needed for a golden of other inputs; `make` must be run after it.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from hwsim.policy import ModelShape
from hwsim.testing import SMALL_MODEL, RandomSignals
from hwsim.trace import Sequence, TraceHeader, TraceWriter
from tests.system.checkpoints import save
from tests.system.run import INPUTS, run

SEQUENCES = [Sequence(tokens=40, prompt=6), Sequence(tokens=25)]
PLAIN_MODEL = ModelShape(
    name="plain", num_hidden_layers=2, hidden_size=32, intermediate_size=96, num_attention_heads=4,
    num_key_value_heads=4, head_dim=8, vocab_size=90, tie_word_embeddings=True, hidden_act="relu", gated=False,
)  # fmt: skip


def write_trace(path: Path, model: ModelShape, signals: list[str], *, norms: bool) -> Path:
    """A trace of heavy-tailed random signals that follow each other; glu of a model without a gate has true zeros."""
    header = TraceHeader(
        origin="synthetic", model=model, signals=signals, sequences=SEQUENCES, provenance={"made": "for tests"}
    )
    source = RandomSignals(model, header.tokens, seed=11)
    with TraceWriter(path, header, norms=norms) as writer:
        for layer in range(model.num_hidden_layers):
            for signal in signals:
                values = source.read(layer, signal)
                writer.write(layer, signal, 0, np.maximum(values, 0) if signal == "glu" else values)
            for name in ("norm_input", "norm_down") if norms else ():
                writer.write_norm(layer, name, source.norm(layer, name))
        writer.commit(header.tokens)
        writer.finish()
    return path


def write_nets(path: Path, rank: int = 4) -> None:
    """Untrained nets for the policy `predictor`."""
    rng = np.random.default_rng(5)
    hidden, neurons = SMALL_MODEL.hidden_size, SMALL_MODEL.intermediate_size
    members = {"format": np.array("hwsim-predictor"), "version": np.array(1)}
    for layer in range(SMALL_MODEL.num_hidden_layers):
        shapes = {"w1": (hidden, rank), "b1": (rank,), "w2": (rank, neurons), "b2": (neurons,)}
        for name, shape in shapes.items():
            members[f"layers/{layer:03d}/{name}"] = rng.standard_normal(shape).astype(np.float32)
    np.savez(path, **members)  # type: ignore[arg-type]


def write_adapter(folder: Path, rank: int = 2) -> None:
    """A LoRA adapter of two modules in each layer, in the files of peft, with the safetensors file written by hand."""
    folder.mkdir(exist_ok=True)
    model = SMALL_MODEL
    modules = {
        "self_attn.q_proj": (model.hidden_size, model.num_attention_heads * model.head_dim),
        "mlp.down_proj": (model.intermediate_size, model.hidden_size),
    }
    header, data = {}, b""
    for layer in range(model.num_hidden_layers):
        for module, (inputs, outputs) in modules.items():
            for part, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
                size = 4 * shape[0] * shape[1]
                name = f"base_model.model.model.layers.{layer}.{module}.lora_{part}.weight"
                header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [len(data), len(data) + size]}
                data += np.full(shape, 0.25, "<f4").tobytes()
    head = json.dumps(header).encode()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + data)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": 4}) + "\n")


def main() -> None:
    """Write all of them."""
    signals = ["attn_input", "attn_output", "input", "up", "gate"]
    for name in ("small.npz", "plain.npz", "nets.npz", "calibration.npz", "neurons.npz", "guess.npz"):
        (INPUTS / name).unlink(missing_ok=True)
    write_trace(INPUTS / "small.npz", SMALL_MODEL, signals, norms=True)
    write_trace(INPUTS / "plain.npz", PLAIN_MODEL, ["input", "glu"], norms=False)
    write_nets(INPUTS / "nets.npz")
    write_adapter(INPUTS / "adapter")
    (INPUTS / "density.yaml").write_text("[0.3, 0.5, 0.8]\n")
    run(["calibrate", "small.npz", "-o", "calibration.npz"])
    run(["layout", "small.npz", "-o", "neurons.npz"])
    dip = ["--hw", "pixel8.yaml", "--policy", "dip"]
    run(["train", "prefetch", "small.npz", *dip, "--dram", "60%", "-o", "guess.npz"])
    run(
        [
            "replay",
            "small.npz",
            *dip,
            "--dram",
            "60%",
            "--eviction",
            "lru",
            "--save-cache",
            "warm.npz",
            "--json",
            "shares.json",
        ]
    )
    run(["replay", "small.npz", *dip, "--dram", "50%", "--save-cache", "pin.npz", "--json", "other.json"])
    blocks = ["--block", "4", "--layout", "neurons.npz"]
    run(["replay", "small.npz", *dip, "--dram", "60%", *blocks, "--save-cache", "warm-blocks.npz"])
    with TemporaryDirectory() as folder:
        model = save("llama", Path(folder) / "llama")
        loop = "--hw pixel8.yaml --text text.txt --tokens 48 --context 24 --prompt 3 --dram 80% --policy dip-ca"
        run(["eval", "--model", str(model), *loop.split(), "--save-masks", "masks.npz"])


if __name__ == "__main__":
    main()

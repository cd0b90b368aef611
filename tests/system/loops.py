"""The closed loops that are held against golden ones, and what is kept of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.system.checkpoints import FAMILIES, save
from tests.system.run import run

# of the checkpoint FAMILY in the folder MODELS
_READ = "--text text.txt --tokens 48 --context 24 --prompt 3 --dram 80%"
LOOPS = {
    "llama, dip-ca, lru": f"llama --hw rich.yaml {_READ} --policy dip-ca --eviction lru",
    "llama, a policy and a rule of files": f"llama --hw pixel8.yaml {_READ} --policy nearest_policy.py "
    "--eviction steady_eviction.py --density 0.4",
    "llama, approximate-caching, one cache": f"llama --hw latency.yaml {_READ} --policy approximate-caching "
    "--cache-scope global --eviction lfu --per-token",
    "opt, dip-ca, a cache a layer": f"opt --hw rich.yaml {_READ} --policy dip-ca --set gamma=0.4 --cache-scope layer "
    "--eviction fifo",
    "opt, magnitude, s3fifo": f"opt --hw m5-pro.yaml {_READ} --policy magnitude --density 0.7 --dram 94% --eviction s3fifo",
    "phi3, dip in blocks": f"phi3 --hw rich.yaml {_READ} --policy dip --block 4 --eviction lru",
}  # fmt: skip
RECORDING = (
    "llama --text text.txt --tokens 30 --context 15 --prompt 2 --norms --signals attn_input,attn_output,input,up,gate"
)
_VERSIONS = ("hwsim", "python", "torch", "transformers", "config_sha256", "weights")


def checkpoints(root: Path, noise: float = 0.0, seed: int = 0) -> Path:
    """Write all checkpoints into a folder."""
    for family in FAMILIES:
        save(family, root / family, noise, seed)
    return root


def loop(line: str, models: Path, masks: Path) -> dict[str, Any]:
    """Run a closed loop: its result, and shape, count and hash of each of its masks."""
    family, options = line.split(" ", 1)
    words = ["eval", "--model", str(models / family), *options.split(), "--save-masks", str(masks), "--json", "-"]
    result = json.loads(run(words))
    _without_versions(result["provenance"]["trace"]["provenance"])
    with np.load(masks) as archive:
        members = {name: archive[name] for name in archive.files if name != "header"}
    return {"result": result, "masks": {name: _described(bits) for name, bits in members.items()}}


def _described(bits: np.ndarray) -> dict[str, Any]:
    return {
        "shape": list(bits.shape),
        "units": int(np.unpackbits(bits).sum()),
        "sha256": hashlib.sha256(bits.tobytes()).hexdigest(),
    }


def recorded(models: Path, path: Path) -> dict[str, np.ndarray]:
    """Record a checkpoint: the members of the trace, without versions in the header."""
    family, options = RECORDING.split(" ", 1)
    run(["record", "--model", str(models / family), *options.split(), "-o", str(path)])
    with np.load(path) as archive:
        members = {name: archive[name] for name in archive.files}
    header = json.loads(str(members["header"]))
    _without_versions(header["provenance"])
    return members | {"header": np.array(json.dumps(header, sort_keys=True))}


def _without_versions(provenance: dict[str, Any]) -> None:
    for name in _VERSIONS:
        provenance.pop(name)

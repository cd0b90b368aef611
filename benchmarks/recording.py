"""What recording costs beside a plain forward pass of transformers over the same tokens, in one run.

    python benchmarks/recording.py --model smollm2-135m --tokens 2048

Loading is apart. Both make the loss of every token; the recording taps and writes the signals besides.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from bench import seconds

from hwsim.record import Settings
from hwsim.record.prepare import prepare
from hwsim.record.recording import _run
from hwsim.trace.writer import TraceWriter


def run(model: str = "smollm2-135m", tokens: int = 2048, rounds: int = 3) -> dict[str, Any]:
    """Recordings and plain passes alternate."""
    ready = prepare(model, "persuasion", Settings(tokens=tokens), lambda *_: None)
    loaded = ready.load(lambda *_: None)
    torch, context = ready.libraries.torch, ready.settings.context

    def plain() -> None:
        with torch.inference_mode():
            for start in range(0, tokens, context):
                ids = torch.as_tensor(ready.ids[None, start : start + context], dtype=torch.long)
                logits = loaded.model(ids, use_cache=False).logits[0, :-1].float()
                torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")

    def record(folder: str) -> None:
        path = Path(folder) / "t.npz"
        with TraceWriter(path, ready.header, tokens=True, nll=True, overwrite=True) as writer:
            _run(ready, loaded, writer, lambda *_: None)
            writer.finish()

    times: dict[str, list[float]] = {"plain": [], "record": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds + 1):
            for name, work in (("plain", plain), ("record", lambda: record(folder))):
                taken = seconds(work)
                if number:
                    times[name].append(taken)
            size = (Path(folder) / "t.npz").stat().st_size
            (Path(folder) / "t.npz").unlink()  # to free a file of before is no part of recording
    median = {name: statistics.median(each) for name, each in times.items()}
    return {
        "model": model, "tokens": tokens, "bytes": size, "threads": torch.get_num_threads(), "s": median,
        "ratio": median["record"] / median["plain"],
    }  # fmt: skip


def show(found: dict[str, Any]) -> str:
    """As a sentence."""
    return (
        f"Recording {found['tokens']:,} tokens of {found['model']}, all signals, {found['bytes'] / 1e6:.0f} MB: "
        f"{found['s']['record']:.2f} s, a plain forward pass with the same losses {found['s']['plain']:.2f} s: "
        f"{found['ratio']:.2f} x ({found['threads']} threads)."
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    result = run(given.model, given.tokens)
    print(json.dumps(result, indent=2) if given.json else show(result))

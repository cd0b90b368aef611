"""``hwsim record``: record a trace of a model over a text."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from hwsim.cli import options as o
from hwsim.cli.common import JsonOption, check_target, listed, output, progress_bar, to_json, write_json
from hwsim.errors import SettingError
from hwsim.util.units import printable, show_number, show_size


@dataclass(frozen=True, kw_only=True)
class RecordOptions:
    """Options of ``hwsim record``."""

    model: o.Model
    text: o.Text = "persuasion"
    tokens: o.Tokens = 512
    context: o.Context = 512
    prompt: o.Prompt = 0
    signals: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help="input, up, gate, glu, attn_input, attn_output; of experts router, experts, expert_weights, "
            "expert_input, expert_glu, router_ahead.",
            show_default="input,up,gate; without a gate input,glu; of experts all but expert_glu and router_ahead",
        ),
    ] = None
    norms: Annotated[
        bool, typer.Option("--norms", help="Also the norms of the weights' columns, for policies that weigh by them.")
    ] = False
    encoding: o.EncodingOf = o.EncodingName.FLOAT16
    keep_share: o.KeepShare = None
    torch: o.TorchOptions
    out: Annotated[Path | None, typer.Option("--output", "-o", help="Trace to write.", show_default="MODEL.npz")] = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a trace that is already there.")] = False
    json: JsonOption = None


def record(options: RecordOptions) -> None:
    """Record a model over a text: the trace that replays need.

    An interrupted recording goes on where it stopped when the same command is given again.

    Example: hwsim record --model smollm2-135m --tokens 512 -o smollm2.npz
    """
    from hwsim.record import Settings
    from hwsim.record import record as run
    from hwsim.trace.writer import unfinished

    model, torch, json = options.model, options.torch, options.json
    path = options.out or Path(f"{_stem(model)}.npz")
    signals = None if options.signals is None else tuple(listed(options.signals))
    settings = Settings(
        tokens=options.tokens,
        context=options.context,
        prompt=options.prompt,
        signals=signals,
        device=torch.device,
        dtype=torch.dtype,
        max_memory=torch.memory,
        trust_remote_code=torch.trust_remote_code,
        norms=options.norms,
        encoding=o.read_encoding(options.encoding, options.keep_share),
    )
    if signals == ():
        raise SettingError("--signals: names none; leave it out for the default")
    check_target(json)
    writes = [Path(json)] if json and json != "-" else []
    try:
        with progress_bar(rate="tokens") as progress:
            done = run(
                path, model, options.text, settings, overwrite=options.overwrite, progress=progress, writes=writes
            )  # fmt: skip
    except KeyboardInterrupt as error:
        partial, _ = unfinished(path)
        if partial.exists():
            kept = f"what is recorded so far is kept in {partial}; give the same command again to go on"
            raise KeyboardInterrupt(kept) from error
        raise
    summary = _summary(done.path, done.resumed, options.tokens)
    if json:
        write_json(json, to_json(summary))
    if json != "-":
        _print(summary)


def _stem(model: str) -> str:
    name = Path(model).name or Path(model).resolve().name
    return name.removesuffix(".gguf")


def _summary(path: Path, resumed: int, tokens: int) -> dict[str, Any]:
    from hwsim.report.traceinfo import finite_perplexity
    from hwsim.trace import Trace

    with Trace(path) as trace:
        header = trace.header
        return {
            "file": str(path),
            "model": header.model.name,
            "tokens": header.tokens,
            "sequences": len(header.sequences),
            "signals": list(header.signals),
            "encoding": header.encoding.model_dump(exclude_none=True),
            "bytes": trace.size,
            "dense_perplexity": finite_perplexity(trace),
            "resumed_at": resumed,
            "was_complete": resumed == tokens,
        }


def _print(summary: dict[str, Any]) -> None:
    console = output()
    if summary["was_complete"]:
        head = "Already recorded"
    elif summary["resumed_at"]:
        head = f"Recorded, going on from token {summary['resumed_at']}"
    else:
        head = "Recorded"
    windows = summary["sequences"]
    in_windows = f" in {windows} windows" if windows > 1 else ""
    loss = f"; dense perplexity {show_number(summary['dense_perplexity'])}" if summary["dense_perplexity"] else ""
    signals, encoding = ", ".join(summary["signals"]), summary["encoding"]["name"]
    signals += f" in {encoding}" if encoding != "float16" else ""
    console.print(
        f"{head}: {summary['tokens']} tokens of {printable(summary['model'])}{in_windows}, signals {signals}, "
        f"{show_size(summary['bytes'])}{loss}",
        markup=False,
        soft_wrap=True,
    )
    policies = "router" if "experts" in summary["signals"] else "dense,dip,dip-ca"
    console.print(
        f"Next: hwsim replay {quoted(summary['file'])} --hw pixel8 --dram 50% --policy {policies}",
        markup=False,
        soft_wrap=True,
    )


def quoted(file: str) -> str:
    """A file name quoted for a shell."""
    return shlex.quote(printable(f"./{file}" if file.startswith("-") else file))

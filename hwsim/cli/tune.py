"""``hwsim tune``: the fastest settings that stay within a loss of perplexity."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from hwsim.cli import options as o
from hwsim.cli.common import JsonOption, check_target, note, output, progress_bar, to_json, write_json
from hwsim.cli.runoptions import Run, check_closed
from hwsim.errors import SettingError
from hwsim.util.files import check_new_file, spare


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """Options of ``hwsim tune``."""

    model: o.Model
    hw: o.Hardware
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="FILE.yaml", help="Settings to write; of several losses one file each."),
    ]
    study: Annotated[Path, typer.Option(metavar="FILE", help="Keeps the trials; the same command goes on with them.")]
    text: o.Text = "persuasion"
    tokens: o.Tokens = 2048
    context: o.Context = 512
    loss: Annotated[str, typer.Option(metavar="A,B,...", help="Perplexity above dense that may be lost.")] = (
        "0.1,0.2,0.5"
    )
    trials: Annotated[int, typer.Option(min=1, max=10**6, help="In all, those that the study holds included.")] = 100
    least_density: Annotated[float, typer.Option(help="Least MLP density of the first third to try.")] = 0.4
    run: Run
    device: o.Device = "cpu"
    dtype: o.Dtype = "auto"
    trust_remote_code: o.TrustRemoteCode = False
    json: JsonOption = None


def tune(options: TuneOptions) -> None:
    """Find the fastest settings that stay within a loss of perplexity.

    These are settings of DIP-CA on a device; the perplexity is that with the cache in the loop. Searched are density,
    split between input and down, and gamma, each by thirds of the layers, the parts of the cache that input and down
    have, and the eviction rule; with --lora also whether the adapter is on. Judge the outcome on another text:
    `hwsim eval --settings FILE.yaml`.

    Example: hwsim tune --model smollm2-135m --hw iphone16-a18 --dram 50% --text book.txt --study study.db -o tuned.yaml
    """
    from hwsim.device.profile import find_profile, load_profile
    from hwsim.record import Settings as Reading
    from hwsim.report.tuning import render_tuned
    from hwsim.studies.tune import Goal, write_settings
    from hwsim.studies.tune import tune as run
    from hwsim.studies.tune.study import told

    model, hw, text, tokens, out = options.model, options.hw, options.text, options.tokens, options.out
    study, json = options.study, options.json
    losses = _losses(options.loss)
    names = {loss: out if len(losses) == 1 else out.with_name(f"{out.stem}-{loss:g}{out.suffix}") for loss in losses}
    read = [find_profile(hw), *o.model_files(model), *([Path(text)] if Path(text).is_file() else [])]
    read += options.run.files()
    written = [*names.values(), study]
    for path in written:
        check_new_file(path)
        spare(path, read)
    check_target(json, *read, *written)
    check_closed(options.run)
    settings = options.run.settings()
    reading = Reading(
        tokens=tokens, context=options.context, device=options.device, dtype=options.dtype,
        trust_remote_code=options.trust_remote_code,
    )  # fmt: skip
    goal = Goal(model, text, reading, load_profile(hw), settings, losses, options.least_density)
    with progress_bar() as progress:
        tuned = run(goal, study, options.trials, seed=settings.seed, progress=progress)
    for loss, best in tuned.best.items():
        if best:
            about = f"hwsim tune: {model} on {hw}, {tokens} tokens of {Path(text).name}, at most +{loss:g}"
            write_settings(names[loss], best, f"{about}\n{told(best)}")
    if json:
        write_json(json, to_json({"format": "hwsim-tuned", "version": 1, **_plain(tuned)}))
    if json != "-":
        output().print(render_tuned(tuned))
    for loss, best in tuned.best.items():
        note(f"+{loss:g}: {names[loss]}" if best else f"+{loss:g}: no trial stays within it; give more --trials")


def _losses(text: str) -> tuple[float, ...]:
    try:
        losses = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise SettingError(f"--loss {text}: must be numbers above 0, such as 0.1,0.5") from error
    return tuple(dict.fromkeys(losses))


def _plain(tuned: object) -> dict[str, object]:
    from dataclasses import asdict

    plain = asdict(tuned)  # type: ignore[call-overload]
    return plain | {key: {f"{loss:g}": trial for loss, trial in plain[key].items()} for key in ("best", "base")}

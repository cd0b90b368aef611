"""``hwsim plan``: which cache, how many experts and how many reads at once suit a device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from hwsim.cli.common import (
    JsonOption,
    check_target,
    find_trace,
    listed,
    note,
    output,
    progress_bar,
    to_json,
    write_json,
)
from hwsim.cli.runoptions import Run
from hwsim.errors import SettingError


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Options of ``hwsim plan``."""

    trace: Annotated[Path, typer.Argument(metavar="TRACE", help="Trace with the choices of a router.")]
    hw: Annotated[str, typer.Option("--hw", metavar="NAME|FILE", help="Hardware profile.")]
    dram: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE,...",
            help="Amounts of DRAM for the model: sizes (3GB), or shares of its weight bytes (50%).",
            show_default="the profile's budget",
        ),
    ] = None
    experts: Annotated[
        str | None,
        typer.Option(
            metavar="N,...", help="Numbers of experts to try besides the model's own.", show_default="half of it"
        ),
    ] = None
    run: Run
    json: JsonOption = None


def plan(options: PlanOptions) -> None:
    """Recommend a cache for a mixture of experts, by amounts of DRAM.

    Says, too, how many experts and how many reads at once suit it.

    Example: hwsim plan experts.npz --hw oneplus15r --dram 2GB,3GB,4GB
    """
    from hwsim.device.profile import find_profile, load_profile
    from hwsim.report.planning import render_plan
    from hwsim.studies.plan import plan as study
    from hwsim.trace import Trace

    trace, json = find_trace(options.trace), options.json
    if options.run["overlap"] == "prefetch":
        raise SettingError("--overlap prefetch: hwsim plan knows no prefetch rule; choose none, group or pipeline")
    check_target(json, trace, find_profile(options.hw))
    profile = load_profile(options.hw)
    drams = listed(options.dram) if options.dram else [str(profile.dram.budget)]
    with Trace(trace) as opened, progress_bar() as progress:
        found = study(
            opened, profile, [dram if not dram.isdecimal() else int(dram) for dram in drams], options.run.settings(),
            _numbers(options.experts), lambda done, total: progress("replays", done, total),
        )  # fmt: skip
        data = {
            "format": "hwsim-plan",
            "version": 1,
            "trace": {"name": opened.path.name, "hash": opened.hash, "origin": opened.header.origin},
            "model": opened.model.name,
            "device": profile.name,
            **found.plain(),
        }
        title = (
            f"{opened.model.name}, {opened.header.decoded} tokens decoded from {trace.name} "
            f"({opened.header.origin}), on {profile.name}"
        )
    if json:
        write_json(json, to_json(data))
    if json != "-":
        output().print(render_plan(found.plain(), title))
    if json and json != "-":
        note(f"Written to {json}")


def _numbers(text: str | None) -> list[int]:
    if text is None:
        return []
    try:
        return [int(word) for word in listed(text)]
    except ValueError as error:
        raise SettingError(f"--experts {text}: must be whole numbers, such as 4,2") from error

"""``hwsim fit device``: make a profile with a queue model that is fitted to measured rates of Flash."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from hwsim.cli.common import JsonOption, check_target, note, output, to_json, write_json
from hwsim.errors import OutputError, SettingError
from hwsim.util.files import check_new_file, spare, write_atomic
from hwsim.util.units import show_rate, show_size

_GOOD = 0.15  # largest error on points left out for which a fit is good


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Options of ``hwsim fit device``."""

    measured: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="Lines of block size, queue depth and rate (4KiB or 4k, 8, 315 MB/s), or JSON of fio."
        ),
    ]
    like: Annotated[
        str,
        typer.Option("--like", metavar="NAME|FILE", help="Profile whose DRAM, compute and energy the new one takes."),
    ]
    name: Annotated[str, typer.Option(help="What the device is called.")] = "My device"
    source: Annotated[str, typer.Option(help="Who measured, when, with what.")] = "measured by the user"
    queue_depth: Annotated[
        int | None,
        typer.Option(
            min=1, max=2**16, help="Reads that the decoder keeps outstanding.", show_default="the deepest measured"
        ),
    ] = None
    out: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Profile to write.", show_default="none, only the fit is shown"),
    ] = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is already there.")] = False
    json: JsonOption = None


def device(options: DeviceOptions) -> None:
    """Fit Flash's queue model to measured rates, judge it by points left out, and write a profile.

    Example: hwsim fit device fio.json --like pixel8 --name "My phone" -o myphone.yaml
    """
    from hwsim.device.fit import fit_queue, read_points
    from hwsim.device.profile import find_profile
    from hwsim.util.yamlfile import read_yaml

    like, measured, out, json = options.like, options.measured, options.out, options.json
    pattern = find_profile(like)
    check_target(json, measured, pattern)
    if out:
        check_new_file(out)
        spare(out, [measured, pattern])
        if out.exists() and not options.overwrite:
            raise OutputError(f"{out}: is there already; add --overwrite, or name another file")
    points = read_points(measured)
    fit = fit_queue(points)
    worst, where = fit.worst
    deepest = options.queue_depth or int(max(point.depth for point in points))
    model = {key: float(getattr(fit.queue, key)) for key in ("latency", "per_kib", "command", "bandwidth", "exponent")}
    summary = (
        f"fitted to {len(points)} measured points, {fit.error:.1%} rms on them, {fit.left_out:.1%} on points left out"
    )
    if json:
        write_json(
            json,
            to_json({
                "format": "hwsim-flash-fit", "version": 1, "points": len(points), "queue": model, "error": fit.error,
                "left_out": fit.left_out, "worst": {"error": worst, "size": where.size, "depth": where.depth},
            }),
        )  # fmt: skip
    if json != "-":
        console = output()
        console.print(
            f"A request spends {model['latency'] * 1e6:.1f} us + {model['per_kib'] * 1e6:.3g} us x "
            f"KiB^{model['exponent']:.3f} beside the others,\n"
            f"then {model['command'] * 1e6:.2f} us + bytes / {show_rate(model['bandwidth'])} one after the other."
        )
        console.print(
            f"It was {summary};\n"
            f"the worst of those is off by {worst:+.0%}: {show_size(where.size)} at depth {where.depth:g}."
        )
        if fit.left_out > _GOOD:
            console.print(
                f"[yellow]warning: more than {_GOOD:.0%}; a table of the measured rates in the profile follows them "
                "better (docs/reference/profile.md)[/yellow]"
            )
    if out is None:
        return
    from hwsim.errors import ProfileError

    base = read_yaml(pattern, ProfileError, "hardware profile", "name, dram and flash")
    write_atomic(out, _profile(base, like, options.name, options.source, model, deepest, summary))
    _check(out)
    note(f"Profile written to {out}; DRAM, compute and energy are those of {like}")


def _profile(
    base: dict[str, Any], like: str, name: str, source: str, model: dict[str, float], depth: int, summary: str
) -> str:
    import yaml

    flash: dict[str, Any] = {
        "read_bandwidth": f"{model['bandwidth'] / 1e6:.4g} MB/s",
        "queue_depth": depth,
    }
    if page := base.get("flash", {}).get("page_size"):
        flash["page_size"] = page
    flash |= {
        "source": source,
        "confidence": "measured",
        "queue": {
            "latency": f"{model['latency'] * 1e6:.5g} us",
            "per_kib": f"{model['per_kib'] * 1e6:.5g} us",
            "exponent": float(f"{model['exponent']:.5g}"),
            "command": f"{model['command'] * 1e6:.5g} us",
            "bandwidth": f"{model['bandwidth'] / 1e6:.6g} MB/s",
            "source": f"{source}; {summary}",
            "confidence": "derived",
        },
    }
    profile: dict[str, Any] = {
        "name": name,
        "source": f"Flash: {source}; all else as in {like}",
        "confidence": "derived",
    }
    for key in ("dram", "compute", "energy"):
        if key in base:
            section = dict(base[key])
            section.setdefault("source", base.get("source", like))
            section["note"] = f"Taken from {like}. {section.get('note', '')}".strip()
            profile[key] = section
        if key == "dram":
            profile["flash"] = flash
    return yaml.safe_dump(profile, sort_keys=False, allow_unicode=True, width=120)


def _check(path: Path) -> None:
    from hwsim.device.profile import load_profile

    try:
        load_profile(path)
    except Exception as error:  # the written profile must be readable
        raise SettingError(f"{path}: the fit gives no possible profile: {error}") from error

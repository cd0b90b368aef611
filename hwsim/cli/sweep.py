"""``hwsim sweep``: do a grid of runs, in processes or on a cluster; ``hwsim runs``: show the runs of a store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from hwsim.cli import options as o
from hwsim.cli.common import (
    JsonOption,
    check_target,
    key_values,
    note,
    output,
    progress_bar,
    to_json,
    write_json,
)
from hwsim.errors import SettingError, did_you_mean
from hwsim.util.files import check_new_file, spare

_MOST_SHOWN = 40  # rows of the table that follows a sweep
_AXES = ("trace", "model", "text", "tokens", "hw", "policy", "density", "eviction", "dram")  # options of several values

Numbered = tuple[int, dict[str, Any]]
"""The number of a result in the store, and the result."""


class Backend(StrEnum):
    """The backend that does the runs."""

    LOCAL = "local"
    DASK = "dask"
    RAY = "ray"


def _option(text: str, default: str | bool = False) -> Any:
    return typer.Option(metavar="A,B,...", help=text, show_default=default)


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """Options of ``hwsim sweep``."""

    store: Annotated[Path, typer.Option("--store", "-o", metavar="FILE", help="Keeps each finished run; SQLite.")]
    spec: Annotated[
        Path | None,
        typer.Argument(metavar="[SPEC.yaml]", help="What to run; options stand above it.", show_default=False),
    ] = None
    trace: Annotated[str | None, _option("Traces; sample: the bundled one.")] = None
    model: Annotated[str | None, _option("Models to run in the closed loop, as for `hwsim eval`.")] = None
    text: Annotated[str | None, _option("Texts for the models.")] = None
    tokens: Annotated[str | None, _option("Tokens of the texts.", "2048")] = None
    hw: Annotated[str | None, _option("Hardware profiles.")] = None
    policy: Annotated[str | None, _option("Policies.")] = None
    density: Annotated[str | None, _option("MLP densities, of the policies that have one.")] = None
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=A,B,...", help="Values of a parameter: KEY, POLICY.KEY or eviction.KEY."),
    ] = None
    eviction: Annotated[str | None, _option("Eviction rules.", "lfu")] = None
    dram: Annotated[str | None, _option("DRAM sizes or shares.")] = None
    vary: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=A,B,...", help="Values of any other key of SPEC.yaml, such as overlap or block."),
    ] = None
    trust_remote_code: o.TrustRemoteCode = False
    per_token: Annotated[bool, typer.Option("--per-token", help="Keep every token in the results.")] = False
    jobs: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Processes of this machine.", show_default="all cores")
    ] = None
    backend: Annotated[Backend, typer.Option(help="local: processes of this machine; or a cluster's.")] = Backend.LOCAL
    address: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Of Dask's scheduler or Ray's head.")] = None
    json: JsonOption = None


def sweep(options: SweepOptions) -> None:
    """Run every combination of models, devices, policies and settings.

    These are traces or models, devices, policies and their parameters, eviction rules and sizes of DRAM.

    Each finished run is stored at once, under a hash of all that decides it. A run that is in the store is not run
    again: the same command goes on after a kill, and a larger grid runs only what is new.

    Example: hwsim sweep --trace sample --hw pixel8,iphone16-a18 --policy dip,dip-ca --density 0.5,0.7 --dram 50%,70%
    -o runs.db
    """
    from hwsim.report.runs import render_runs
    from hwsim.studies.sweep import Store, make_spec, read_spec
    from hwsim.studies.sweep import sweep as run
    from hwsim.util.cores import cores

    store, spec, json = options.store, options.spec, options.json
    given = {key: getattr(options, key) for key in _AXES}
    wanted: dict[str, Any] = {key: _values(value) for key, value in given.items() if value is not None}
    wanted |= {key: _values(value) for key, value in key_values(options.vary or [], "--vary").items()}
    if parameters := {key: _values(value) for key, value in key_values(options.set_ or [], "--set").items()}:
        wanted["set"] = parameters
    if options.per_token:
        wanted["per_token"] = True
    if options.trust_remote_code:
        wanted["trust_remote_code"] = True
    specs = read_spec(spec, wanted) if spec else [make_spec(wanted, "options")]
    check_new_file(store)
    read = [spec] if spec else []
    for grid in specs:
        read += [Path(name) for name in (*(grid.trace or ()), *grid.hw, *grid.policy)]
    spare(store, read)
    check_target(json, *read, store)
    with Store(store) as kept, progress_bar() as progress:
        try:
            swept = run(
                specs, kept, jobs=options.jobs or cores(), backend=options.backend.value, address=options.address,
                progress=progress,
            )  # fmt: skip
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(f"{len(kept)} runs are in {store}; the same command goes on") from error
        shown = list(kept.results(swept.keys if json else swept.keys[:_MOST_SHOWN]))
    if json:
        write_json(json, to_json({"format": "hwsim-results", "version": 1, "results": shown}))
    if json != "-" and shown:
        console = output()
        console.print(render_runs(shown[:_MOST_SHOWN], width=console.width))
    if len(swept.keys) > _MOST_SHOWN:
        note(f"{len(swept.keys) - _MOST_SHOWN} more: hwsim runs {store}")
    note(f"{swept.done} run now, {swept.stored} stored before, {len(swept.failed)} failed; all in {store}")
    _tell_failures([why for _, why in swept.failed])
    if swept.failed:
        raise typer.Exit(1)


def runs(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="File of `hwsim sweep`.")],
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Only runs with this: policy, device, eviction, trace, model, ..."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Rows of the table.")] = 200,
    json: JsonOption = None,
) -> None:
    """Show the runs of a sweep, or write them as one result file.

    The table has the numbers by which `hwsim compare` finds the runs.

    Example: hwsim runs runs.db --where policy=dip-ca --json runs.json
    """
    from hwsim.report.runs import render_runs
    from hwsim.studies.sweep import Store
    from hwsim.studies.sweep.store import COLUMNS

    check_target(json, store)
    wanted = key_values(where or [], "--where")
    easy = {key: value for key, value in wanted.items() if key in COLUMNS}
    others = {key: value for key, value in wanted.items() if key not in COLUMNS}
    with Store(store, create=False) as kept:
        count = kept.count(**easy)
        rows = kept.numbered(whole=bool(json), limit=-1 if others or json else limit, **easy)
        numbered = list(_those_with(others, rows) if others else rows)
        shown = [result for _, result in numbered]
        count = len(shown) if others else count
        failures = kept.failures()
    if json:
        write_json(json, to_json({"format": "hwsim-results", "version": 1, "results": shown}))
    if json == "-":
        return
    console = output()
    if shown:
        numbers = [number for number, _ in numbered[:limit]]
        console.print(render_runs(shown[:limit], numbers=numbers, width=console.width))
    note(f"{count} runs" + (f", {count - limit} more than are shown" if count > limit else ""))
    _tell_failures([why for _, why in failures])


def _those_with(wanted: dict[str, str], results: Iterable[Numbered]) -> Iterator[Numbered]:
    """Yield the results with these settings.

    Raises:
        SettingError: no result has such a setting.
    """
    from hwsim.report.runs import settings_of

    known: dict[str, str] = {}
    for number, result in results:
        settings = settings_of(result)
        known |= settings
        if all(settings.get(key) == value for key, value in wanted.items()):
            yield number, result
    for key in wanted.keys() - known.keys() if known else ():
        raise SettingError(f"--where {key}: no run has such a setting{did_you_mean(key, known)}")


def _tell_failures(reasons: list[str]) -> None:
    """Print each reason once, with the number of runs that failed for it."""
    for reason, count in Counter(reasons).items():
        note(f"failed, {count} {'run' if count == 1 else 'runs'}: {reason}")


def _values(text: str) -> list[Any]:
    """Split values at commas and read each as YAML; a list or mapping in brackets is one value."""
    import yaml

    try:
        values: list[Any] = yaml.safe_load(f"[{text}]")
    except yaml.YAMLError:
        return [*text.split(",")]
    return values

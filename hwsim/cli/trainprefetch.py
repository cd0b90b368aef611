"""``hwsim train prefetch``: a trace -> what the rule `trained` guesses by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from hwsim.cli import caching as c
from hwsim.cli import options as o
from hwsim.cli.common import (
    JsonOption,
    check_target,
    find_trace,
    named,
    note,
    output,
    plugin_files,
    progress_bar,
    setting_files,
    to_json,
    write_json,
)
from hwsim.cli.replay import density_files, make_policies
from hwsim.cli.runoptions import Run
from hwsim.errors import OutputError, SettingError
from hwsim.util.files import check_new_file, spare
from hwsim.util.units import printable


@dataclass(frozen=True, kw_only=True)
class PrefetchOptions:
    """Options of ``hwsim train prefetch``."""

    trace: Annotated[
        Path, typer.Argument(metavar="TRACE", help="Trace to count on; judge on another. sample: the bundled.")
    ]
    policy: Annotated[str, typer.Option(metavar="NAME|FILE.py", help="Policy that decides the masks.")]
    hw: o.Hardware
    out: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="File to write.")]
    density: o.Density = None
    set_: o.Parameters = None
    eviction: o.EvictionRule = "lfu"
    run: Run
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is already there.")] = False
    json: JsonOption = None


def prefetch(options: PrefetchOptions) -> None:
    """Count on a trace how often a unit is needed after a token that needed it, or did not; for --prefetch trained.

    Example: hwsim train prefetch sample --policy dip --hw pixel8 --dram 50% -o guess.npz
    """
    from hwsim.device.profile import find_profile, load_profile
    from hwsim.prefetch.trained import KIND
    from hwsim.simulation.run import Conditions, Source
    from hwsim.trace import Trace
    from hwsim.train.prefetching import train_prefetch
    from hwsim.util.arrayfile import write_arrays

    trace, hw, policy, out, json = find_trace(options.trace), options.hw, options.policy, options.out, options.json
    pairs = options.set_ or []
    files = [
        trace,
        find_profile(hw),
        *plugin_files([policy, options.eviction]),
        *setting_files(pairs),
        *density_files(options.density),
    ]
    check_new_file(out)
    spare(out, files)
    check_target(json, *files, out)
    if out.is_file() and not options.overwrite:
        raise OutputError(f"{out}: exists; name another file with -o, or give --overwrite")
    _, rule, pairs = c.make_rule(options.eviction, pairs)
    ((name, policy_instance),) = make_policies([policy], options.density, pairs)
    with Trace(trace) as opened, progress_bar() as progress:
        conditions = Conditions(load_profile(hw), rule, options.run.settings())
        header, arrays = train_prefetch(
            conditions.run(Source.of_trace(opened), policy_instance, name), [named(progress)]
        )
        tokens = opened.header.decoded
    if not arrays:
        raise SettingError(f"policy {name} has no groups, so there is nothing to guess")
    write_arrays(out, KIND, header, arrays)
    if json:
        write_json(json, to_json({"file": str(out), "groups": len(arrays), "tokens": tokens}))
    if json != "-":
        output().print(
            f"{printable(str(out))}: {len(arrays)} groups, from {tokens} tokens\n"
            f"hwsim replay TRACE --hw {printable(hw)} --policy {printable(policy)} --overlap prefetch "
            f"--prefetch trained --set prefetch.path={printable(str(out))}",
            markup=False, soft_wrap=True,
        )  # fmt: skip
    if json and json != "-":
        note(f"Written to {json}")

"""What is printed: tables, notes, lists and help."""

import json
from pathlib import Path

import numpy as np
import pytest

from hwsim.trace import Trace
from hwsim.util.units import show_number
from tests.cli.commands import listed
from tests.cli.run import here, replay, result, run
from tests.simulation.made import MINE

__all__ = ["here"]


def test_the_table(here):
    out, err = run(*replay("--dram", "60%", policy="dip,dip-ca"))
    assert err == ""
    rows = [line.split() for line in out.splitlines()]
    assert ["dense", "1.00", "x"] in [row[:1] + row[2:4] for row in rows if row]
    for name in ("dip", "dip-ca"):
        assert sum(row[:1] == [name] for row in rows) == 2  # the answer, and where the time goes
    assert "- The trace is synthetic: no model produced it." in out
    assert all(line == line.rstrip() for line in out.splitlines())


def test_numbers_in_the_table_are_those_of_the_json(here):
    out, _ = run(*replay("--dram", "60%"))
    found = result("--dram", "60%")
    row = next(line for line in out.splitlines() if line.startswith("dip "))
    assert show_number(found["throughput_tok_s"]) in row
    assert f"{found['hit_rate']:.1%}" in row
    assert f"{found['mlp_density']:.3f}" in row


def test_bars_are_to_scale_and_shares_are_those_of_the_json(here):
    """Without colours letters draw them; the slowest fills the room, each part ends where its share ends."""
    out, _ = run(*replay("--dram", "60%", policy="dense,dip,magnitude"))
    found = result("--dram", "60%", policy="dense,dip,magnitude")["results"]
    slowest = max(each["time_s"]["total"] for each in found)
    where = out[out.index("where the time") :]
    letters = {"resident": "r", "kv_cache": "k", "streamed": "s", "mlp": "m"}
    for each in found:
        name, times = each["provenance"]["policy"]["name"], each["time_s"]
        row = next(line for line in where.splitlines() if line.startswith(f"{name} "))
        drawn, sum_s = "", 0.0
        for part, letter in letters.items():
            sum_s += times[part]
            drawn += letter * (round(40 * sum_s / slowest) - len(drawn))
        shares = []
        for part in letters:
            share = times[part] / times["total"]
            shares.append("-" if not share else "<1%" if share < 0.005 else f"{share:.0%}")
        assert row.split()[-5:] == [drawn, *shares]


def test_a_note_that_holds_for_several_policies_is_said_once(here):
    out, _ = run(*replay("--dram", "40%", policy="dip,dip-ca"))
    notes = [line for line in out.splitlines() if "asks for more units than its cache holds" in line]
    assert len(notes) == 1
    assert notes[0].startswith("- dip, dip-ca: each mask")


@pytest.mark.parametrize("width", [50, 80, 100, 160])
def test_the_table_fits_the_width(here, width):
    """On any terminal no line is cut, and no cell of a number is."""
    import io

    from rich.console import Console

    from hwsim.device.profile import load_profile
    from hwsim.report.table import print_results
    from hwsim.simulation.plugins import EVICTIONS, POLICIES
    from hwsim.simulation.settings import Settings
    from tests.runs import replay as run_one

    with Trace("t.npz") as trace:
        results = [
            run_one(
                trace, load_profile("pixel8"), POLICIES.make(name)[1], EVICTIONS.make("lfu")[1],
                Settings(dram="60%"), policy_name=name, eviction_name="lfu",
            )
            for name in ("dense", "dip", "magnitude", "noisy-oracle")
        ]  # fmt: skip
    text = io.StringIO()
    print_results(Console(file=text, width=width, force_terminal=True, color_system=None), results, results[0])
    assert max(len(line) for line in text.getvalue().splitlines()) <= width
    assert "…" not in text.getvalue()


def test_policy_names_are_no_markup(here):
    Path("[red]mine[bold].py").write_text(MINE)
    out, _ = run(*replay(policy="[red]mine[bold].py"))
    assert "[red]mine[bold]" in out


@pytest.mark.parametrize("command", [["policies"], ["evictions"], ["devices"], ["devices", "oneplus15r"]])
def test_the_lists(here, command):
    command = ["list", *command]
    out, err = run(*command)
    assert err == ""
    assert len(out.splitlines()) > 4
    assert all(line == line.rstrip() for line in out.splitlines())
    data, _ = run(*command, "--json", "-")
    assert json.loads(data)


def test_devices_show_units_sources_and_confidence(here):
    out, _ = run("list", "devices", "oneplus15r")
    for text in ("59.7 GB/s", "2.81 GB/s", "measured", "Meridian", "4 KiB", "depth 8", "315 MB/s", "56.0 pJ/B"):
        assert text in out


@pytest.mark.parametrize("command", ["", "replay", "list policies", "list evictions", "list devices"])
def test_help_has_an_example(command):
    out, _ = run(*command.split(), "--help")
    assert f"hwsim {command}".strip() in out
    if command:
        assert "Example:" in out


def test_every_command_has_an_example_and_json():
    commands = dict(listed())
    assert set(commands) >= {"replay", "list policies", "plugin check", "trace info"}
    for name, command in commands.items():
        assert "Example" in command.help, name
        if name != "report":  # it writes what --json wrote
            assert any("--json" in option.opts for option in command.params), name


def test_version():
    import hwsim

    assert run("--version")[0] == f"hwsim {hwsim.__version__}\n"
    told = json.loads(run("--version", "--json")[0])
    assert told["hwsim"] == hwsim.__version__
    assert told["packages"]["numpy"] == np.__version__

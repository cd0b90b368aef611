"""A replay while it runs, as a terminal shows it."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from hwsim.report.watch import Watch
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.simulation.settings import Settings
from hwsim.trace import Trace
from hwsim.util.units import show_number
from tests.conftest import flat_profile
from tests.runs import Told, replay
from tests.timing.cli import run_cli


def drawn(what: Any) -> str:
    file = io.StringIO()
    Console(file=file, width=160).print(what)
    return file.getvalue()


def test_it_shows_what_the_result_says_in_the_end(trace: Trace) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=160)
    results: dict[str, Any] = {}
    with Watch(screen) as watch:
        for name in ("dense", "dip"):
            watch.show_phase(f"{name}: masks and hits", 1, 3)
            assert "masks and hits 1/3" in drawn(watch.table())
            results[name] = replay(
                trace, flat_profile(), POLICIES.make(name)[1], EVICTIONS.make("lru")[1], Settings(dram="60%"),
                policy_name=name, observers=[watch, Told(progress=watch.show_phase)],
            )  # fmt: skip
    _, _, *lines = drawn(watch.table()).splitlines()
    assert len(lines) == 2
    for line, (name, result) in zip(lines, results.items(), strict=True):
        assert line.startswith(f"{name} on flat")
        assert f"{result.tokens}/{result.tokens}" in line
        assert show_number(result.throughput_tok_s) in line
        assert ("-" if result.hit_rate is None else f"{result.hit_rate:.1%}") in line


def test_nothing_is_drawn_where_there_is_no_terminal(trace: Trace) -> None:
    file = io.StringIO()
    with Watch(Console(file=file)) as watch:
        replay(
            trace, flat_profile(), POLICIES.make("dip")[1], EVICTIONS.make("lru")[1], Settings(dram="60%"),
            observers=[watch],
        )  # fmt: skip
    assert file.getvalue() == ""


@pytest.mark.parametrize("more", [(), ("--timeline", "t.json")])
def test_the_result_is_the_same(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]) -> None:
    monkeypatch.chdir(tmp_path)
    command = ("replay", "sample", "--hw", "pixel8", "--dram", "60%", "--policy", "dip", "--json", "-")
    assert run_cli(*command).stdout == run_cli(*command, "--watch", *more).stdout


def test_the_closed_form_has_nothing_to_watch() -> None:
    done = run_cli(
        "replay", "sample", "--hw", "pixel8", "--policy", "dip", "--watch", "--timing", "closed-form", code=1
    )
    assert "--watch: the closed form knows no moments" in done.stderr

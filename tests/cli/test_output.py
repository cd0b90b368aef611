"""Is what the command line prints safe for pipes, terminals of any width and shells, and true?"""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console, ConsoleRenderable
from typer.testing import CliRunner

from hwsim.analysis.tracestats import trace_stats
from hwsim.cli.app import app
from hwsim.device.profile import find_profile, known_profiles, load_profile
from hwsim.report.device import render_device, render_devices
from hwsim.report.traceinfo import render_comparison, render_trace
from hwsim.trace import Trace
from hwsim.util.units import parse, printable
from tests.cli.run import here, refused, replay, result, run  # noqa: F401
from tests.conftest import SMALL_MODEL, write_trace
from tests.device.test_profile import LEAST
from tests.simulation.made import MINE

EVIL = "a\x1b[31mred\x9b0m\nb\u202ec"
SHOWN = r"a\x1b[31mred\x9b0m\nb\u202ec"

# ---------------------------------------------------------------------- what plug-ins print


@pytest.mark.usefixtures("here")
def test_what_plug_ins_print_goes_to_standard_error() -> None:
    talks = MINE.replace("return np.abs", "print('scoring')\n        return np.abs")
    Path("talks.py").write_text("print('loading')\n" + talks)
    out, err = run(*replay("--json", "-", policy="talks.py"))  # type: ignore[no-untyped-call]
    assert json.loads(out)["format"] == "hwsim-result"
    assert err.startswith("loading\nscoring\n")
    out, err = run("policies", "talks.py", "--json", "-")
    assert json.loads(out)["name"] == "talks"
    assert err == "loading\n"


# ---------------------------------------------------------------------- what steers a terminal


def test_printable() -> None:
    assert printable(EVIL) == SHOWN
    assert printable("größe [x] 模型 \udcff") == "größe [x] 模型 ?"


@pytest.mark.usefixtures("here")
def test_names_from_files_do_not_steer_the_terminal() -> None:
    write_trace(Path("evil.npz"), model=SMALL_MODEL.model_copy(update={"name": EVIL, "hidden_act": EVIL}))
    evil = re.sub(r"^name:.*$", lambda _: f"name: {json.dumps(EVIL)}", LEAST, flags=re.MULTILINE)
    Path("evil.yaml").write_text(evil + f"source: {json.dumps(EVIL)}\nnote: |\n  one\n  two\n")
    for command in (
        replay(trace="evil.npz", hw="evil.yaml"),  # type: ignore[no-untyped-call]
        ["trace", "info", "evil.npz"],
        ["devices", "evil.yaml"],
        ["synth", "--model", "smollm2-135m", "--tokens", "16", "--like", "evil.npz", "-o", "s.npz", "--overwrite"],
    ):
        out, err = run(*command)
        assert SHOWN in out, command
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", out + err), command
    assert "one two" in run("devices", "evil.yaml")[0]
    assert r"\x1b" in refused(*replay(policy="no\x1b[31m"))  # type: ignore[no-untyped-call]
    assert "\x1b" not in refused(*replay(policy="no\x1b[31m"))  # type: ignore[no-untyped-call]


# ---------------------------------------------------------------------- narrow terminals


def drawn(shown: ConsoleRenderable, width: int) -> str:
    text = io.StringIO()
    Console(file=text, width=width, force_terminal=True, color_system=None).print(shown)
    return text.getvalue()


def quantities(text: str) -> set[str]:
    return set(re.findall(r"[0-9.]+ (?:[kMG]?B/s|[kMG]B|[mu]?s|[pn]J/B)\b|[0-9.]+%", text))


@pytest.mark.parametrize("width", [40, 50, 60, 80, 100])
def test_no_number_is_cut(width: int, small_trace: Path) -> None:
    with Trace(small_trace) as trace:
        stats = trace_stats(trace, tokens=20)
        shown = {
            "devices": lambda w: render_devices({n: load_profile(n) for n in known_profiles()}, w),
            "device": lambda w: render_device(load_profile("oneplus15r"), find_profile("oneplus15r"), w),
            "trace": lambda w: render_trace(trace, stats, layers=True, width=w),
            "comparison": lambda w: render_comparison(stats, stats, w),
        }
        for name, render in shown.items():
            wide, narrow = drawn(render(160), 160), drawn(render(width), width)
            assert "…" not in narrow, name
            assert max(len(line) for line in narrow.splitlines()) <= width, name
            assert "widen" not in wide
            # every cell that is still there is there in full
            assert quantities(narrow) - {"39 %"} <= quantities(wide), name
            if width == 40:
                assert "widen the terminal for " in narrow, name


def test_what_did_not_fit_is_named() -> None:
    text = drawn(render_devices({"pixel8": load_profile("pixel8")}, 60), 60)
    assert text.rstrip().endswith("widen the terminal for Flash model, kind, what it is")


@pytest.mark.usefixtures("here")
def test_a_narrow_replay_says_what_it_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import hwsim.cli.replay as command

    text = io.StringIO()
    monkeypatch.setattr(command, "output", lambda: Console(file=text, width=60))
    run(*replay(hw="pixel8", policy="dense,dip"))  # type: ignore[no-untyped-call]
    assert text.getvalue().rstrip().splitlines()[-1] == "widen the terminal for p95, DRAM, energy, first token"


# ---------------------------------------------------------------------- messages


@pytest.mark.usefixtures("here")
def test_density_of_a_comparison_is_for_those_that_take_it() -> None:
    out, err = run(*replay("--density", "0.6", "--json", "-", policy="dense,dip"))  # type: ignore[no-untyped-call]
    found = [each["provenance"]["policy"]["parameters"]["density"] for each in json.loads(out)["results"]]
    assert found == [1.0, 0.6]
    assert err == "--density 0.6 is for dip; dense as without it\n"
    Path("mine.py").write_text(MINE)
    found = result("--density", "0.6", policy="mine.py,dip")["results"]  # type: ignore[no-untyped-call]
    assert found[0]["provenance"]["policy"]["parameters"] == {"keep": 0.5}
    assert "density=0.6" in refused(*replay("--density", "0.6", policy="dense"))  # type: ignore[no-untyped-call]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("option", "value"), [("--density", "half"), ("--seed", "-1"), ("--seed", "x"), ("--timing", "fast")]
)
def test_usage_errors_show_the_value(option: str, value: str) -> None:
    done = CliRunner().invoke(app, replay(option, value))  # type: ignore[no-untyped-call]
    (said,) = done.stderr.splitlines()
    assert done.exit_code == 2
    assert f"Invalid value for '{option}': " in said
    assert repr(value) in said
    assert "Value error" not in said


@pytest.mark.usefixtures("here")
def test_per_token_needs_json() -> None:
    told = refused(*replay("--per-token"))  # type: ignore[no-untyped-call]
    assert told == "--per-token: single tokens are in the JSON only; give --json FILE, too"


def test_a_kind_has_its_article() -> None:
    for text in ("4", "4 GB", "x", "-1 pJ/B"):
        with pytest.raises(Exception, match="an energy per byte"):
            parse(text, "energy per byte")
    with pytest.raises(Exception, match=r"is not a size"):
        parse("x", "size")


def test_out_of_memory_is_one_line(here: Path) -> None:  # noqa: F811
    script = (
        "import hwsim.analysis.tracestats\n"
        "def full(*_, **__): raise MemoryError\n"
        "hwsim.analysis.tracestats.trace_stats = full\n"
        "from hwsim.cli import main; main()\n"
    )
    command = [sys.executable, "-c", script, "trace", "info", "t.npz"]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "hwsim: out of memory; ask for less, such as fewer tokens\n"

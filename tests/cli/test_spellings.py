"""Earlier spellings of the commands go on working: the same help, output, files and exit codes; nothing lists them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hwsim.cli.app import COMMANDS, GROUPS, app
from tests.cli.run import here, run  # noqa: F401

BEFORE = [  # every spelling of the time before `hwsim list`, `hwsim plugin` and `hwsim fit`
    "record", "replay", "calibrate", "eval", "generate", "sweep", "runs", "report", "compare", "tune", "synth", "layout",
    "policies", "evictions", "prefetches", "devices", "calibrate-device", "validate", "new-policy", "new-eviction",
    "check", "train", "train predictor", "train lora", "train prefetch", "trace", "trace info", "trace verify",
    "trace locality", "trace curve", "trace convert",
]  # fmt: skip
SINCE = {"plan", "trace import"}  # commands that never had another spelling
NOW = {
    "calibrate": "fit thresholds", "calibrate-device": "fit device", "layout": "fit layout",
    "policies": "list policies", "evictions": "list evictions", "prefetches": "list prefetches",
    "devices": "list devices", "new-policy": "plugin new-policy", "new-eviction": "plugin new-eviction",
    "check": "plugin check",
}  # fmt: skip
CALLS = {  # what follows the spelling: with output, with an error, and with a wrong command line
    "calibrate": (["t.npz", "-o", "c.npz", "--json", "-"], ["t.npz", "-o", "no/c.npz"], ["t.npz", "--nothing"]),
    "calibrate-device": (["m.txt", "--like", "pixel8", "-o", "d.yaml"], ["no.txt", "--like", "pixel8"], ["m.txt"]),
    "layout": (["t.npz", "-o", "n.npz", "--json", "l.json"], ["no.npz", "-o", "n.npz"], ["t.npz"]),
    "policies": (["dip-ca"], ["dipp"], ["--nothing"]),
    "evictions": ([], ["x"], ["a", "b"]),
    "prefetches": (["--json", "-"], ["x"], ["--json"]),
    "devices": (["flat.yaml"], ["pixel"], ["--plot"]),
    "new-policy": (["mine", "--package"], ["dip"], []),
    "new-eviction": (["mine", "-o", "there"], ["lru"], ["mine", "-o"]),
    "check": (["dip", "--json", "-"], ["nothing"], []),
}
ALIAS = pytest.mark.parametrize("old", NOW)


def invoke(spelling: str, *words: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error, with the spelling taken out."""
    done = CliRunner().invoke(app, [*spelling.split(), *words], prog_name="hwsim")
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    own = re.compile(rf"(Usage:|see) hwsim {spelling}(?= )")
    out, err = (own.sub(r"\1 hwsim @", " ".join(text.split())) for text in (done.stdout, done.stderr))
    return done.exit_code, out, err


@pytest.mark.parametrize("spelling", BEFORE)
def test_every_spelling_of_before_has_its_help(spelling: str) -> None:
    out = CliRunner().invoke(app, [*spelling.split(), "--help"], prog_name="hwsim").stdout
    assert f"Usage: hwsim {spelling} [OPTIONS]" in " ".join(out.split())


def test_every_alias_is_tested() -> None:
    assert {entry.old: entry.name for entry in COMMANDS if entry.old} == NOW
    assert CALLS.keys() == NOW.keys() <= set(BEFORE)
    assert {entry.name for entry in COMMANDS} == SINCE | set(BEFORE) - NOW.keys() - GROUPS.keys() | set(NOW.values())


@ALIAS
def test_an_alias_has_the_options_of_the_command(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    helps = [run(*spelling.split(), "--help")[0].splitlines() for spelling in (old, NOW[old])]
    texts = [[line for line in lines if "Usage: " not in line] for lines in helps]
    assert texts[0] == texts[1]
    assert len(texts[0]) == len(helps[0]) - 1 > 10


@ALIAS
@pytest.mark.parametrize("call", [0, 1, 2], ids=["works", "error", "usage"])
def test_an_alias_does_what_the_command_does(
    old: str, call: int, here: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    if old == "calibrate-device":
        pytest.importorskip("scipy", reason="fits need the extra `calibrate`")
        sizes, depths = (4, 64, 512), (1, 4, 32)
        rates = {(size, depth): min(2000, depth * size / 0.1) for size in sizes for depth in depths}
        Path("m.txt").write_text("".join(f"{size}k, {depth}, {rate} MB/s\n" for (size, depth), rate in rates.items()))
    before = {path: path.read_bytes() for path in here.iterdir()}
    results, files = [], []
    for spelling in (old, NOW[old]):
        folder = here / "run"
        folder.mkdir()
        for path, data in before.items():
            (folder / path.name).write_bytes(data)
        monkeypatch.chdir(folder)
        results.append(invoke(spelling, *CALLS[old][call]))
        files.append({str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()})
        monkeypatch.chdir(here)
        folder.rename(here / f"run-{spelling}")
    assert results[0] == results[1]
    assert files[0] == files[1]
    code, out, err = results[0]
    assert code == call, (out, err)
    assert err.count("hwsim: ") == (1 if call and "Usage: hwsim @" not in out + err else 0)


def test_nothing_lists_what_is_earlier() -> None:
    names = re.findall(r"^│ ([a-z][\w-]*) ", run("--help")[0], re.MULTILINE)
    assert names == [
        "record", "replay", "eval", "generate", "sweep", "runs", "tune", "plan", "report", "compare", "synth", "trace",
        "train", "fit", "list", "plugin", "validate",
    ]  # fmt: skip


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_help_fits_one_screen(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    lines = run("--help")[0].splitlines()
    assert len(lines) <= 40
    assert 60 < max(map(len, lines)) <= width


@pytest.mark.parametrize(
    ("words", "hint"),
    {
        "polices": " Did you mean 'list policies'?",
        "calibrat-device": " Did you mean 'fit device'",
        "lora": " Did you mean 'train lora'?",
        "replai": " Did you mean 'replay'",
        "fit nothing": "",
        "fit thresholt": " Did you mean 'thresholds'?",
        "nothing": "",
    }.items(),
)
def test_a_misspelt_command_is_told_in_the_spelling_of_now(words: str, hint: str) -> None:
    code, out, err = invoke("", *words.split())
    assert (code, out) == (2, "")
    word = words.rsplit(maxsplit=1)[-1]
    assert err.startswith(f"hwsim: No such command '{word}'" + (f".{hint}" if hint else "; see hwsim"))

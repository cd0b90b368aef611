"""Does the command line answer right, tell each mistake of a user in one line, and leave nothing behind?"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from hwsim.cli.app import app
from hwsim.trace import Sequence, Trace

from .conftest import REPOSITORY, write_trace
from .test_plugins import MINE, MRU
from .test_profile import LEAST

DECODED = (40 - 6) + 25


@pytest.fixture
def here(tmp_path, monkeypatch, small_trace):
    """An empty folder with a trace t.npz and a device flat.yaml."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(small_trace, "t.npz")
    Path("flat.yaml").write_text(LEAST)
    return tmp_path


def run(*arguments, code=0):
    """Run hwsim in this process: (standard output, standard error)."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    return done.stdout, done.stderr


def refused(*arguments):
    """The one line that a mistake is told in."""
    out, err = run(*arguments, code=1)
    assert out == ""
    assert err.endswith("\n")
    assert len(err.splitlines()) == 1, err
    assert err.startswith("hwsim: ")
    return err.removeprefix("hwsim: ").rstrip("\n")


def replay(*more, trace="t.npz", hw="flat.yaml", policy="dip"):
    return ["replay", trace, "--hw", hw, "--policy", policy, *more]


def result(*more, **other):
    return json.loads(run(*replay("--json", "-", *more, **other))[0])


def process(*arguments, cwd, **environment):
    command = [sys.executable, "-c", "from hwsim.cli import main; main()", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, env=os.environ | environment, timeout=60
    )


# ---------------------------------------------------------------------- the result

KEYS = {
    "format", "version", "provenance", "notes", "tokens", "throughput_tok_s", "latency_s", "ttft_s", "time_s",
    "unit_requests", "unit_hits", "hit_rate", "mlp_density", "flash_bytes", "flash_read_bytes", "dram_bytes",
    "resident_bytes", "kv_cache_bytes", "streamed_bytes", "cache_bytes", "budget_bytes", "energy_j", "groups", "events",
    "energy_by_source_j", "power_w", "busy_s", "prefetch",
}  # fmt: skip
GROUP = {
    "layer", "group", "units", "capacity_units", "unit_bytes", "requests", "hits", "flash_bytes", "dram_bytes",
}  # fmt: skip


@pytest.mark.parametrize("policy", ["dense", "dip", "dip-ca", "magnitude", "noisy-oracle"])
def test_json_has_every_key_and_its_sums_agree(here, policy):
    found = result("--dram", "60%", "--per-token", policy=policy)
    assert set(found) == KEYS | {"per_token"}
    assert (found["format"], found["version"], found["tokens"]) == ("hwsim-result", 1, DECODED)
    assert set(found["latency_s"]) == {"mean", "p50", "p95", "p99", "max"}
    assert set(found["time_s"]) == {"total", "resident", "kv_cache", "streamed", "mlp", "attention", "compute"}
    assert set(found["provenance"]) == {"hwsim", "trace", "model", "policy", "eviction", "device", "settings", "seed"}
    assert found["provenance"]["policy"]["name"] == policy
    groups, tokens = found["groups"], found["per_token"]
    assert all(set(group) == GROUP for group in groups)
    assert len(groups) == {"dense": 0, "dip": 6, "dip-ca": 6, "magnitude": 3, "noisy-oracle": 3}[policy]
    for key in ("requests", "hits"):
        assert sum(group[key] for group in groups) == found[f"unit_{key}"] == sum(token[key] for token in tokens)
    assert found["hit_rate"] == (found["unit_hits"] / found["unit_requests"] if groups else None)
    assert len(tokens) == DECODED
    for key in ("flash_bytes", "dram_bytes"):
        assert sum(token[key] for token in tokens) == found[key]
    assert sum(group["flash_bytes"] for group in groups) == found["flash_bytes"] - DECODED * found["streamed_bytes"]
    pinned = found["resident_bytes"] - found["kv_cache_bytes"]
    kv = 144 * (sum(range(7, 41)) + sum(range(1, 26)))  # 3 layers x (key, value) x 2 heads x 12 B, for each entry
    assert sum(group["dram_bytes"] for group in groups) == found["dram_bytes"] - DECODED * pinned - kv
    for group in groups:
        assert group["flash_bytes"] == (group["requests"] - group["hits"]) * group["unit_bytes"]
        assert group["dram_bytes"] == group["hits"] * group["unit_bytes"]
    assert found["throughput_tok_s"] == pytest.approx(DECODED / found["time_s"]["total"])
    assert sum(seconds for part, seconds in found["time_s"].items() if part != "total") == pytest.approx(
        found["time_s"]["total"], rel=1e-9
    )
    assert sum(token["latency_s"] for token in tokens) == pytest.approx(found["time_s"]["total"], rel=1e-9)


def test_json_of_one_policy_is_one_result(here):
    found = result()
    assert found["format"] == "hwsim-result"
    assert "per_token" not in found
    assert found["energy_j"] is None


def test_json_of_several_policies_is_a_list_of_results_in_their_order(here):
    """`hwsim-results`: each is what one policy alone would give; `dense`, which is shown beside them, is left out."""
    found = result(policy="dip-ca,dip")
    assert set(found) == {"format", "version", "results"}
    assert (found["format"], found["version"]) == ("hwsim-results", 1)
    assert [each["provenance"]["policy"]["name"] for each in found["results"]] == ["dip-ca", "dip"]
    assert found["results"][1] == result(policy="dip")
    assert result("--policy", "dip-ca", policy="dip")["results"] == found["results"][::-1]


def test_json_on_standard_output_is_alone_there(here):
    out, err = run(*replay("--json", "-"))
    assert json.loads(out)
    assert out.startswith("{\n")
    assert out.endswith("}\n")
    assert err == ""


def test_json_in_a_file_leaves_the_table(here):
    out, err = run(*replay("--json", "r.json"))
    assert "tokens/s" in out
    assert err == "Result written to r.json\n"
    assert json.loads(Path("r.json").read_text()) == result()
    assert sorted(path.name for path in here.iterdir()) == ["flat.yaml", "r.json", "t.npz"]


def test_the_same_command_gives_the_same_bytes(here):
    texts = [run(*replay("--json", "-", "--policy", "noisy-oracle", "--seed", "7"))[0] for _ in range(2)]
    assert texts[0] == texts[1]
    assert texts[0] != run(*replay("--json", "-", "--policy", "noisy-oracle", "--seed", "8"))[0]


def test_nothing_of_the_machine_is_in_the_result(here):
    text = run(*replay("--json", "-"))[0]
    assert str(here) not in text
    assert str(REPOSITORY) not in text


def test_options_reach_the_run(here):
    found = result(
        "--density", "0.4", "--set", "gamma=0.5", "--eviction", "lru", "--dram", "1 MB", "--kv-tokens", "100",
        "--bits", "mlp=4.5,kv_cache=4", "--timing", "closed-form", "--overlap", "group", "--seed", "3", policy="dip-ca",
    )["provenance"]  # fmt: skip
    assert found["policy"]["parameters"] == {
        "density": 0.4, "keep_input": None, "gamma": 0.5, "fixed_top_n": 0, "warm_up": False, "alpha_blend": False, "weighted": False,
    }  # fmt: skip
    assert (found["eviction"]["name"], found["eviction"]["parameters"]) == ("lru", {})
    assert found["settings"] == {
        "dram_budget_bytes": 10**6,
        "kv_tokens": 100,
        "bits": {"mlp": 4.5, "attention": 4.0, "lm_head": 4.0, "kv_cache": 4.0, "predictor": 4.0, "adapter": 16.0},
        "timing": "closed-form",
        "overlap": "group",
        "admission": "always",
        "pinned": None,
        "warm": None,
        "cache_scope": "matrix",
        "cache_shares": "equal",
        "block": 1,
        "layout": None,
    }
    assert found["seed"] == 3
    assert found["device"]["dram"] == {"budget": 4 * 10**9, "bandwidth": 60e9}


def test_defaults_are_those_of_the_design(here):
    found = result(policy="dip-ca")["provenance"]
    assert (found["policy"]["parameters"]["density"], found["policy"]["parameters"]["gamma"]) == (0.5, 0.2)
    assert (found["eviction"]["name"], found["seed"]) == ("lfu", 0)
    assert (found["settings"]["timing"], found["settings"]["overlap"]) == ("events", "none")
    bits = {"mlp": 4, "attention": 4, "lm_head": 4, "kv_cache": 8, "predictor": 4, "adapter": 16}
    assert found["settings"]["bits"] == bits
    assert found["settings"]["dram_budget_bytes"] == 4 * 10**9


def test_closed_form_and_events_agree(here):
    both = [result("--dram", "60%", "--timing", timing)["time_s"] for timing in ("events", "closed-form")]
    assert both[0] == pytest.approx(both[1], rel=1e-9)


def test_parameters_for_one_of_several(here):
    found = result("--set", "dip.density=0.3", "--set", "gamma=0.7", policy="dip,dip-ca")["results"]
    assert [each["provenance"]["policy"]["parameters"]["density"] for each in found] == [0.3, 0.5]
    assert found[1]["provenance"]["policy"]["parameters"]["gamma"] == 0.7


def test_plug_ins_by_path(here):
    Path("mine.py").write_text(MINE)
    Path("mru.py").write_text(MRU)
    found = result("--eviction", "mru.py", policy="mine.py")
    policy = found["provenance"]["policy"]
    assert (policy["name"], policy["parameters"]) == ("mine", {"keep": 0.5})
    assert found["provenance"]["eviction"]["name"] == "mru"


# ---------------------------------------------------------------------- what is printed


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
    assert f"{found['throughput_tok_s']:.0f}" in row
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

    from hwsim.plugins import EVICTIONS, POLICIES
    from hwsim.profile import load_profile
    from hwsim.report.table import print_results
    from hwsim.simulation import Settings
    from hwsim.simulation import replay as run_one

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
    out, err = run(*command)
    assert err == ""
    assert len(out.splitlines()) > 4
    assert all(line == line.rstrip() for line in out.splitlines())
    data, _ = run(*command, "--json", "-")
    assert json.loads(data)


def test_devices_show_units_sources_and_confidence(here):
    out, _ = run("devices", "oneplus15r")
    for text in ("59.7 GB/s", "2.81 GB/s", "measured", "Meridian", "4 KiB", "depth 8", "315 MB/s", "56.0 pJ/B"):
        assert text in out


# ---------------------------------------------------------------------- mistakes


def damaged(how, path="bad.npz"):
    """t.npz, spoilt."""
    data = bytearray(Path("t.npz").read_bytes())
    if how == "truncated":
        data = data[: len(data) // 2]
    elif how == "empty":
        data = b""
    elif how == "foreign":
        data = b"PK\x03\x04 this is no zip file"
    elif how == "text":
        data = b"hello\n"
    Path(path).write_bytes(data)
    return path


def rewritten(change, path="bad.npz"):
    """t.npz, written again by numpy alone with some members changed."""
    with np.load("t.npz") as file:
        members = {name: file[name] for name in file.files}
    change(members)
    np.savez(path, **members)
    return path


def header(**changes):
    def change(members):
        data = json.loads(str(members["header"]))
        members["header"] = np.array(json.dumps(data | changes))

    return change


def _nan(members):
    members["layers/001/up"] = members["layers/001/up"].copy()
    members["layers/001/up"][9, 3] = np.nan


def _short(members):
    members["layers/001/up"] = members["layers/001/up"][:-1]


def _pickled(members):
    members["layers/001/up"] = np.array([{}], object)


BAD_TRACES = {
    "missing": (lambda: "no/such.npz", r"^no/such\.npz: cannot be opened: No such file or directory$"),
    "folder": (lambda: ".", r"^\.: cannot be opened: Is a directory$"),
    "empty": (lambda: damaged("empty"), r"^bad\.npz: no zip directory; the file is truncated, or no hwsim trace$"),
    "text": (lambda: damaged("text"), r"^bad\.npz: no zip directory"),
    "foreign": (lambda: damaged("foreign"), r"^bad\.npz: no zip directory"),
    "truncated": (lambda: damaged("truncated"), r"^bad\.npz: no zip directory; the file is truncated"),
    "other npz": (lambda: rewritten(lambda m: [m.pop(k) for k in list(m) if k == "header"]), r"^bad\.npz: has no member 'header'"),
    "version": (lambda: rewritten(header(version=2)), r"^bad\.npz: header\.version is 2, this hwsim reads version 1; record"),
    "format": (lambda: rewritten(header(format="x")), r"^bad\.npz: header has no format: \"hwsim-trace\""),
    "lying tokens": (lambda: rewritten(header(sequences=[{"tokens": 99}])), r"^bad\.npz: layers/000/input: shape \(65, 48\), the header says \(99, 48\)$"),
    "lying prompt": (lambda: rewritten(header(sequences=[{"tokens": 65, "prompt": 65}])), r"^bad\.npz: header\.sequences\.0: prompt 65 leaves nothing"),
    "lying shape": (lambda: rewritten(_short), r"^bad\.npz: layers/001/up: shape \(64, 120\), the header says \(65, 120\)$"),
    "lying signals": (lambda: rewritten(header(signals=["input", "glu"])), r"^bad\.npz: has no member 'layers/000/glu', which its header promises"),
    "NaN": (lambda: rewritten(_nan), r"^bad\.npz: layers/001/up: token 9 holds NaN or infinity; the recording is damaged$"),
    "pickle": (lambda: rewritten(_pickled), r"^bad\.npz: layers/001/up: (holds Python objects|is no \.npy array)"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "text"), BAD_TRACES.values(), ids=BAD_TRACES)
def test_a_bad_trace(here, make, text):
    assert re.search(text, refused(*replay(trace=make())))


def test_a_trace_that_lacks_a_signal_names_the_command_that_records_it(here):
    write_trace(here / "glu.npz", signals=("glu",))
    assert refused(*replay(trace="glu.npz")) == (
        "glu.npz: lacks the signal input, which the policy needs; "
        "record it: hwsim record --model small --signals glu,input"
    )
    run(*replay(trace="glu.npz", policy="magnitude"))


BAD_OPTIONS = {
    "unknown policy": (replay(policy="dip-ac"), r"^no policy 'dip-ac'; did you mean 'dip-ca'\? Known: approximate-caching, .*dip-ca,"),
    "no policy": (replay(policy=","), r"^--policy names no policy$"),
    "policy twice": (replay(policy="dip,dip"), r"^--policy names 'dip' twice$"),
    "unknown eviction": (replay("--eviction", "lrv"), r"^no eviction 'lrv'; did you mean 'lru'"),
    "unknown device": (replay(hw="pixel"), r"^device 'pixel' is neither a file nor a known profile; did you mean 'pixel8'"),
    "unknown parameter": (replay("--set", "gama=1", policy="dip-ca"), r"^policy dip-ca: unknown parameter 'gama'; did you mean 'gamma'\? Known: alpha_blend, d"),
    "unknown parameter of several": (replay("--set", "gama=1", policy="dip,dip-ca"), r"^--set gama: no policy here has a parameter 'gama'; did you mean 'gamma'"),
    "parameter of an absent policy": (replay("--set", "dip-ca.gamma=1"), r"^--set dip-ca\.gamma: policy 'dip-ca' is not part of this replay; did you mean 'dip'"),
    "out of bounds": (replay("--set", "gamma=1.5", policy="dip-ca"), r"^policy dip-ca: gamma=1\.5: Input should be less than or equal to 1 \(weight of"),
    "no number": (replay("--set", "gamma=x", policy="dip-ca"), r"^policy dip-ca: gamma=x: Input should be a valid number"),
    "no value": (replay("--set", "gamma", policy="dip-ca"), r"^--set gamma: write --set key=value$"),
    "no key": (replay("--set", "=1"), r"^--set =1: write --set key=value$"),
    "density out of bounds": (replay("--density", "1.5"), r"^policy dip: density=1\.5: Input should be less than or equal to 1"),
    "density of 0": (replay("--density", "0"), r"^policy dip: density=0\.0: Input should be greater than 0"),
    "density of NaN": (replay("--density", "nan"), r"^policy dip: density=nan: Input should be"),
    "density of dense": (replay("--density", "0.5", policy="dense"), r"^policy dense: density=0\.5: .* \(share of the MLP that a token reads; dense reads all\)$"),
    "density too low": (replay("--density", "0.5", policy="magnitude"), r"^policy magnitude: density=0\.5 cannot be reached: .*above 2/3; choose a higher"),
    "density twice": (replay("--density", "0.5", "--set", "density=0.4"), r"^--density and --set density=\.\.\. both set the density; give one$"),
    "density refused": (replay("--density", "0.5", policy="mine.py"), r"^policy mine takes no --density, it has no field of that name; set its own parameters with --set: keep$"),
    "no unit": (replay("--dram", "4"), r"^--dram 4: '4' has no unit; a size needs one of B, kB, .*; or write a share such as 50%$"),
    "unit of another kind": (replay("--dram", "4GB/s"), r"^--dram 4GB/s: '4GB/s': 'GB/s' is not a unit of a size"),
    "negative DRAM": (replay("--dram=-4GB"), r"^--dram -4GB: '-4GB' is negative; a size must not be"),
    "absurd DRAM": (replay("--dram", "1e300TB"), r"^--dram 1e300TB: is more than"),
    "too little DRAM": (replay("--dram", "1kB"), r"^DRAM budget 1\.00 kB cannot hold the KV cache of 40 tokens, 5\.76 kB: 4\.76 kB are missing; give more with --dram"),
    "too few KV tokens": (replay("--kv-tokens", "10"), r"^--kv-tokens 10 cannot hold the trace's longest sequence, 40 tokens$"),
    "unknown bits": (replay("--bits", "mpl=4"), r"^--bits mpl: no such part of a model; did you mean 'mlp'\? Known: adapter, attention, kv_cache"),
    "bits of 0": (replay("--bits", "mlp=0"), r"^--bits mlp=0: Input should be greater than"),
    "hardly any bits": (replay("--bits", "mlp=1e-9"), r"^--bits mlp=1e-9: Input should be greater than"),
    "too many bits": (replay("--bits", "mlp=65"), r"^--bits mlp=65: Input should be less than or equal to 64$"),
    "bits of NaN": (replay("--bits", "mlp=nan"), r"^--bits mlp=nan: "),
    "bits beyond all sense": (replay("--bits", "mlp=1e999999999"), r"^--bits mlp=1e999999999: Input should be "),
    "a fraction beyond all sense": (replay("--bits", f"mlp={10**400}/1"), r"^--bits mlp=10+/1: '10+/1' is not a number of bits, nor one of q4_0, "),
    "bits as text": (replay("--bits", "mlp=four"), r"^--bits mlp=four: 'four' is not a number of bits, nor one of q4_0, "),
    "bits without =": (replay("--bits", "4"), r"^--bits 4: write --bits key=value$"),
    "belady and a policy that reads the cache": (replay("--eviction", "belady", policy="dip-ca"), r"^policy dip-ca: score\(\) at layer 0, group input, token 0: reads ctx\.cached, but belady must know all masks beforehand; choose another --eviction$"),
    "unwritable JSON": (replay("--json", "no/such/r.json"), r"^no/such/r\.json: cannot be written: there is no folder no/such$"),
    "JSON into a folder": (replay("--json", "."), r"^\.: cannot be written: it is a folder$"),
    "JSON over the trace": (replay("--json", "t.npz"), r"^t\.npz: cannot be written: the command reads it; choose another name$"),
    "JSON over the device": (replay("--json", "flat.yaml"), r"^flat\.yaml: cannot be written: the command reads it"),
    "JSON of no name": (replay("--json", "x\0y"), r"cannot be written: "),
    "missing plug-in": (replay(policy="./no.py"), r"^policy file no\.py does not exist$"),
    "plug-in that raises": (replay(policy="raises.py"), r"^policy raises: score\(\) at layer 0, group down, token 0: raised KeyError: 'past' \(raises\.py, line \d+\)$"),
    "plug-in of a wrong shape": (replay(policy="shape.py"), r"^policy shape: score\(\) at layer 0, group down, token 0: returned float32 of shape \(119,\), needs float32 of shape \(120,\)$"),
    "plug-in of NaN": (replay(policy="nan.py"), r"^policy nan: score\(\) at layer 0, group down, token 0: returned NaN for unit 0$"),
    "plug-in that is no Python": (replay(policy="text.py"), r"^text\.py: line 1: invalid syntax"),
    "eviction that raises": (replay("--eviction", "evicts.py", "--dram", "60%"), r"^eviction Mru: raised ZeroDivisionError: division by zero$"),
    "unknown device of the list": (["devices", "pixel"], r"^device 'pixel' is neither"),
    "unknown policy of the list": (["policies", "dipp"], r"^no policy 'dipp'; did you mean 'dip'"),
    "unknown eviction of the list": (["evictions", "x"], r"^no eviction 'x'\. Known: arc, belady"),
    "unwritable JSON of a list": (["policies", "--json", "no/such.json"], r"^no/such\.json: cannot be written: "),
    "a name of two lines": (replay(trace="a\nb.npz"), r"^a b\.npz: cannot be opened"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "text"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_a_bad_option(here, arguments, text):
    Path("mine.py").write_text(MINE)
    Path("raises.py").write_text(MINE.replace('np.abs(ctx.signals["glu"])', 'ctx.state["past"]'))
    Path("shape.py").write_text(MINE.replace('np.abs(ctx.signals["glu"])', 'ctx.signals["glu"][1:]'))
    Path("nan.py").write_text(MINE.replace("np.abs(", "np.nan * ("))
    Path("text.py").write_text("this is no Python\n")
    Path("evicts.py").write_text(MRU.replace("return state", "return 1 / 0"))
    assert re.search(text, refused(*arguments))
    assert not list(here.glob("*.json"))
    assert not list(here.glob(".*"))


BAD_DEVICES = {
    "negative bandwidth": (
        LEAST.replace("60 GB/s", "-60 GB/s"),
        r"^bad\.yaml: dram\.bandwidth: '-60 GB/s' is negative",
    ),
    "no unit": (LEAST.replace("4 GB", "4"), r"^bad\.yaml: dram\.budget: 4 has no unit"),
    "unknown key": (
        LEAST + "  latancy: 1 us\n",
        r"^bad\.yaml: flash\.latancy is not a known key; did you mean 'latency'",
    ),
    "no YAML": ("{", r"^bad\.yaml: line \d+: "),
}


@pytest.mark.parametrize(("text", "rule"), BAD_DEVICES.values(), ids=BAD_DEVICES)
def test_a_bad_device(here, text, rule):
    Path("bad.yaml").write_text(text)
    assert re.search(rule, refused(*replay(hw="bad.yaml")))
    assert re.search(rule, refused("devices", "./bad.yaml"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["replay"],
        ["replay", "t.npz"],
        ["replay", "t.npz", "--hw", "flat.yaml"],
        ["repaly"],
        replay("--timing", "fast"),
        replay("--overlap", "all"),
        replay("--density", "half"),
        replay("--seed", "-1"),
        replay("--seed", "x"),
        replay("--kv-tokens", "0"),
        replay("--kv-tokens", "1" + "0" * 400),
        replay("--nonsense"),
        replay("--json"),
        [],
    ],
)
def test_wrong_usage_exits_with_2(here, arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 2
    assert "Traceback" not in done.output
    assert done.output.strip()


def test_a_json_that_cannot_be_written_is_told_before_the_work(here, monkeypatch):
    import hwsim.simulation

    monkeypatch.setattr(hwsim.simulation, "replay", lambda *_, **__: pytest.fail("it ran"))
    refused(*replay("--json", "no/such/r.json"))


# ---------------------------------------------------------------------- help


@pytest.mark.parametrize("command", ["", "replay", "policies", "evictions", "devices"])
def test_help_has_an_example(command):
    out, _ = run(*[command] * bool(command), "--help")
    assert f"hwsim {command}".strip() in out
    if command:
        assert "Example:" in out


def test_every_command_has_an_example_and_json():
    import typer

    commands = dict(typer.main.get_command(app).commands)
    assert set(commands) >= {"replay", "policies", "evictions", "devices"}
    for name in [name for name, command in commands.items() if hasattr(command, "commands")]:
        commands |= {f"{name} {inner}": command for inner, command in commands.pop(name).commands.items()}
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


# ---------------------------------------------------------------------- as a process of its own


def modules_after(*arguments, cwd):
    code = """
    import sys
    from hwsim.cli import main
    try:
        main()
    except SystemExit as error:
        assert not error.code, error.code
    print("MODULES", *sorted({name.partition(".")[0] for name in sys.modules}))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_help_loads_nothing_heavy(here):
    assert not modules_after("--help", cwd=here) & {"torch", "transformers", "simpy", "numpy", "yaml", "hwsim_policies"}


def test_a_replay_loads_no_torch(here):
    loaded = modules_after(*replay("--json", "-"), cwd=here)
    assert not loaded & {"torch", "transformers", "accelerate", "gguf", "safetensors"}
    assert {"numpy", "simpy"} <= loaded


def test_piped_output_has_no_codes_and_errors_are_plain(here):
    good = process(*replay("--dram", "60%", policy="dip,dip-ca"), cwd=here)
    assert (good.returncode, good.stderr) == (0, "")
    assert "\x1b" not in good.stdout
    bad = process(*replay(policy="dop"), cwd=here)
    assert (bad.returncode, bad.stdout) == (1, "")
    assert "\x1b" not in bad.stderr
    assert len(bad.stderr.splitlines()) == 1


def test_an_output_that_knows_only_ascii(here):
    Path("größe.py").write_text(MINE, encoding="utf-8")
    done = process(*replay(policy="größe.py"), cwd=here, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "gr??e" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names of files are text")
def test_names_that_are_no_text(here):
    for name, text in ((b"gr\xf6\xdfe.py", MINE.encode()), (b"t\xff.npz", Path("t.npz").read_bytes())):
        Path(os.fsdecode(name)).write_bytes(text)
    for json_option in ([], ["--json", "-"]):
        done = process(
            *replay(*json_option, trace=os.fsdecode(b"t\xff.npz"), policy=os.fsdecode(b"gr\xf6\xdfe.py")), cwd=here
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "gr??e" in done.stdout
        assert "t?.npz" in done.stdout
    bad = process(*replay(trace=os.fsdecode(b"no\xff.npz")), cwd=here)
    assert bad.returncode == 1
    assert len(bad.stderr.splitlines()) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line(here):
    command = [sys.executable, "-c", "from hwsim.cli import main; main()", *replay()]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr == "hwsim: the answer cannot be written: No space left on device\n"
    assert refused(*replay("--json", "/dev/full")) == "/dev/full: cannot be written: No space left on device"


def test_a_reader_that_has_gone_is_no_error(here):
    command = [sys.executable, "-c", "from hwsim.cli import main; main()", *replay("--json", "-", "--per-token")]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    running.stdout.close()
    assert running.stderr.read() == b""
    assert running.wait(60) == 0
    running.stderr.close()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_leaves_nothing_behind(here):
    """A policy that waits says when it is there; then comes the interrupt."""
    Path("waits.py").write_text(
        MINE.replace(
            "return np.abs",
            "import pathlib, time\n        pathlib.Path('there').touch()\n        time.sleep(50)\n        return np.abs",
        )
    )
    Path("r.json").write_text("old")
    # a shell's background job ignores interrupts, and so do its children, unless they say otherwise
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [sys.executable, "-c", f"{listen}; from hwsim.cli import main; main()"]
    command += replay("--json", "r.json", policy="waits.py")
    running = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(600):
        if Path("there").exists():
            break
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (130, "")
    assert err == "hwsim: interrupted; nothing was left half-written\n"
    assert Path("r.json").read_text() == "old"
    left = {path.name for path in here.iterdir()} - {"__pycache__"}
    assert left == {"t.npz", "flat.yaml", "waits.py", "there", "r.json"}


def test_the_sample_stands_for_the_bundled_trace(here):
    bundled = REPOSITORY / "traces" / "smollm2-135m-sample.npz"
    if not bundled.exists():
        pytest.skip("no sample in this checkout")
    found = result("--timing", "closed-form", trace="sample")
    assert found["provenance"]["trace"]["name"] == bundled.name
    shutil.copy("t.npz", "sample")
    assert result(trace="sample")["provenance"]["trace"]["name"] == "sample"


def test_a_trace_that_numpy_wrote_gives_the_same(here):
    """The contract: anyone can write a trace with numpy.savez."""
    rewritten(lambda members: None, "again.npz")
    assert zipfile.is_zipfile("again.npz")
    first, again = result(), result(trace="again.npz")
    drop = ("provenance",)
    assert {k: v for k, v in first.items() if k not in drop} == {k: v for k, v in again.items() if k not in drop}


def test_a_sequence_of_one_token(here):
    write_trace(here / "one.npz", sequences=[Sequence(tokens=1)])
    found = result("--per-token", trace="one.npz")
    assert (found["tokens"], found["hit_rate"], len(found["per_token"])) == (1, 0.0, 1)
    assert found["latency_s"]["p99"] == found["latency_s"]["max"] == pytest.approx(found["time_s"]["total"])

"""Every mistake of a user's is one line that names file, field, value and rule."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from hwsim.cli.app import app
from tests.cli.run import here, refused, replay, rewritten, run
from tests.conftest import write_trace
from tests.device.test_profile import LEAST
from tests.simulation.made import MINE, MRU

__all__ = ["here"]


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
    "misspelt": (lambda: "smaple", r"^smaple: cannot be opened: .*; did you mean 'sample'\? Known: .*sample.*$"),
    "missing": (lambda: "no/such.npz", r"^no/such\.npz: cannot be opened: No such file or directory; there is no folder no$"),
    "folder": (lambda: ".", r"^\.: cannot be opened: Is a directory; hwsim record --model FOLDER makes a trace of a model$"),
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
    "out of bounds": (replay("--set", "gamma=1.5", policy="dip-ca"), r"^policy dip-ca: gamma=1\.5: must be at most 1 \(weight of"),
    "no number": (replay("--set", "gamma=x", policy="dip-ca"), r"^policy dip-ca: gamma=x: must be a number"),
    "no value": (replay("--set", "gamma", policy="dip-ca"), r"^--set gamma: write --set key=value$"),
    "no key": (replay("--set", "=1"), r"^--set =1: write --set key=value$"),
    "density out of bounds": (replay("--density", "1.5"), r"^policy dip: density=1\.5: must be at most 1"),
    "density of 0": (replay("--density", "0"), r"^policy dip: density=0\.0: must be above 0"),
    "density of NaN": (replay("--density", "nan"), r"^policy dip: density=nan: must be"),
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
    "bits of 0": (replay("--bits", "mlp=0"), r"^--bits mlp=0: must be at least 0\.01$"),
    "hardly any bits": (replay("--bits", "mlp=1e-9"), r"^--bits mlp=1e-9: must be at least 0\.01$"),
    "too many bits": (replay("--bits", "mlp=65"), r"^--bits mlp=65: must be at most 64$"),
    "bits of NaN": (replay("--bits", "mlp=nan"), r"^--bits mlp=nan: "),
    "bits beyond all sense": (replay("--bits", "mlp=1e999999999"), r"^--bits mlp=1e999999999: must be "),
    "a fraction beyond all sense": (replay("--bits", f"mlp={10**400}/1"), r"^--bits mlp=10+/1: '10+/1' is not a number of bits, nor one of q4_0, "),
    "bits as text": (replay("--bits", "mlp=four"), r"^--bits mlp=four: 'four' is not a number of bits, nor one of q4_0, "),
    "bits without =": (replay("--bits", "4"), r"^--bits 4: write --bits key=value, or --bits stored$"),
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
        ["repla"],
        ["replay", "t.npz", "--polcy", "dip"],
        ["replay", "t.npz", "--hw"],
        ["trace", "look"],
        replay("--json"),
        [],
    ],
)
def test_wrong_usage_exits_with_2(here, arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 2
    assert "Traceback" not in done.output
    if len(arguments) > 1:  # else it is the help
        (line,) = done.stderr.splitlines()
        assert line.startswith("hwsim: ")
        assert line.endswith("--help")
    assert done.output.strip()


def test_a_json_that_cannot_be_written_is_told_before_the_work(here, monkeypatch):
    import hwsim.simulation.replay

    monkeypatch.setattr(hwsim.simulation.replay, "replay", lambda *_, **__: pytest.fail("it ran"))
    refused(*replay("--json", "no/such/r.json"))

"""The command as a process of its own: what it loads, pipes, full disks, interrupts."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path

import pytest

from hwsim.trace import Sequence
from tests.cli.run import here, process, refused, replay, result, rewritten
from tests.conftest import REPOSITORY, write_trace
from tests.simulation.made import MINE

__all__ = ["here"]


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


@pytest.mark.parametrize("words", [("--json", "-", "--per-token"), ()])
def test_a_reader_that_has_gone_is_no_error(here, words):
    command = [sys.executable, "-c", "from hwsim.cli import main; main()", *replay(*words)]
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
    Path("r.json").write_text('{"old": 1}')
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
    assert Path("r.json").read_text() == '{"old": 1}'
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

"""Writing a trace survives kills, full disks and rivals: the file is the same, byte for byte, or there is none."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from hwsim.errors import OutputError, TraceError
from hwsim.trace import Trace, TraceWriter
from hwsim.trace import writer as writing
from tests.conftest import REPOSITORY
from tests.trace.test_trace import TOKENS, fill, header, names, write


def test_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.npz").read_bytes()
    path = tmp_path / "t.npz"
    with TraceWriter(path, header(), tokens=True, nll=True) as writer:
        fill(writer, 0, 20)
        # more was written than was committed, and something else than will be in the end
        writer.write(0, "input", 20, np.ones((30, 48)))
    assert names(tmp_path) == ["t.npz.partial", "t.npz.progress.json", "whole.npz"]
    with pytest.raises(TraceError, match="cannot be opened"):
        Trace(path)
    with TraceWriter(path, header(), tokens=True, nll=True) as writer:
        assert writer.done == 20
        with pytest.raises(OutputError, match="20 of 65 tokens were written"):
            writer.finish()
        fill(writer, 20, TOKENS)
        writer.finish()
    assert path.read_bytes() == whole
    assert names(tmp_path) == ["t.npz", "whole.npz"]


def test_clipped_values_are_counted_once_when_gone_on_with(tmp_path: Path) -> None:
    huge = np.full((1, 48), 1e6)
    for _ in range(2):  # the first writer commits one token and loses the next
        with TraceWriter(tmp_path / "t.npz", header(signals=["input"])) as writer:
            if writer.done == 0:
                writer.write(0, "input", 0, huge)
                writer.commit(1)
            writer.write(0, "input", 1, huge)
    with TraceWriter(tmp_path / "t.npz", header(signals=["input"])) as writer:
        assert writer.clipped == 48


def test_killed_while_it_finishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write(tmp_path / "whole.npz").read_bytes()
    honest = TraceWriter._pwrite
    for stop in range(14):  # header, twelve local headers, directory
        path, left = tmp_path / f"{stop}.npz", [stop]

        def stopping(self: TraceWriter, data: bytes, at: int, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            honest(self, data, at)

        with TraceWriter(path, header(), tokens=True, nll=True) as writer:
            fill(writer, 0, TOKENS)
            monkeypatch.setattr(TraceWriter, "_pwrite", stopping)
            with pytest.raises(KeyboardInterrupt):
                writer.finish()
            monkeypatch.setattr(TraceWriter, "_pwrite", honest)
        with TraceWriter(path, header(), tokens=True, nll=True) as writer:
            assert writer.done == TOKENS
            writer.finish()
        assert path.read_bytes() == whole


_SLOWLY = """
import sys, time
from pathlib import Path
from tests.trace.test_trace import TOKENS, TraceWriter, fill, header
with TraceWriter(Path(sys.argv[1]), header(), tokens=True, nll=True) as writer:
    for token in range(writer.done, TOKENS):
        fill(writer, token, token + 1)
        print(token, flush=True)
        time.sleep(0.01)
    writer.finish()
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX")
def test_survives_sigkill(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.npz").read_bytes()
    path = tmp_path / "t.npz"
    command = [sys.executable, "-c", _SLOWLY, str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert process.stdout
    for line in process.stdout:
        if int(line) >= 11:
            process.kill()
            break
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    (tmp_path / ".t.npz.progress.json.a_b3c4d5").touch()  # it was killed while it wrote that
    with TraceWriter(path, header(), tokens=True, nll=True) as writer:
        assert 11 <= writer.done < TOKENS  # the last commit may have been on its way to the disk
        fill(writer, writer.done, TOKENS)
        writer.finish()
    assert path.read_bytes() == whole
    assert names(tmp_path) == ["t.npz", "whole.npz"]


def test_a_disk_that_keeps_nothing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(OutputError, match="cannot be written: No space left on device"),
        TraceWriter(tmp_path / "t.npz", header(), tokens=True, nll=True) as writer,
    ):
        fill(writer, 0, 20)
    assert names(tmp_path) == []


@pytest.mark.parametrize("damage", ["progress is no JSON", "progress is gone", "partial is gone", "partial is short"])
def test_begins_again_where_going_on_is_not_safe(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    with TraceWriter(path, header(), tokens=True, nll=True) as writer:
        fill(writer, 0, 20)
    partial, progress = tmp_path / "t.npz.partial", tmp_path / "t.npz.progress.json"
    if damage == "progress is no JSON":
        progress.write_text("{")
    elif damage == "partial is short":
        os.truncate(partial, 100)
    else:
        (progress if damage == "progress is gone" else partial).unlink()
    with TraceWriter(path, header(), tokens=True, nll=True) as writer:
        assert writer.done == 0
        fill(writer, 0, TOKENS)
        writer.finish()
    assert path.read_bytes() == write(tmp_path / "whole.npz").read_bytes()


def test_an_unfinished_trace_of_another_command_is_refused(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "t.npz", header()) as writer:
        writer.commit(5)
    before = (tmp_path / "t.npz.partial").read_bytes()
    with pytest.raises(OutputError, match=r"t\.npz\.partial: is the unfinished trace of another command") as caught:
        TraceWriter(tmp_path / "t.npz", header(provenance={"seed": 2}))
    assert "\n" not in str(caught.value)
    assert (tmp_path / "t.npz.partial").read_bytes() == before


def test_two_writers_at_once(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "t.npz", header(), tokens=True, nll=True) as writer:
        with pytest.raises(OutputError, match="another process is writing it"):
            TraceWriter(tmp_path / "t.npz", header(), tokens=True, nll=True)
        fill(writer, 0, TOKENS)
        writer.finish()
    with Trace(tmp_path / "t.npz") as trace:
        list(trace.verify())


def test_a_file_that_was_just_finished_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second writer opens the partial file, and the first one gives it its name before the second has the lock."""
    path, honest = tmp_path / "t.npz", writing.lock
    first = TraceWriter(path, header(), tokens=True, nll=True)
    fill(first, 0, TOKENS)

    def late(handle: int) -> bool:
        monkeypatch.setattr(writing, "lock", honest)
        first.finish()
        return honest(handle)

    monkeypatch.setattr(writing, "lock", late)
    with TraceWriter(path, header(), tokens=True, nll=True) as second:
        assert second.done == 0
        second.discard()
    with Trace(path) as trace:
        list(trace.verify())
    assert names(tmp_path) == ["t.npz"]


# ---------------------------------------------------------------------- places that cannot be written


def test_full_disk_leaves_a_state_to_go_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write(tmp_path / "whole.npz").read_bytes()
    honest, left = os.pwrite, [25]

    def full(file: int, data: bytes, at: int) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return honest(file, data[: len(data) // 2 + 1], at)  # the system may take less than it was given

    with TraceWriter(tmp_path / "t.npz", header(), tokens=True, nll=True) as writer:
        fill(writer, 0, 30)
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(OutputError) as caught:
            fill(writer, 30, TOKENS)
    assert str(caught.value) == f"{tmp_path / 't.npz'}: cannot be written: No space left on device"
    monkeypatch.setattr(os, "pwrite", honest)
    with TraceWriter(tmp_path / "t.npz", header(), tokens=True, nll=True) as writer:
        assert writer.done == 30
        fill(writer, 30, TOKENS)
        writer.finish()
    assert (tmp_path / "t.npz").read_bytes() == whole


def test_file_size_limit(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OutputError, match="cannot be written: File too large"):
            write(tmp_path / "t.npz")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    write(tmp_path / "t.npz")


def test_too_small_a_disk_is_told_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    with pytest.raises(OutputError, match=r"needs .* kB, the disk has 1.00 kB free"):
        write(tmp_path / "t.npz")
    assert names(tmp_path) == []


def test_places_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for place, words in (("folder", "is a folder"), ("no/t.npz", "does not exist"), ("file/t.npz", "does not exist")):
        with pytest.raises(OutputError, match=words):
            write(tmp_path / place)

    def denied(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", denied)  # root may write anywhere
    with pytest.raises(OutputError, match="cannot be written: Permission denied"):
        write(tmp_path / "t.npz")
    assert names(tmp_path) == ["file", "folder"]


def test_what_is_given_may_change_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest, go = TraceWriter._pwrite, threading.Event()
    values, path = np.full((TOKENS, 48), 3, np.float16), tmp_path / "t.npz"
    with TraceWriter(path, header(signals=["input"])) as writer:

        def waiting(self: TraceWriter, data: bytes, at: int) -> None:
            go.wait(10)
            honest(self, data, at)

        monkeypatch.setattr(TraceWriter, "_pwrite", waiting)
        for layer in range(2):
            writer.write(layer, "input", 0, values)
        values[:] = 7  # a model that works in place
        go.set()
        writer.commit(TOKENS)
        writer.finish()
    with Trace(path) as trace:
        assert all((trace.read(layer, "input") == 3).all() for layer in range(2))


def test_what_waits_to_be_written_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest, most = TraceWriter._pwrite, [0]
    monkeypatch.setattr(writing, "_AHEAD", 10_000)
    with TraceWriter(tmp_path / "t.npz", header(signals=["input"])) as writer:

        def slow(self: TraceWriter, data: bytes, at: int) -> None:
            time.sleep(0.001)
            honest(self, data, at)

        monkeypatch.setattr(TraceWriter, "_pwrite", slow)
        for token in range(TOKENS):
            writer.write(0, "input", token, np.ones((1, 48), np.float16))
            writer.write(1, "input", token, np.ones((1, 48), np.float16))
            most[0] = max(most[0], writer._ahead)
    assert 0 < most[0] <= 10_000


def test_an_error_of_the_disk_is_told_by_commit_at_the_latest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with TraceWriter(tmp_path / "t.npz", header(signals=["input"])) as writer:
        writer.commit(0)

        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def put() -> None:
            writer.write(0, "input", 0, np.ones((TOKENS, 48), np.float16))
            writer.commit(TOKENS)

        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(OutputError, match="cannot be written: No space left on device"):
            put()
        monkeypatch.undo()  # there is room again, but what was given is lost
        with pytest.raises(OutputError, match="cannot be written: No space left on device"):
            writer.commit(TOKENS)
        assert writer.done == 0


@pytest.mark.parametrize("order", ["onward", "backward", "twice"])
def test_checksums_are_those_of_the_file_in_whatever_order_it_was_written(order: str, tmp_path: Path) -> None:
    spans = {"onward": [(0, 30), (30, 65)], "backward": [(30, 65), (0, 30)], "twice": [(0, 40), (20, 65), (0, 65)]}
    rng, path = np.random.default_rng(0), tmp_path / "t.npz"
    with TraceWriter(path, header(signals=["input"])) as writer:
        for start, stop in spans[order]:
            for layer in range(2):
                writer.write(layer, "input", start, rng.random((stop - start, 48)))
        writer.commit(TOKENS)
        writer.finish()
    with Trace(path) as trace:
        assert len(list(trace.verify())) == len(trace._members)

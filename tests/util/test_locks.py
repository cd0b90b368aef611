"""Only one process at a time writes a file; the lock ends with its process and leaves no file behind."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hwsim.errors import HwsimError, OutputError
from hwsim.studies.tune import alone as tuning
from hwsim.trace import TraceWriter, writer
from hwsim.train import adapterfile, partial
from hwsim.util import files
from hwsim.util.files import is_at, lock
from tests.trace.test_trace import header, names

HOLDER = """
import os, sys, time
from hwsim.util.files import lock
handle = os.open(sys.argv[1], os.O_RDONLY)
print(lock(handle), flush=True)
time.sleep(600)
"""


def tries(path: Path) -> bool:
    handle = os.open(path, os.O_RDONLY)
    try:
        return lock(handle)
    finally:
        os.close(handle)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_lock_ends_with_its_process(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "file":
        path.write_bytes(b"kept")
    else:
        path.mkdir()
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        assert not tries(path)
    finally:
        holder.kill()
        holder.communicate()
    assert tries(path)
    assert names(tmp_path) == [kind]
    if kind == "file":
        assert path.read_bytes() == b"kept"


def test_the_lock_of_a_deleted_file_is_told_from_that_of_its_successor(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with path.open("rb") as old:
        path.unlink()
        assert not is_at(old.fileno(), path)
        path.touch()
        assert lock(old.fileno())
        assert not is_at(old.fileno(), path)
        with path.open("rb") as new:
            assert lock(new.fileno())
            assert is_at(new.fileno(), path)


def writes_a_trace(folder: Path) -> None:
    TraceWriter(folder / "t.npz", header()).close()


def trains_nets(folder: Path) -> None:
    with partial.Partial(folder / "n.npz", {}):
        pass


def trains_an_adapter(folder: Path) -> None:
    with adapterfile.Partial(folder / "a", {}, overwrite=False):
        pass


def tunes(folder: Path) -> None:
    with tuning.alone(folder / "s.db"):
        pass


@pytest.mark.parametrize(
    ("module", "command", "message"),
    [
        (writer, writes_a_trace, "t.npz: cannot be written: "),
        (partial, trains_nets, "n.npz.partial: cannot be written: "),
        (adapterfile, trains_an_adapter, "a.partial: cannot be written: "),
        (tuning, tunes, "s.db: cannot be used: "),
    ],
)
def test_a_file_system_without_locks_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: object, command: Callable[[Path], None], message: str
) -> None:
    def refuses(handle: int) -> bool:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(module, "lock", refuses)
    with pytest.raises(HwsimError) as caught:
        command(tmp_path)
    assert str(caught.value).endswith(message + os.strerror(errno.ENOLCK))
    assert len(str(caught.value).splitlines()) == 1
    monkeypatch.setattr(module, "lock", files.lock)
    command(tmp_path)  # what the failure left does not keep the next one from working


def test_a_second_command_is_refused_in_one_line(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "t.npz", header()) as first:
        with pytest.raises(OutputError) as caught:
            writes_a_trace(tmp_path)
        first.discard()
    assert str(caught.value) == (
        f"{tmp_path / 't.npz'}: another process is writing it; wait for it, or name another file"
    )
    assert names(tmp_path) == []

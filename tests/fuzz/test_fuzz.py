"""Bad files of every kind, some of each: experiments/reliability/fuzz.py reads many more."""

from __future__ import annotations

import io
import shutil
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from hwsim.errors import HwsimError
from tests.fuzz.drive import drive
from tests.fuzz.kinds import Kind, all_kinds

KINDS = ["trace", "masks", "layout", "units", "calibration", "guesses", "profile", "sweep", "densities", "shares", "result",
         "measurements", "store"]  # fmt: skip


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kind]:
    return {kind.name: kind for kind in all_kinds(tmp_path_factory.mktemp("seeds"))}


def test_all_kinds_are_here(kinds: dict[str, Kind]) -> None:
    assert list(kinds) == KINDS


@pytest.mark.parametrize("name", KINDS)
def test_good_files_are_read(kinds: dict[str, Kind], name: str, tmp_path: Path) -> None:
    for number, content in enumerate(kinds[name].seeds):
        path = tmp_path / f"{number}{kinds[name].ending}"
        path.write_bytes(content)
        kinds[name].read(path)


@pytest.mark.parametrize("name", KINDS)
def test_bad_files_do_no_harm(kinds: dict[str, Kind], name: str) -> None:
    told = drive(kinds[name], 150, seed=1)
    assert [fault.why for fault in told.faults] == []
    assert told.refused > 20  # they are bad indeed


@pytest.fixture(scope="module")
def bomb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few hundred kB that unpack to 300 MB of zeros."""
    path = tmp_path_factory.mktemp("bomb") / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.npy", bytes(300_000_000))
    return path


@pytest.mark.parametrize("name", ["masks", "calibration", "guesses", "layout", "units"])
def test_a_bomb_is_not_unpacked(kinds: dict[str, Kind], name: str, bomb: Path, tmp_path: Path) -> None:
    """A good file with such a member beside its own: refused by the archive's own directory."""
    path = tmp_path / "bomb.npz"
    shutil.copy(bomb, path)
    with zipfile.ZipFile(io.BytesIO(kinds[name].seeds[0])) as seed, zipfile.ZipFile(path, "a") as archive:
        for entry in seed.infolist():
            archive.writestr(entry, seed.read(entry))
    tracemalloc.start()
    with pytest.raises(HwsimError):
        kinds[name].read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50_000_000


def test_harm_would_be_seen(kinds: dict[str, Kind]) -> None:
    def raises(path: Path) -> None:
        raise KeyError(path.name)

    def says_too_much(path: Path) -> None:
        raise HwsimError("two\nlines")

    def leaves(path: Path) -> None:
        path.with_name("other").touch()

    for read, why in ((raises, "KeyError"), (says_too_much, "not one line"), (leaves, "left other")):
        told = drive(kinds["profile"]._replace(read=read), 3, seed=0)
        assert [fault.why.startswith(why) for fault in told.faults] == [True] * 3


def test_what_guided_fuzzing_found_does_no_harm(kinds: dict[str, Kind], tmp_path: Path) -> None:
    """The corpus of `experiments/reliability/guided.py`: small files that each took a path of their own through a reader."""
    found = sorted((Path(__file__).parent / "corpus").glob("*/*"))
    assert found
    for kept in found:
        kind = kinds[kept.parent.name]
        path = tmp_path / f"file{kind.ending}"
        path.write_bytes(kept.read_bytes())
        try:
            kind.read(path)
        except HwsimError as error:
            assert len(str(error).splitlines()) == 1, kept

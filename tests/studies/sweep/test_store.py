"""The store of runs: how it is asked, and that what is no store, or a damaged one, is told."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path

import pytest

from hwsim.errors import OutputError, SettingError
from hwsim.studies.sweep import Store
from hwsim.util.units import show_number
from tests.studies.sweep.grid import grid, here, run, swept

__all__ = ["here"]


def test_the_store_is_asked_by_columns_without_the_groups(here):
    run(
        "sweep",
        *["--trace", "t.npz", "--hw", "pixel8", "--policy", "dip,dip-ca", "--dram", "60%", "-o", "r.db", "--jobs", "1"],
    )
    with Store(Path("r.db")) as store:
        whole = list(store.results())
        assert list(store.find()) == whole
        assert [each["provenance"]["policy"]["name"] for each in store.find(policy="dip-ca")] == ["dip-ca"]
        assert [number for number, _ in store.numbered(policy="dip-ca")] == [2]
        assert (store.count(), store.count(policy="dip"), store.count(policy="dip", device="none")) == (2, 1, 0)
        assert list(store.find(whole=False, limit=1)) == [
            {key: value for key, value in whole[0].items() if key not in ("groups", "per_token")}
        ]
        with pytest.raises(TypeError, match="no such column: colour"):
            store.count(colour="red")


def test_the_numbers_that_are_shown_are_those_that_compare_finds(here):
    run(
        "sweep",
        *[
            "--trace",
            "t.npz",
            "--hw",
            "pixel8",
            "--policy",
            "dip-ca,dip",
            "--dram",
            "60%,90%",
            "-o",
            "r.db",
            "--jobs",
            "1",
        ],
    )
    code, out, _ = run("runs", "r.db", "--where", "policy=dip-ca")
    with Store(Path("r.db")) as store:
        every = list(store.results())
    lines = [line.split() for line in out.splitlines() if line[:1].isdigit()]
    assert code == 0
    assert len(lines) == 2
    for line in lines:
        row = every[int(line[0]) - 1]
        assert row["provenance"]["policy"]["name"] == "dip-ca"
        assert line[-1] == show_number(row["throughput_tok_s"])
        code, out, _ = run("compare", f"r.db:{line[0]}", "r.db:1", "--json", "-")
        assert code == 0
        told = {each["name"]: each["first"] for each in json.loads(out)["numbers"]}
        assert told["tokens/s"] == row["throughput_tok_s"]


def test_another_file_is_no_store(here):
    with pytest.raises(SettingError, match=r"t\.npz: is no store of runs"):
        Store(Path("t.npz"))
    with sqlite3.connect("other.db") as db:
        db.execute("CREATE TABLE x (y)")
    with pytest.raises(SettingError, match=r"other\.db: is no store of runs; name another file"):
        Store(Path("other.db"))
    with pytest.raises(SettingError, match=r"none\.db: no such store of runs"):
        Store(Path("none.db"), create=False)
    with pytest.raises(OutputError, match="cannot be read or written"):
        Store(here / "nowhere" / "runs.db")


def test_a_damaged_store_is_told(here):
    swept("runs.db", grid())
    data = bytearray(Path("runs.db").read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    Path("runs.db").write_bytes(data)
    with (
        pytest.raises(SettingError, match=r"runs\.db: is no store of runs, or a damaged one"),
        Store(Path("runs.db")) as store,
    ):
        list(store.results())


def test_a_store_of_another_version_is_told(here):
    swept("runs.db", grid())
    with sqlite3.connect("runs.db") as db:
        db.execute("PRAGMA user_version = 2")
    with pytest.raises(SettingError, match="is a store of version 2; this hwsim reads version 1"):
        Store(Path("runs.db"))

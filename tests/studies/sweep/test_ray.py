"""On Ray, where it is installed (it is no part of the tests' environment): the same results, also after a worker died."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from hwsim.errors import SettingError
from hwsim.studies.sweep import Store, make_spec, sweep
from tests.conftest import write_trace

pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings("ignore")

DIES = """
import os
import signal
from pathlib import Path
from hwsim.policy import *
import numpy as np
class Dies(Policy):
    '''Ends its process the first time that it is asked, and always at density 0.9.'''
    density: float = Field(0.5)
    def groups(self, model):
        return [Group('down', axis='neuron', slices=['down.column'], keep=self.density, needs=['glu'])]
    def score(self, ctx):
        mark = Path(__file__).with_name('died')
        if not mark.exists() or self.density == 0.9:
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return np.abs(ctx.signals['glu'])
"""


def content(path: str) -> list[tuple[str, ...]]:
    with sqlite3.connect(path) as db:
        return db.execute("SELECT key, request, result FROM runs ORDER BY key").fetchall()


def test_ray_finds_what_this_machine_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_trace(tmp_path / "t.npz")
    (tmp_path / "dies.py").write_text(DIES)
    fine = {"trace": "t.npz", "hw": "pixel8", "dram": "50%", "density": [0.3, 0.5, 0.7]}
    specs = [make_spec({**fine, "policy": [str(tmp_path / "dies.py"), "dip-ca"]}, "here")]
    with Store(Path("far.db")) as store:
        found = sweep(specs, store, backend="ray")
    assert (found.done, found.failed) == (6, [])
    assert (tmp_path / "died").exists()  # and was begun anew
    with Store(Path("near.db")) as store:
        sweep(specs, store)
    assert content("far.db") == content("near.db")
    with Store(Path("far.db")) as store:
        found = sweep(
            [make_spec({**fine, "density": 0.9, "policy": str(tmp_path / "dies.py")}, "here")], store, backend="ray"
        )
    assert found.done == 0
    assert "the process died 3 times" in found.failed[0][1]


def test_a_head_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_trace(tmp_path / "t.npz")
    with Store(Path("r.db")) as store, pytest.raises(SettingError, match=r"--backend ray: .* cannot be reached"):
        sweep(
            [make_spec({"trace": "t.npz", "hw": "pixel8", "policy": "dip"}, "here")],
            store,
            backend="ray",
            address="127.0.0.1:9",
        )

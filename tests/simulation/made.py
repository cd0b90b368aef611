"""Plug-ins that the tests write, and a replay with them."""

import sys
import textwrap

from hwsim.evictions import Eviction
from hwsim.policy import Policy
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.simulation.settings import Settings
from tests.conftest import flat_profile
from tests.runs import replay

MINE = '''
import numpy as np
from hwsim.policy import Field, Group, Policy

class Mine(Policy):
    """Columns of down by |glu|."""

    keep: float = Field(0.5, gt=0, le=1, description="share of down's columns")

    def groups(self, model):
        return [Group("down", axis="neuron", slices=["down.column"], keep=self.keep, needs=["glu"])]

    def score(self, ctx):
        return np.abs(ctx.signals["glu"])
'''


MRU = '''
import numpy as np
from hwsim.evictions import Eviction

class Mru(Eviction):
    """Most recently used leaves first."""

    def start(self, units, capacity, future):
        return np.zeros(units, np.int32)

    def use(self, state, use):
        state[use.mask] = -use.token

    def rank(self, state):
        return state
'''


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


def run(trace, policy, rule="lru", dram="86%"):
    name, made = POLICIES.make(str(policy)) if not isinstance(policy, Policy) else ("mine", policy)
    eviction = EVICTIONS.make(str(rule))[1] if not isinstance(rule, Eviction) else rule
    return replay(trace, flat_profile(), made, eviction, Settings(dram=dram), policy_name=name)


def installed(folder, monkeypatch, name, code, entries):
    """As if a distribution `name` with one module were installed: a folder on sys.path with its metadata."""
    module = name.replace("-", "_")
    write(folder / f"{module}.py", code)
    info = folder / f"{module}-1.0.dist-info"
    write(info / "METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    write(info / "entry_points.txt", entries)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, module, raising=False)

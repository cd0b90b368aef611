"""Popularity and locality: known masks give known parts, and the control keeps what it must keep."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hwsim.analysis.locality import locality
from hwsim.errors import PluginError, SettingError
from hwsim.policy import Group, Policy
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.simulation.settings import Settings
from hwsim.testing import SMALL_MODEL
from hwsim.trace import Sequence
from hwsim.trace.sequences import Sequences
from tests.runs import masking_of

UNITS, TOKENS = SMALL_MODEL.intermediate_size, 240


class Signals:
    """The same rows for every layer: float32 ``[tokens, units]``."""

    def __init__(self, rows):
        self.rows = rows.astype(np.float32)

    def read(self, layer, signal, start=0, stop=None):
        return self.rows[start:stop]


class Top(Policy):
    """A tenth of down's columns."""

    keep: float = 0.1

    def groups(self, model):
        return [Group("down", "neuron", ["down.column"], self.keep, ["glu"])]

    def score(self, ctx):
        return np.abs(ctx.signals["glu"])


def parts(rows, rules=("lru", "belady"), dram="90%", keep=0.1):
    policy = Top(keep=keep)
    masking = masking_of(SMALL_MODEL, policy, TOKENS, Settings(dram=dram))
    made = {rule: EVICTIONS.make(rule)[1] for rule in rules}
    found = locality(Signals(rows), Sequences([Sequence(tokens=TOKENS)]), masking, made)["down"]
    lru = found.rates("lru")
    return found, lru[1] - found.uniform, lru[0] - lru[1]


def test_uniform_masks_have_neither(rng):
    found, popularity, local = parts(rng.random((TOKENS, UNITS)))
    assert 0 < found.capacity < UNITS
    assert found.requests == SMALL_MODEL.num_hidden_layers * TOKENS * (UNITS // 10)
    assert popularity == pytest.approx(0, abs=0.06)  # the cache begins empty
    assert local == pytest.approx(0, abs=0.02)


def test_popular_units_give_popularity_alone(rng):
    _, popularity, local = parts(rng.random((TOKENS, UNITS)) ** (10 * rng.random(UNITS)))
    assert popularity > 0.15
    assert local == pytest.approx(0, abs=0.02)


def test_units_that_stay_for_a_while_give_locality_alone(rng):
    """Each phase of the sequence has units of its own, all equally often needed."""
    rows = np.zeros((TOKENS, UNITS))
    for phase in range(10):
        rows[24 * phase : 24 * (phase + 1), 12 * phase : 12 * (phase + 1)] = 1
    _, popularity, local = parts(rows)
    assert popularity == pytest.approx(0, abs=0.06)
    assert local > 0.2


def test_masks_larger_than_the_capacity_make_rules_equal(rng):
    found, *_ = parts(rng.random((TOKENS, UNITS)), ("lru", "belady", "sieve"), dram="85%", keep=0.9)
    assert 0 < found.capacity < 0.9 * UNITS
    assert found.crowded == found.requests
    assert len({(hits.trace, hits.control) for hits in found.rules.values()}) == 1


def test_policies_without_masks_of_their_own_are_refused(trace):
    header, rules = trace.header, {"lru": EVICTIONS.make("lru")[1]}
    for name, error, text in (("dip-ca", PluginError, "looks at the cache"), ("dense", SettingError, "masks nothing")):
        policy = POLICIES.make(name)[1]
        masking = masking_of(header.model, policy, header.longest, Settings(dram="70%"), name)
        with pytest.raises(error, match=f"policy {name}: {text}"):
            locality(trace, Sequences(header.sequences), masking, rules)


def test_the_command(hwsim, small_trace, tmp_path):
    command = ("trace", "locality", small_trace, "--policy", "dip", "--dram", "80%")
    done = hwsim(*command, "--eviction", "lru,belady-bypass", "--json", "found.json")
    assert done.returncode == 0, done.stderr
    assert "locality: trace - control" in done.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["format"] == "hwsim-locality"
    assert list(found["groups"]["down"]["rules"]) == ["lru", "belady-bypass"]
    again = hwsim(*command, "--eviction", "lru,belady-bypass", "--json", "-")
    assert json.loads(again.stdout) == found
    assert hwsim(*command, "--seed", "1", "--eviction", "lru", "--json", "-").stdout != again.stdout
    failed = hwsim(*command, "--eviction", "lru,lru")
    assert (failed.returncode, failed.stderr) == (1, "hwsim: --eviction names 'lru' twice\n")

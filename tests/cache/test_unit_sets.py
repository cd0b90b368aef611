"""Admission, pinned sets and warm starts, from the cache to the command line, with their bytes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hwsim.cache.cache import Cache
from hwsim.cache.unit_sets import UnitSets, member_of, read_units, write_units
from hwsim.errors import PluginError, SettingError
from hwsim.evictions.clock import Clock
from hwsim.evictions.lfu import Lfu
from hwsim.evictions.lru import Lru
from hwsim.evictions.none import NoCache
from hwsim.evictions.static import Static
from hwsim.simulation.plugins import POLICIES
from hwsim.simulation.settings import Settings
from tests.conftest import flat_profile
from tests.runs import Told, replay


def some(units, *indices):
    return np.isin(np.arange(units), indices)


def first(plans, layers, share):
    """The first units of each group, as many as a share of it."""
    sets = {
        member_of(layer, name): np.arange(units) < int(share * units)
        for layer in range(layers)
        for name, units in plans.items()
    }
    return UnitSets(sets, "some.npz")


GROUPS = {"input": 48, "down": 120}  # of DIP on the small model


def run(trace, rule, observer=None, **sets):
    settings, observers = Settings(dram="80%", **sets), [observer] if observer else []
    return replay(trace, flat_profile(), POLICIES.make("dip")[1], rule, settings, observers=observers)


def test_bytes_of_a_pinned_set_are_exact(trace):
    """Pinned alone, every layer hits just the pinned units that its masks ask for, and reads the others."""
    masks = {}

    def listen(layer, group, token, mask):
        masks.setdefault((layer, group), []).append(mask[: int(0.4 * GROUPS[group])].sum())

    whole = run(trace, Static())
    capacity = {group.group: group.capacity_units for group in whole.groups}
    pinned = {name: int(0.4 * units) for name, units in GROUPS.items()}
    assert all(pinned[name] < capacity[name] for name in GROUPS)
    result = run(trace, Lru(), Told(listen), pin=first(GROUPS, 3, 0.4))
    assert result.provenance["settings"]["pinned"] == {
        "name": "some.npz",
        "sha256": None,
        "units": 3 * sum(pinned.values()),
        "bytes": sum(pinned[group.group] * group.unit_bytes for group in result.groups),
    }
    for group in result.groups:
        assert group.capacity_units == capacity[group.group]  # pinned units take room, they do not add to it
        assert group.flash_bytes == (group.requests - group.hits) * group.unit_bytes
        assert group.dram_bytes == group.hits * group.unit_bytes
        assert group.hits >= sum(masks[group.layer, group.group])


def test_a_full_set_of_pins_is_all_there_ever_is():
    cache = Cache(6, 3, Lru(), pinned=some(6, 0, 2, 4))
    cache.start()
    assert [cache.step(some(6, *mask)) for mask in ([0, 1], [1, 5], [2, 4, 5])] == [(2, 1), (2, 0), (3, 2)]
    assert np.array_equal(cache.view, some(6, 0, 2, 4))


def test_pins_are_there_before_the_first_token_and_after_every_start():
    cache = Cache(6, 4, Lru(), pinned=some(6, 5), warm=some(6, 0, 5))
    for _ in range(2):
        assert cache.view[5]
        cache.start()
        assert np.array_equal(cache.view, some(6, 0, 5))
        assert cache.step(some(6, 0, 1, 5)) == (3, 2)
        assert cache.step(some(6, 1, 2, 3)) == (3, 1)
        assert np.array_equal(cache.view, some(6, 1, 2, 3, 5))


def test_what_a_replay_left_is_where_the_next_begins(trace, tmp_path):
    """One sequence, then the same again: a warm start is the second half of a run over both."""
    held = {}
    keep = Told(contents=lambda layer, group, cached: held.update({member_of(layer, group): cached.copy()}))
    cold = run(trace, Lru(), keep)
    file = tmp_path / "held.npz"
    write_units(file, {"policy": "dip"}, held)
    again = file.read_bytes()
    write_units(file, {"policy": "dip"}, held)
    assert file.read_bytes() == again
    sets = read_units(file)
    assert {name: cached.tobytes() for name, cached in sets.sets.items()} == {n: c.tobytes() for n, c in held.items()}
    warm = run(trace, Lru(), warm=sets)
    assert warm.unit_hits > cold.unit_hits
    assert warm.provenance["settings"]["warm"]["units"] == sum(int(cached.sum()) for cached in held.values())
    static, pinned = (run(trace, Static(), **{part: sets}) for part in ("warm", "pin"))
    assert static.unit_hits == pinned.unit_hits  # a full static cache is a pinned one


@pytest.mark.parametrize(
    ("rule", "options", "text"),
    [
        (Clock(), {"admission": "bypass"}, "--admission bypass: eviction Clock admits whatever is needed"),
        (NoCache(), {"pinned": some(4, 1)}, "eviction NoCache keeps nothing"),
        (Lfu(), {"pinned": some(4, 0, 1, 2)}, "3 units are pinned, but the cache holds 2"),
        (Lfu(), {"pinned": some(4, 0), "warm": some(4, 0, 1, 2)}, "1 units are pinned and 2 more are there from the"),
    ],
)
def test_what_cannot_be_is_refused(rule, options, text):
    with pytest.raises(SettingError, match=text):
        Cache(4, 2, rule, **options)


@pytest.mark.parametrize(
    ("sets", "text"),
    [
        ({}, "lacks layers/000/down; it must hold"),
        (
            {"layers/000/down": np.zeros(119, bool)},
            r"is bool of shape \(119,\); the group needs bool of shape \(120,\)",
        ),
        ({"layers/000/down": np.zeros(120, np.int64)}, "is int64 of shape"),
    ],
)
def test_a_set_that_does_not_fit_the_group_is_refused(sets, text):
    with pytest.raises(SettingError, match=text):
        UnitSets(sets, "some.npz").of(0, "down", 120)


def test_a_file_of_another_kind_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", format="hwsim-predictor", version=1)
    with pytest.raises(PluginError, match="is hwsim-predictor version 1, needed is hwsim-units version 1"):
        read_units(tmp_path / "other.npz")


def test_the_command_line(hwsim, small_trace, tmp_path):
    replay_ = ("replay", small_trace, "--hw", "pixel8", "--dram", "80%", "--policy", "dip")
    first = hwsim(*replay_, "--save-cache", "held.npz")
    assert first.returncode == 0, first.stderr
    assert "Contents of the caches written to held.npz" in first.stderr
    done = hwsim(*replay_, "--warm", "held.npz", "--eviction", "static", "--admission", "bypass", "--json", "warm.json")
    assert done.returncode == 0, done.stderr
    assert "eviction static, bypass, warm from held.npz: " in done.stdout
    settings = json.loads((tmp_path / "warm.json").read_text())["provenance"]["settings"]
    assert settings["admission"] == "bypass"
    assert settings["pinned"] is None
    assert set(settings["warm"]) == {"name", "sha256", "units", "bytes"}
    tuned = hwsim(*replay_, "--eviction", "s3fifo", "--set", "eviction.small=0.5", "--json", "-")
    assert json.loads(tuned.stdout)["provenance"]["eviction"]["parameters"]["small"] == 0.5
    for arguments, text in (
        (("--pin", "held.npz", "--dram", "60%"), "units are pinned, but the cache holds"),
        (("--save-cache", "held.npz", "--warm", "held.npz"), "the command reads it"),
        (("--save-cache", "x.npz", "--policy", "dip-ca"), "--save-cache: holds the caches of one policy"),
        (("--eviction", "arc", "--admission", "bypass"), "--admission bypass: eviction Arc admits whatever is needed"),
        (("--pin", str(small_trace)), "is no file of hwsim-units"),
    ):
        failed = hwsim(*replay_, *arguments)
        assert failed.returncode == 1
        assert text in failed.stderr
        assert len(failed.stderr.splitlines()) == 1

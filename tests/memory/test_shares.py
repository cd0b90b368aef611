"""Are the caches' bytes divided as the rules say, and never more than there are?"""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwsim.errors import SettingError
from hwsim.memory.shares import Shares, divide, measured, parse_shares, read_shares
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.simulation.settings import Settings
from tests.conftest import flat_profile
from tests.runs import layout, replay

ROWS = st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 10**6)), min_size=1, max_size=12)


@given(total=st.integers(0, 10**7), rows=ROWS)
def test_shares_are_proportional_and_within_the_budget(total, rows):
    weights, most = [weight for weight, _ in rows], [size for _, size in rows]
    given_ = divide(total, weights, most)
    assert sum(given_) <= total
    assert all(0 <= share <= limit for share, limit in zip(given_, most, strict=True))
    assert all(share == 0 for share, weight in zip(given_, weights, strict=True) if weight == 0)
    open_ = [i for i in range(len(rows)) if weights[i] and given_[i] < most[i]]
    if open_:  # nobody could have more: all that is left goes to those who are not full, in proportion
        left = total - sum(given_[i] for i in range(len(rows)) if i not in open_)
        whole = sum(weights[i] for i in open_)
        assert [given_[i] for i in open_] == [left * weights[i] // whole for i in open_]
    elif any(weights):
        assert sum(given_) == sum(size for weight, size in rows if weight)


def test_what_one_cannot_use_goes_to_the_others():
    assert divide(100, [1, 1, 2], [10, 100, 100]) == [10, 30, 60]
    assert divide(100, [1, 1], [10, 20]) == [10, 20]
    assert divide(10, [1, 1, 1], [9, 9, 9]) == [3, 3, 3]


def run(trace, shares=None, policy="dip", **chosen):
    made = POLICIES.make(policy)[1]
    return replay(
        trace, flat_profile(), made, EVICTIONS.make("lru")[1], Settings(dram="60%", cache_shares=shares, **chosen)
    )


@pytest.mark.parametrize("scope", ["matrix", "layer"])
def test_traffic_is_that_of_equal_shares(trace, tmp_path, scope):
    """The word, the file of a result, and the weights themselves give the same."""
    equal = run(trace, cache_scope=scope)
    (tmp_path / "equal.json").write_text(equal.to_json())
    by_word = run(trace, Shares(None, "traffic"), cache_scope=scope)
    by_file = run(trace, read_shares(tmp_path / "equal.json"), cache_scope=scope)
    assert by_word.groups == by_file.groups != equal.groups
    assert by_word.provenance["settings"]["cache_shares"] == "traffic"
    assert by_file.provenance["settings"]["cache_shares"] == "equal.json"
    held = sum(group.capacity_units * group.unit_bytes for group in by_word.groups)
    if scope == "matrix":
        assert held <= by_word.cache_bytes
        weights = [group.flash_bytes for group in equal.groups]
        whole = [group.units * group.unit_bytes for group in equal.groups]
        parts = divide(equal.cache_bytes, weights, whole)
        assert [group.capacity_units for group in by_word.groups] == [
            part // group.unit_bytes for part, group in zip(parts, equal.groups, strict=True)
        ]


def test_equal_weights_by_matrix_are_equal_shares(trace):
    """Input cuts two matrices, down one: weights 2 and 1 are the equal shares."""
    weights = {(layer, group): weight for layer in range(3) for group, weight in (("input", 2), ("down", 1))}
    assert run(trace, Shares(weights, "w")).groups == run(trace).groups
    assert run(trace, parse_shares("input=2, down=1")).groups == run(trace).groups
    assert parse_shares("down=1,input=2").source == "down=1,input=2"


@pytest.mark.parametrize(
    "text", ["input=", "=1", "input=2,input=1", "input=-1", "input=1.5", "input=1,", f"input={'9' * 16}"]
)
def test_weights_that_are_refused(text):
    with pytest.raises(
        SettingError, match=r"^--cache-shares .* is no weight of a group; write equal, traffic, a file, or"
    ):
        parse_shares(text)


def test_layers_with_more_weight_hold_more(trace):
    shares = measured({(layer, group): weight for layer, weight in enumerate((1, 2, 5)) for group in ("input", "down")})
    result = run(trace, shares)
    down = [group.capacity_units for group in result.groups if group.group == "down"]
    assert down == sorted(down)
    assert down[0] < down[2]
    sizes = layout(
        trace.model, flat_profile(), POLICIES.make("dip")[1], trace.header.longest,
        Settings(dram="60%", cache_scope="layer", cache_shares=shares),
    ).shared.sizes  # fmt: skip
    assert sizes[0] < sizes[1] < sizes[2]


def test_dense_has_no_caches_to_share(trace):
    assert run(trace, Shares(None, "traffic"), "dense").groups == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "must be a result of --json"),
        ('{"groups": []}', "groups"),
        ('{"groups": [{"layer": 0, "group": "input", "flash_bytes": -1}]}', r"groups\.0\.flash_bytes"),
        (json.dumps({"groups": [{"layer": 0, "group": "input", "flash_bytes": 1}] * 2}), "twice"),
        (json.dumps({"groups": [{"layer": 0, "group": "input", "flash_bytes": 1}]}), "lacks layer 0, group down"),
        (
            json.dumps(
                {"groups": [{"layer": n, "group": g, "flash_bytes": 0} for n in range(3) for g in ("input", "down")]}
            ),
            "all shares are 0",
        ),
        (
            json.dumps(
                {"groups": [{"layer": n, "group": g, "flash_bytes": 1} for n in range(4) for g in ("input", "down")]}
            ),
            "names layer 3, group down",
        ),
    ],
)
def test_files_that_are_refused(trace, tmp_path, text, message):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(SettingError, match=message) as told:
        run(trace, read_shares(tmp_path / "s.json"))
    assert "--cache-shares" in str(told.value)
    assert "\n" not in str(told.value)


def test_settings_that_are_refused(trace, tmp_path):
    with pytest.raises(SettingError, match="cannot be read: No such file"):
        read_shares(tmp_path / "none.json")
    with pytest.raises(SettingError, match="one cache for the whole model has no shares"):
        Settings(cache_scope="global", cache_shares=Shares(None, "traffic"))
    with pytest.raises(SettingError, match="is measured by a replay of a trace"):
        layout(trace.model, flat_profile(), POLICIES.make("dip")[1], 40, Settings(cache_shares=Shares(None, "traffic")))
    with pytest.raises(SettingError, match="cache_scope='all': must be one of matrix, layer, global"):
        Settings(cache_scope="all")

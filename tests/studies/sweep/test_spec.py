"""Does a sweep run what its file asks for, and say what is wrong with it?"""

import pytest

from hwsim.cli.sweep import _values
from hwsim.errors import HwsimError, PluginError, SettingError
from hwsim.studies.sweep.cells import expand
from hwsim.studies.sweep.spec import make_spec, read_spec

LEAST = {"trace": "sample", "hw": "pixel8", "policy": "dip"}


def told(runs):
    return [(run.policy, run.density, run.parameters, run.settings["dram"]) for run in runs]


def test_a_single_value_is_a_list_of_one():
    (run,) = expand([make_spec(LEAST, "here")])
    assert (run.source, run.hw, run.policy, run.density) == ({"trace": "sample"}, "pixel8", "dip", None)
    assert (run.eviction, run.settings["dram"], run.closed) == ("lfu", None, False)


def test_the_grid_is_the_product_in_the_order_of_the_lists():
    spec = make_spec(LEAST | {"density": [0.5, 0.7], "dram": ["50%", "1 GB"]}, "here")
    assert told(expand([spec])) == [
        ("dip", 0.5, {}, "50%"), ("dip", 0.7, {}, "50%"), ("dip", 0.5, {}, "1 GB"), ("dip", 0.7, {}, "1 GB"),
    ]  # fmt: skip


def test_only_what_a_policy_has_is_varied_for_it():
    spec = make_spec(
        LEAST | {"policy": ["dense", "dip", "dip-ca"], "density": [0.5, 0.6], "set": {"gamma": [0.2, 0.5]}}, "here"
    )
    assert [(run.policy, run.density, run.parameters) for run in expand([spec])] == [
        ("dense", None, {}), ("dip", 0.5, {}), ("dip", 0.6, {}),
        ("dip-ca", 0.5, {"gamma": 0.2}), ("dip-ca", 0.5, {"gamma": 0.5}),
        ("dip-ca", 0.6, {"gamma": 0.2}), ("dip-ca", 0.6, {"gamma": 0.5}),
    ]  # fmt: skip


def test_parameters_of_one_policy_and_of_the_rule():
    keys = {"dip-ca.gamma": [0.1, 0.2], "eviction.ghost": [1, 2], "weighted": True}
    spec = make_spec(LEAST | {"policy": ["dip", "dip-ca"], "eviction": "s3fifo", "set": keys}, "here")
    assert [(run.policy, run.parameters, run.rule_parameters) for run in expand([spec])] == [
        ("dip", {"weighted": True}, {"ghost": 1}),
        ("dip-ca", {"gamma": 0.1, "weighted": True}, {"ghost": 1}), ("dip-ca", {"gamma": 0.2, "weighted": True}, {"ghost": 1}),
        ("dip", {"weighted": True}, {"ghost": 2}),
        ("dip-ca", {"gamma": 0.1, "weighted": True}, {"ghost": 2}), ("dip-ca", {"gamma": 0.2, "weighted": True}, {"ghost": 2}),
    ]  # fmt: skip


def test_only_what_a_rule_has_is_varied_for_it():
    spec = make_spec(LEAST | {"eviction": ["lru", "s3fifo"], "set": {"eviction.ghost": [0.5, 0.9]}}, "here")
    assert [(run.eviction, run.rule_parameters) for run in expand([spec])] == [
        ("lru", {}), ("s3fifo", {"ghost": 0.5}), ("s3fifo", {"ghost": 0.9}),
    ]  # fmt: skip


def test_none_is_the_name_of_a_rule_and_of_a_mode_and_nothing_elsewhere():
    given = {"eviction": "none,lru", "overlap": "none,group", "merge": "none,64KiB", "kv_tokens": "none,9"}
    spec = make_spec(LEAST | {key: _values(value) for key, value in given.items()}, "here")
    assert (spec.eviction, spec.overlap) == (["none", "lru"], ["none", "group"])
    assert (spec.merge, spec.kv_tokens) == ([None, "64KiB"], [None, 9])


def test_models_have_texts_and_tokens():
    values = {"model": ["a", "b"], "tokens": [512, 1024], "hw": "pixel8", "policy": "dip"}
    runs = list(expand([make_spec(values, "here")]))
    assert all(run.closed for run in runs)
    assert [(run.source["model"], run.source["tokens"]) for run in runs] == [
        ("a", 512),
        ("a", 1024),
        ("b", 512),
        ("b", 1024),
    ]
    assert runs[0].together != runs[1].together


def test_grids_share_the_other_keys(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(
        "trace: sample\nhw: pixel8\ngrids:\n  - {policy: dip, density: [0.5, 0.6]}\n  - {policy: magnitude, density: 0.8, hw: oneplus12}\n"
    )
    found = [(run.policy, run.density, run.hw) for run in expand(read_spec(path))]
    assert found == [("dip", 0.5, "pixel8"), ("dip", 0.6, "pixel8"), ("magnitude", 0.8, "oneplus12")]


def test_options_stand_above_the_file(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("trace: sample\nhw: pixel8\npolicy: dip\ndram: 50%\n")
    (run,) = expand(read_spec(path, {"hw": ["oneplus12"]}))
    assert (run.hw, run.settings["dram"]) == ("oneplus12", "50%")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"polcy": "dip"}, "here: polcy is not a known key; did you mean 'policy'?"),
        ({"hw": []}, "here: hw: must have at least 1, has 0"),
        ({"trace": None}, "here: names neither trace nor model; give one, or both"),
        ({"tokens": "many"}, r"here: tokens: must be a whole number \(got 'many'\)"),
        ({"policy": None}, "here: policy: "),
        ({"set": {"gamma": 0.5}}, "set: gamma: no policy here has a parameter 'gamma'"),
        ({"set": {"eviction.ghost": 1}}, "set: eviction.ghost: no rule here has a parameter 'ghost'"),
        ({"set": {"dip-ca.gamma": 0.5}}, "set: dip-ca.gamma: policy 'dip-ca' is not part of this sweep"),
    ],
)
def test_what_is_wrong_is_told(change, message):
    with pytest.raises(SettingError, match=message) as caught:
        list(expand([make_spec(LEAST | change, "here")]))
    assert "\n" not in str(caught.value)


def test_an_unknown_policy_ends_the_sweep_before_it_begins():
    with pytest.raises(PluginError, match="no policy 'dipp'; did you mean 'dip'"):
        list(expand([make_spec(LEAST | {"policy": "dipp"}, "here")]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n", "is no description of a sweep; it needs at least hw, policy, and trace or model"),
        ("a: &x [1]\nb: *x\n", "line 2: aliases"),
        ("hw: a\nhw: b\n", "line 2: key 'hw' is given twice"),
        ("hw: [\n", "line 2: "),
        ('{"format": "hwsim-result"}', "is a result of hwsim, no description of a sweep; that needs at least hw"),
        ("flash: {}\ndram: {}\n", "is a hardware profile, no description of a sweep"),
        ("trace: sample\nhw: pixel8\npolicy: dip\ngrids: 3\n", "grids: must be a list of sections"),
        ("trace: sample\nhw: pixel8\ngrids: [{policy: dip}, {density: .5}]\n", r"grids.1: policy is missing"),
    ],
)
def test_a_file_that_is_wrong_is_told(tmp_path, text, message):
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(HwsimError, match=message) as caught:
        read_spec(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(SettingError, match="cannot be read: No such file"):
        read_spec(tmp_path / "none.yaml")

"""Every point of the space is a possible setting."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwsim.errors import SettingError
from hwsim.simulation.options import make_policy
from hwsim.simulation.plugins import POLICIES
from hwsim.studies.tune.space import THIRDS, settings_of, suggest, uniform
from hwsim.testing import SMALL_MODEL

KIND = POLICIES.find("dip-ca")[1]


def policy(chosen):
    return make_policy("dip-ca", KIND, chosen["set"], chosen["density"])


class Drawn:
    """Trials whose values hypothesis draws."""

    def __init__(self, data):
        self.data = data

    def suggest_float(self, name, low, high, log=False):
        return self.data.draw(st.floats(low, high), name)

    def suggest_categorical(self, name, choices):
        return self.data.draw(st.sampled_from(choices), name)


@pytest.mark.parametrize("gated", [True, False])
@given(data=st.data())
def test_every_point_is_possible(gated, data):
    model = SMALL_MODEL.model_copy(update={"num_hidden_layers": 7, "gated": gated})
    chosen = settings_of(suggest(Drawn(data), 0.4, adapter=False), model)
    made = policy(chosen)
    matrices = len(model.mlp)
    for layer, density in enumerate(chosen["density"]):
        keep_input, keep_down = (group.keep for group in made.in_layer(layer).groups(model))
        assert 0 < keep_input <= 1
        assert 0 < keep_down <= 1
        assert ((matrices - 1) * keep_input + keep_down) / matrices == pytest.approx(density, abs=1e-5)


@given(st.floats(0.4, 0.95), st.floats(0.05, 1))
def test_the_uniform_point_is_dip_ca_as_it_is(density, gamma):
    chosen = settings_of(uniform(density, gamma), SMALL_MODEL)
    plain = KIND(density=density).groups(SMALL_MODEL)
    for ours, theirs in zip(policy(chosen).groups(SMALL_MODEL), plain, strict=True):
        assert ours.keep == pytest.approx(theirs.keep, abs=1e-5)
    assert np.allclose(chosen["set"]["gamma"], gamma, atol=1e-6)
    assert "cache_shares" not in chosen  # equal, as the authors have them


@pytest.mark.parametrize("gated", [True, False])
def test_shares_of_the_cache_are_in_proportion(gated):
    model = SMALL_MODEL.model_copy(update={"gated": gated})
    shares = settings_of(uniform(0.7, 0.5) | {"share_down": math.log(2)}, model)["cache_shares"]
    assert shares == f"input={2000 if gated else 1000},down=2000"  # of two matrices, or one; twice that of one


def test_thirds_of_the_layers():
    point = uniform(0.7, 0.5) | {f"gamma_{third}": number / 10 for number, third in enumerate(THIRDS, 1)}
    model = SMALL_MODEL.model_copy(update={"num_hidden_layers": 7})
    assert settings_of(point, model)["set"]["gamma"] == [0.1, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3]


def test_lists_must_fit_together():
    with pytest.raises(
        SettingError, match="lists of one value for each layer must have one length: gamma 2, density 3"
    ):
        make_policy("dip-ca", KIND, {"gamma": [0.1, 0.2], "density": [0.5, 0.6, 0.7]})
    with pytest.raises(SettingError, match=r"--set gamma: layer 1: policy dip-ca: gamma=2\.0"):
        make_policy("dip-ca", KIND, {"gamma": "[0.1, 2.0]"})
    with pytest.raises(SettingError, match=r"has 2 values, small has 3 layers; give one for each"):
        make_policy("dip-ca", KIND, {"gamma": [0.1, 0.2]}).groups(SMALL_MODEL.model_copy(update={"name": "small"}))
    with pytest.raises(SettingError, match="the list is empty"):
        make_policy("dip-ca", KIND, {"gamma": []})

"""Densities layer by layer: every layer has its own keep, whatever the policy, and the result says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hwsim.errors import ContractError, HwsimError, SettingError
from hwsim.policy import Group, Policy
from hwsim.simulation.densities import Layered, read_densities
from hwsim.simulation.metrics import Result
from hwsim.simulation.plugins import EVICTIONS, POLICIES, build
from hwsim.simulation.settings import Settings
from hwsim.testing import SMALL_MODEL
from hwsim.trace import Trace
from tests.cli.run import here, refused, result, run  # noqa: F401
from tests.cli.run import replay as arguments
from tests.conftest import flat_profile
from tests.policies.test_policies import nets_file
from tests.runs import Told, replay

DENSITIES = [0.9, 0.5, 0.7]


def layered(name: str, densities: list[float], **parameters: object) -> Layered:
    kind = POLICIES.find(name)[1]
    return Layered(layers=tuple(build(kind, name, parameters | {"density": each}) for each in densities), source="f")


def replayed(path: Path, policy: Policy) -> tuple[Result, dict[tuple[int, str], list[np.ndarray]]]:
    masks: dict[tuple[int, str], list[np.ndarray]] = {}
    with Trace(path) as trace:
        made = replay(
            trace, flat_profile(), policy, EVICTIONS.make("lru")[1], Settings(dram="60%"), policy_name="p",
            observers=[Told(lambda layer, group, _, mask: masks.setdefault((layer, group), []).append(mask.copy()))],
        )  # fmt: skip
    return made, masks


@pytest.mark.parametrize("name", ["dip", "dip-ca", "magnitude", "oracle", "up", "gate", "noisy-oracle", "predictor"])
def test_each_layer_is_as_if_all_had_its_density(name: str, small_trace: Path, tmp_path: Path) -> None:
    """Layers do not influence each other, so layer l is that of a replay whose density is l's everywhere."""
    densities = [0.9, 0.75, 0.8]
    nets = {"predictor": nets_file(tmp_path / "n.npz", SMALL_MODEL)} if name == "predictor" else {}
    mixed, masks = replayed(small_trace, layered(name, densities, **nets))
    for layer, density in enumerate(densities):
        alone, expected = replayed(small_trace, POLICIES.make(name, {"density": density, **nets})[1])
        for (other, group), found in expected.items():
            if other == layer:
                assert np.array_equal(masks[layer, group], found), (layer, group)
        assert [each for each in mixed.groups if each.layer == layer] == [
            each for each in alone.groups if each.layer == layer
        ]
    assert mixed.mlp_density == pytest.approx(np.mean(densities), abs=0.02)
    assert mixed.provenance["policy"]["parameters"]["density"] == densities


def test_equal_densities_are_the_plain_policy(small_trace: Path) -> None:
    mixed, plain = (replayed(small_trace, each)[0] for each in (layered("dip", [0.5] * 3), POLICIES.make("dip")[1]))
    assert mixed.model_dump(exclude={"provenance"}) == plain.model_dump(exclude={"provenance"})
    assert mixed.provenance["policy"]["sha256"] == plain.provenance["policy"]["sha256"]


def test_the_note_names_the_span_of_the_masks(small_trace: Path) -> None:
    with Trace(small_trace) as trace:
        made = replay(
            trace, flat_profile(), layered("oracle", DENSITIES), EVICTIONS.make("lru")[1], Settings(dram="35%")
        )
    assert any("neurons 60-108 of" in note for note in made.notes), made.notes


class Shifty(Policy):
    """Cuts other matrices at a higher density."""

    density: float = 0.5

    def groups(self, model: object) -> list[Group]:
        return [Group("a", "neuron", ["down.column" if self.density > 0.6 else "up.row"], self.density, ["input"])]


def test_layers_may_differ_in_keep_only(small_trace: Path) -> None:
    policy = Layered(layers=tuple(Shifty(density=each) for each in DENSITIES), source="f")
    with pytest.raises(ContractError, match=r"groups\(\) of layer 1 differ from layer 0's in more than keep"):
        replayed(small_trace, policy)


# ---------------------------------------------------------------------- the file and the option


@pytest.mark.parametrize(("name", "text"), [("d.yaml", "[0.9, 0.5, 0.7]"), ("d.yml", "- 0.9\n- 0.5\n- 0.7\n")])
def test_yaml(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert read_densities(tmp_path / name) == DENSITIES


@pytest.mark.usefixtures("here")
def test_the_option_takes_a_file() -> None:
    Path("d.json").write_text(json.dumps(DENSITIES))
    found = result("--density", "d.json", policy="dip")  # type: ignore[no-untyped-call]
    assert found["provenance"]["policy"]["name"] == "dip"
    assert found["provenance"]["policy"]["parameters"]["density"] == DENSITIES
    assert found["mlp_density"] == pytest.approx(0.7, abs=0.02)
    sizes = [sum(group["requests"] for group in found["groups"] if group["layer"] == layer) for layer in range(3)]
    assert sizes[0] > sizes[2] > sizes[1]
    out, err = run(*arguments("--density", "d.json", policy="dense,dip"))  # type: ignore[no-untyped-call]
    assert err == "--density d.json is for dip; dense as without it\n"
    assert "0.69" in out
    told = refused(*arguments("--json", "d.json", "--density", "d.json"))  # type: ignore[no-untyped-call]
    assert told == "d.json: cannot be written: the command reads it; choose another name"


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("text", "policy", "message"),
    [
        ("[0.5, 0.6]", "dip", "policy dip: --density d.yaml: has 2 densities, small has 3 layers; give one for each"),
        ("0.5", "dip", "--density d.yaml: must be a list of numbers, one density for each layer: [0.6, 0.5, ...]"),
        ("[]", "dip", "--density d.yaml: must be a list of numbers, one density for each layer: [0.6, 0.5, ...]"),
        ("[0.5, 1.5, 1]", "dip", "--density d.yaml: layer 1: 1.5; must be a number above 0 and at most 1"),
        ("[0.5, 1, .nan]", "dip", "--density d.yaml: layer 2: nan; must be a number above 0 and at most 1"),
        ("[yes, 1, 1]", "dip", "--density d.yaml: layer 0: True; must be a number above 0 and at most 1"),
        ("[half, 1, 1]", "dip", "--density d.yaml: layer 0: 'half'; must be a number above 0 and at most 1"),
        ("[0.5, 0.6", "dip", "--density d.yaml: is no YAML: "),
        ("[0.9, 0.5, 0.9]", "magnitude", "layer 1: policy magnitude: density=0.5 cannot be reached: up and gate are "),
        ("[1, 0.5, 1]", "dense", "--density d.yaml: layer 1: policy dense: density=0.5: must be "),
        ("[1, 0.5, 1]", "relu", "policy relu takes no --density, it has no field of that name"),
    ],
)  # fmt: skip
def test_what_is_refused(text: str, policy: str, message: str) -> None:
    Path("d.yaml").write_text(text)
    told = refused(*arguments("--density", "d.yaml", policy=policy))  # type: ignore[no-untyped-call]
    assert told.startswith(message)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingError, match="cannot be read: it is no text"):
        read_densities(tmp_path / "d.json")
    (tmp_path / "d.json").write_text("[0.5,")
    with pytest.raises(SettingError, match="is no JSON"):
        read_densities(tmp_path / "d.json")
    with pytest.raises(HwsimError, match="No such file"):
        read_densities(tmp_path / "none.yaml")

"""Does `hwsim plugin check` tick what is kept, and tell what is broken, where, and the way out?"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
from pydantic import Field as PydanticField

from hwsim.errors import ContractError, PluginError
from hwsim.evictions import Eviction
from hwsim.policy import Context, Field, Group, ModelShape, Policy
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.testing import (
    SMALL_MODEL,
    BrokenRuleError,
    check_eviction,
    check_policy,
    decide,
    eviction_speed,
    policy_speed,
)
from hwsim.testing.rules import _ends
from tests.conftest import REPOSITORY
from tests.simulation.test_authors import run


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---------------------------------------------------------------------- the verdict


def write(path: Path, *parts: str) -> Path:
    path.write_text("import numpy as np\nfrom hwsim.policy import Field, Group, Policy\n" + "".join(parts))
    return path


GROUPS = '    def groups(self, model):\n        return [Group("down", "neuron", ["down.column"], 0.5, ["glu"])]\n'
GOOD = f'class Good(Policy):\n    """Good."""\n{GROUPS}    def score(self, ctx):\n        return np.abs(ctx.signals["glu"])\n'
FORGETFUL = (
    f'CALLS = []\nclass Forgetful(Policy):\n    """Counts."""\n{GROUPS}    def score(self, ctx):\n'
    "        CALLS.append(1)\n        return np.roll(np.abs(ctx.signals['glu']), len(CALLS))\n"
)
RULE = (
    'from hwsim.evictions import Eviction\nclass Rule(Eviction):\n    """Anybody."""\n'
    "    def start(self, units, capacity, future):\n        return np.zeros(units)\n"
    "    def rank(self, state):\n        return state\n"
)


def test_a_good_one_is_ticked_rule_by_rule(empty: Path) -> None:
    out, err = run("check", write(empty / "good.py", GOOD))
    lines = out.splitlines()
    assert err == ""
    assert lines[0] == "policy good"
    assert lines[-1] == "good keeps every rule of the contract."
    assert [line[4:] for line in lines[1:-2]] == check_policy(POLICIES.find("good.py")[1])
    assert all(line.startswith("  ✓ ") for line in lines[1:-2])
    assert re.fullmatch(
        r"  speed, for information: deciding a token takes \S+ [a-z]+ in a layer of 8192 units, \S+ x the plain top-k",
        lines[-2],
    )


def test_a_broken_one_is_told_with_the_place_and_the_way_out(empty: Path) -> None:
    out, err = run("check", write(empty / "bad.py", FORGETFUL), code=1)
    lines = out.splitlines()
    assert err == ""
    broken = lines.index("  ✗ the same run gives the same masks")
    assert lines[broken + 1] == (
        "      Forgetful: the same run gives other masks, first at layer 0, group down, token 0; keep state in ctx.state, "
        "draw from ctx.rng"
    )
    assert all(line.startswith("  ✓ ") for line in lines[1:broken])
    assert all(line.startswith("  - ") for line in lines[broken + 2 : -1])
    assert lines[-1] == "bad breaks a rule of the contract; what comes after it (3) was not checked."


def test_what_is_not_a_terminal_of_today_gets_words(empty: Path) -> None:
    write(empty / "bad.py", FORGETFUL)
    command = [sys.executable, "-c", "from hwsim.cli import main; main()", "check", "bad.py"]
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'policies'}"}
    done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "  ok it has a summary" in done.stdout
    assert "  NO the same run gives the same masks" in done.stdout
    assert "?" not in done.stdout


def test_the_verdict_as_json_is_the_same_each_time(empty: Path) -> None:
    write(empty / "good.py", GOOD)
    write(empty / "bad.py", FORGETFUL)
    texts = [run("check", "good.py", "--json", "-")[0] for _ in range(2)]
    assert texts[0] == texts[1]
    assert json.loads(texts[0])["checked"][0]["kept"] is True
    run("check", "bad.py", "--json", "bad.json", code=1)
    data = json.loads((empty / "bad.json").read_text())
    assert (data["format"], data["version"]) == ("hwsim-check", 1)
    (checked,) = data["checked"]
    assert (checked["kind"], checked["name"], checked["kept"]) == ("policy", "bad", False)
    states = [rule["state"] for rule in checked["rules"]]
    assert states == ["kept"] * 6 + ["broken"] + ["unchecked"] * 3
    assert "ctx.state" in checked["rules"][6]["reason"]


def test_a_file_with_both_kinds_is_checked_for_both(empty: Path) -> None:
    write(empty / "both.py", GOOD, RULE)
    out, _ = run("check", "both.py")
    assert [line for line in out.splitlines() if not line.startswith(" ")] == [
        "policy both", "both keeps every rule of the contract.", "eviction both", "both keeps every rule of the contract.",
    ]  # fmt: skip
    assert run("check", "both.py:Rule")[0].startswith("eviction Rule")
    assert run("check", "both.py:Good")[0].startswith("policy Good")


def test_parameters_of_the_checked_one(empty: Path) -> None:
    out, _ = run("check", "dip-ca", "--set", "gamma=0.5", "--set", "warm_up=true")
    assert "dip-ca keeps every rule" in out
    assert "has no parameter 'gama'; did you mean 'gamma'" in run("check", "dip-ca", "--set", "gama=1", code=1)[1]
    assert "gamma=2" in run("check", "dip-ca", "--set", "gamma=2", code=1)[1]


def test_a_policy_with_a_file_is_checked_on_its_model(empty: Path) -> None:
    write(
        empty / "wide.py",
        'class Wide(Policy):\n    """Made for one model."""\n'
        "    def groups(self, model):\n        assert model.hidden_size == 576, 'made for smollm2-135m'\n"
        '        return [Group("down", "neuron", ["down.column"], 0.5, ["glu"])]\n'
        '    def score(self, ctx):\n        return np.abs(ctx.signals["glu"])\n',
    )
    assert "made for smollm2-135m" in run("check", "wide.py", code=1)[0]
    out, _ = run("check", "wide.py", "--model", "smollm2-135m")
    assert "layer of 1536 units" in out
    assert "did you mean 'smollm2-135m'" in run("check", "wide.py", "--model", "smollm2-135", code=1)[1]


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("nothing.py", "file nothing.py does not exist"),
        (
            "empty.py",
            "empty.py: defines no policy and no eviction rule; docs/howto/policy.md tells how to write either",
        ),
        ("good.py:Bad", "good.py: has no policy or eviction class 'Bad'"),
        ("two.py", "two.py: defines several: Good, Better; choose one with two.py:Good"),
        ("broken.py", "broken.py: cannot be loaded: ZeroDivisionError"),
        ("dip-cs", "no policy and no eviction 'dip-cs'; did you mean 'dip-ca'? Known: "),
        ("lruu", "no policy and no eviction 'lruu'; did you mean 'lru'? Known: "),
    ],
)
def test_what_cannot_be_checked(spec: str, text: str, empty: Path) -> None:
    write(empty / "good.py", GOOD)
    write(empty / "empty.py")
    write(empty / "two.py", GOOD, GOOD.replace("Good", "Better"))
    write(empty / "broken.py", "1 / 0\n")
    out, err = run("check", spec, code=1)
    assert out == ""
    assert len(err.splitlines()) == 1
    assert text in err


def test_the_json_spares_the_file(empty: Path) -> None:
    write(empty / "good.py", GOOD)
    assert "the command reads it" in run("check", "good.py", "--json", "good.py", code=1)[1]


# ---------------------------------------------------------------------- what the rules find


class Base(Policy):
    """To be broken."""

    def groups(self, model: ModelShape) -> list[Group]:
        return [Group("down", axis="neuron", slices=["down.column"], keep=0.5, needs=["glu"])]

    def score(self, ctx: Context) -> np.ndarray:
        return np.abs(ctx.signals["glu"])


def touching(change: Any) -> Policy:
    def score(self: Policy, ctx: Context) -> np.ndarray:
        change(ctx)
        return np.zeros(ctx.units, np.float32)

    return type("Touching", (Base,), {"__doc__": "Touches.", "score": score})()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda ctx: ctx.signals["glu"].sort(), "signals and the cache are read-only: change a copy"),
        (lambda ctx: np.copyto(ctx.cached, True), "signals and the cache are read-only: change a copy"),
        (lambda ctx: ctx.signals.update(glu=np.zeros(1)), r"score\(\) at layer 0, group down, token 0 changed ctx.signals"),
        (lambda ctx: ctx.signals.clear(), "changed ctx.signals; what is to be kept belongs in ctx.state"),
        (lambda ctx: setattr(ctx, "k", 1), "changed ctx.k"),
        (lambda ctx: setattr(ctx, "token", ctx.token + 1), "changed ctx.token"),
        (lambda ctx: setattr(ctx, "rng", np.random.default_rng(0)), "changed ctx.rng"),
        (lambda ctx: ctx.group.needs.append("input"), "changed ctx.group"),
    ],
)  # fmt: skip
def test_what_is_shown_must_stay_as_it_is(change: Any, text: str) -> None:
    with pytest.raises(BrokenRuleError, match=text) as found:
        check_policy(touching(change))
    assert found.value.rule == "what it is shown it leaves as it is"


class Ends(Policy):
    """Has bounds of all kinds."""

    closed: float = Field(0.5, ge=0, le=1)
    opened: float = Field(0.5, gt=0, lt=2)
    above: float = Field(7.0, gt=5)
    whole: int = Field(3, gt=0, le=9)
    maybe: float | None = Field(None, ge=0.25, le=0.5)
    switch: bool = False
    choice: Literal["a", "b"] = "a"
    text: str = "x"
    several: list[float] = []  # noqa: RUF012


def test_the_ends_that_are_tried() -> None:
    found: dict[str, list[Any]] = {}
    for name, value in _ends(Ends):
        found.setdefault(name, []).append(value)
    assert found == {
        "closed": [0, 1], "opened": [pytest.approx(0.002), pytest.approx(1.998)], "above": [pytest.approx(5.001)],
        "whole": [1, 9], "maybe": [0.25, 0.5], "switch": [False, True], "choice": ["a", "b"],
    }  # fmt: skip
    assert all(isinstance(value, int) for value in found["whole"])


class Strange(Base):
    """Fails at one end of its bounds."""

    power: float = Field(1.0, ge=0, le=100)
    refused: ClassVar[bool] = False

    def score(self, ctx: Context) -> np.ndarray:
        if self.refused and self.power == 0:
            raise PluginError("power=0 makes all units equal")
        return np.full(ctx.units, np.nan) if self.power == 0 else np.abs(ctx.signals["glu"])


class Refusing(Strange):
    """Says why it does not work there."""

    refused: ClassVar[bool] = True


def test_bounds_must_be_true() -> None:
    with pytest.raises(BrokenRuleError) as found:
        check_policy(Strange)
    assert found.value.rule == "at the ends of its parameters' bounds it works, or gives a reason"
    assert str(found.value) == (
        "Strange with power=0.0: policy Strange: score() at layer 0, group down, token 0: returned NaN for unit 0; "
        "narrow the field's bounds, or refuse the value with hwsim.policy.PluginError and the reason"
    )
    check_policy(Refusing)


class Backwards(Policy):
    """Decides itself, and reads less where it is asked for more."""

    density: float = Field(0.5, gt=0, le=1)

    def groups(self, model: ModelShape) -> list[Group]:
        return [Group("all", "neuron", ["gate.row", "up.row", "down.column"], None, ["input"])]

    def select(self, ctx: Context) -> np.ndarray:
        return np.arange(ctx.units) >= self.density * ctx.units


def test_density_is_monotone_also_where_select_decides() -> None:
    with pytest.raises(
        BrokenRuleError, match=r"density 0\.5 reads less than density 0\.3, 0\.500 of the MLP after 0\.700"
    ):
        check_policy(Backwards)


def test_a_rule_knows_what_was_kept_and_what_was_not_reached() -> None:
    every = check_policy(Base)
    with pytest.raises(BrokenRuleError) as found:
        check_policy(touching(lambda ctx: setattr(ctx, "k", 1)))
    assert found.value.kept == every[:2]
    assert len(found.value.kept) + 1 + len(found.value.unchecked) == len(every)
    with pytest.raises(BrokenRuleError) as first:
        check_policy(type("Mute", (Base,), {}))
    assert first.value.kept == []
    assert len(first.value.unchecked) == len(every) - 1


# ---------------------------------------------------------------------- eviction rules


@pytest.mark.parametrize("name", EVICTIONS.names())
def test_every_rule_keeps_the_contract(name: str) -> None:
    assert check_eviction(EVICTIONS.find(name)[1])


class Sound(Eviction):
    """Anybody, the last first."""

    def start(self, units: int, capacity: int, future: np.ndarray | None) -> Any:
        return np.zeros(units)

    def rank(self, state: Any) -> np.ndarray:
        return state


SHARED: list[int] = []


def _counts(self: Any, state: Any, use: Any) -> None:
    SHARED.append(1)
    state[:] = np.random.default_rng(len(SHARED)).random(len(state))


def _spoils(self: Any, units: int, capacity: int, future: Any) -> Any:
    future[0] = True
    return np.zeros(units)


@pytest.mark.parametrize(
    ("methods", "rule", "text"),
    [
        ({"rank": lambda self, state: state[1:]}, "in caches of every size", r"rank\(\) returned float64 of shape \(39,\).*a cache of \d+ of 40"),
        ({"stay": lambda self, state, candidates, count: candidates}, "in caches of every size", "must return a mask of exactly"),
        ({"use": lambda self, state, use: use.mask.sort()}, "in caches of every size", "read-only"),
        ({"use": _counts}, "the same run gives the same cache", "first at token .*; keep counters in the state"),
        ({"needs_future": True, "start": _spoils}, "what it is shown", "changes the future that .* change a copy"),
        ({"__doc__": None}, "it has a summary", "has no docstring; its first line is what `hwsim list evictions` prints"),
    ],
)  # fmt: skip
def test_check_eviction_finds(methods: dict[str, Any], rule: str, text: str) -> None:
    with pytest.raises(ContractError, match=text) as found:
        check_eviction(type("Broken", (Sound,), {"__doc__": "Broken.", **methods}))
    assert isinstance(found.value, BrokenRuleError)
    assert found.value.rule.startswith(rule)


def test_one_cache_must_not_feel_another() -> None:
    class Together(Sound):
        """All caches share one count."""

        counts: ClassVar[np.ndarray] = np.zeros(40)

        def start(self, units: int, capacity: int, future: np.ndarray | None) -> Any:
            self.counts[:] = 0
            return None

        def use(self, state: Any, use: Any) -> None:
            self.counts[use.mask] += 1

        def rank(self, state: Any) -> np.ndarray:
            return self.counts

    with pytest.raises(BrokenRuleError, match="what a cache holds depends on what another one serves"):
        check_eviction(Together)


def test_bounds_of_a_rule_must_be_true() -> None:
    class Divides(Sound):
        """Fails at 0."""

        period: int = PydanticField(4, ge=0, le=8)

        def rank(self, state: Any) -> np.ndarray:
            return state + 1 // self.period

    with pytest.raises(BrokenRuleError, match=r"Divides with period=0: .*ZeroDivisionError.*narrow the field's bounds"):
        check_eviction(Divides)


# ---------------------------------------------------------------------- what else there is for authors


def test_decide_gives_the_masks_of_signals_of_ones_own() -> None:
    model = SMALL_MODEL.model_copy(update={"intermediate_size": 4, "hidden_size": 2})
    signals = {"glu": np.array([[1, -5, 3, 0], [0, 0, 1, 2]]), "input": np.array([[1, 2], [2, 1]])}
    masks = decide(POLICIES.make("dip", {"density": 0.5, "keep_input": 0.5})[1], signals, model)
    assert masks["down"].tolist() == [[False, True, True, False], [False, False, True, True]]
    assert masks["input"].tolist() == [[False, True], [True, False]]
    # gamma 0 takes the first of an empty cache, and then again what is in it
    aware = POLICIES.make("dip-ca", {"density": 0.5, "keep_input": 0.5, "gamma": 0.0})[1]
    assert decide(aware, signals, model, capacity=0.5)["down"].tolist() == [[True, True, False, False]] * 2


def test_speeds_are_told_of_whatever_has_one() -> None:
    dense, dip = (POLICIES.make(name)[1] for name in ("dense", "dip"))
    assert policy_speed(dense) is None
    speed = policy_speed(dip, SMALL_MODEL)
    assert speed is not None
    assert speed.units == SMALL_MODEL.hidden_size + SMALL_MODEL.intermediate_size
    assert speed.ratio == speed.seconds / speed.plain > 0
    assert eviction_speed(EVICTIONS.make("belady")[1], 64).seconds > 0

"""A plug-in that breaks the contract is named, with the place; what it may do is allowed."""

import re
import sys
import warnings

import numpy as np
import pytest

from hwsim.errors import BlindError, ContractError, HwsimError, PluginError
from hwsim.evictions import Eviction
from hwsim.policy import Context, Group, Policy
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.testing import SMALL_MODEL, check_policy
from tests.conftest import REPOSITORY, flat_profile
from tests.runs import Told, replay
from tests.simulation.made import MRU, run, write


class Base(Policy):
    """To be broken."""

    def groups(self, model):
        return [Group("down", axis="neuron", slices=["down.column"], keep=0.5, needs=["glu"])]

    def score(self, ctx):
        return np.abs(ctx.signals["glu"])


def having(**methods):
    return type("Broken", (Base,), {"__doc__": "Broken.", **methods})()


AT = r"^policy mine: {}\(\) at layer 0, group down, token 0: "


def _sets_a_field(self, ctx):
    self.past = 1


def _changes_a_signal(self, ctx):
    ctx.signals["glu"] *= 2


def _changes_the_cache(self, ctx):
    ctx.cached[0] = True


@pytest.mark.parametrize(
    ("methods", "text"),
    [
        # score
        ({"score": lambda self, ctx: np.zeros(119, "f4")}, AT.format("score") + r"returned float32 of shape \(119,\), needs float32 of shape \(120,\)"),
        ({"score": lambda self, ctx: np.zeros((120, 1), "f4")}, AT.format("score") + r"returned float32 of shape \(120, 1\)"),
        ({"score": lambda self, ctx: np.zeros(120, complex)}, AT.format("score") + "returned complex128 of shape"),
        ({"score": lambda self, ctx: np.full(120, "x")}, AT.format("score") + "returned <U1 of shape"),
        ({"score": lambda self, ctx: None}, AT.format("score") + "returned NoneType"),
        ({"score": lambda self, ctx: [0.0] * 120}, AT.format("score") + "returned list"),
        ({"score": lambda self, ctx: np.where(np.arange(120) == 7, np.nan, 0)}, AT.format("score") + "returned NaN for unit 7"),
        ({"score": lambda self, ctx: ctx.signals["input"]}, AT.format("score") + r"""raised KeyError: "signal 'input' is not among what this group needs \(glu\); name it in the group's needs" \(test_plugin_contract\.py, line \d+\)"""),
        ({"score": lambda self, ctx: 1 / 0}, AT.format("score") + r"raised ZeroDivisionError: division by zero \(test_plugin_contract\.py"),
        ({"score": _sets_a_field}, AT.format("score") + "raised ValidationError: .*frozen"),
        ({"score": _changes_a_signal}, AT.format("score") + "raised ValueError: .*read-only"),
        ({"score": _changes_the_cache}, AT.format("score") + "raised ValueError: .*read-only"),
        # select
        ({"select": lambda self, ctx: np.zeros(119, bool)}, AT.format("select") + r"returned bool of shape \(119,\), needs bool of shape \(120,\)"),
        ({"select": lambda self, ctx: np.zeros(120, "u1")}, AT.format("select") + "returned uint8 of shape"),
        ({"select": lambda self, ctx: [3, 4]}, AT.format("select") + "returned list"),
        ({"select": lambda self, ctx: np.load("/no/such")}, AT.format("select") + "raised FileNotFoundError"),
        # groups
        ({"groups": lambda self, model: 1 / 0}, r"^policy mine: groups\(\) raised ZeroDivisionError: division by zero"),
        ({"groups": lambda self, model: None}, r"^policy mine: groups\(\) must return a list of hwsim\.policy\.Group"),
        ({"groups": lambda self, model: ["down"]}, r"^policy mine: groups\(\) must return a list"),
        ({"groups": lambda self, model: [Group("a", "neuron", "down.column", 0.5)]}, r"^policy mine: group 'a': slices 'down.column'; must be a list"),
        ({"groups": lambda self, model: [Group("a", "neuron", ["down.column"], 0.5, "glu")]}, r"^policy mine: group 'a': needs 'glu'; must be a list"),
        ({"groups": lambda self, model: [Group("a", "neuron", ["down.column"], "half")]}, r"^policy mine: group 'a': keep='half'; must be more than 0 and at most 1"),
        ({"groups": lambda self, model: [Group("a", "neuron", ["down.column"], 0.0)]}, r"^policy mine: group 'a': keep=0.0; must be"),
        ({"groups": lambda self, model: [Group("a", "neuron", ["down.column"], float("nan"))]}, r"^policy mine: group 'a': keep=nan; must be"),
        ({"groups": lambda self, model: [Group("a", ["neuron"], ["down.column"], 0.5)]}, r"^policy mine: group 'a': axis \['neuron'\]; must be one of"),
        ({"groups": lambda self, model: [Group("a", "neuron", [7], 0.5)]}, r"^policy mine: group 'a': slices \[7\]; must be a list of names"),
        ({"groups": lambda self, model: [Group(["a"], "neuron", ["down.column"], 0.5)]}, r"^policy mine: group \['a'\]: its name must be text"),
        ({"groups": lambda self, model: [Group("a", "neuron", ["down.column"], needs=["glu"])]}, r"the group names no keep; give it one, or define select"),
        # predictors
        ({"predictor_parameters": lambda self, model: 1 / 0}, r"^policy mine: predictor_parameters\(\) raised ZeroDivisionError"),
    ],
)  # fmt: skip
def test_a_policy_that_breaks_the_contract_is_named_with_the_place(trace, methods, text):
    with pytest.raises(PluginError, match=text) as found:
        run(trace, having(**methods))
    assert "\n" not in str(found.value)


def test_a_base_class_says_what_is_to_be_defined(trace):
    class Nothing(Policy):
        """Nothing."""

    with pytest.raises(PluginError, match=r"policy mine: Nothing must define groups\(self, model\)"):
        run(trace, Nothing())

    class NoScore(Policy):
        """No score."""

        def groups(self, model):
            return Base().groups(model)

    with pytest.raises(PluginError, match=r"NoScore must define score\(self, ctx\) or select\(self, ctx\)"):
        run(trace, NoScore())


def test_what_is_allowed(trace):
    """float64 beyond float32, integers, infinities, an empty mask, and a state in ctx.state."""

    def any_size(self, model):
        return [Group("down", axis="neuron", slices=["down.column"], needs=["glu"])]

    plain = run(trace, having())
    wide = run(trace, having(score=lambda self, ctx: np.abs(ctx.signals["glu"].astype(float))))
    assert wide.groups == plain.groups
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        huge = run(trace, having(score=lambda self, ctx: np.where(np.arange(120) < 3, 1e300, -1e300)))
    empty = run(trace, having(groups=any_size, select=lambda self, ctx: np.zeros(ctx.units, bool)))
    assert (empty.unit_requests, empty.hit_rate) == (0, None)
    infinite = having(score=lambda self, ctx: np.where(np.arange(120) < 3, np.inf, -np.inf).astype("f4"))
    assert run(trace, infinite).groups == huge.groups
    assert huge.unit_requests == plain.unit_requests
    kept = run(trace, having(score=lambda self, ctx: ctx.state.setdefault("first", np.abs(ctx.signals["glu"]).copy())))
    assert kept.unit_requests == plain.unit_requests
    assert kept.unit_hits > plain.unit_hits  # the mask of a sequence never changes
    # the live view of the cache as a mask
    assert run(trace, having(groups=any_size, select=lambda self, ctx: ctx.cached)).unit_requests == 0


def _forges(attribute):
    def score(self, ctx):
        array = ctx.cached if attribute == "cached" else ctx.signals["glu"]
        array.flags.writeable = True
        return np.zeros(ctx.units, "f4")

    return score


@pytest.mark.parametrize("attribute", ["cached", "glu"])
def test_what_a_policy_sees_cannot_be_made_writable(trace, attribute):
    with pytest.raises(ContractError, match="raised ValueError: cannot set WRITEABLE flag to True"):
        run(trace, having(score=_forges(attribute)))


def test_a_mask_is_taken_as_it_is_returned(trace):
    """A policy may go on using its array, and may return the live view of the cache."""
    seen = []

    def select(self, ctx):
        mask = ctx.state.setdefault("mask", np.zeros(ctx.units, bool))
        mask[:] = np.arange(ctx.units) // 60 == ctx.token % 2
        if ctx.token % 3 == 2:  # nothing but the first of the cache
            mask[:] = False
            mask[np.flatnonzero(ctx.cached)[:60]] = True
        return mask

    def listen(layer, group, token, mask):
        seen.append(int(mask.sum()))
        with pytest.raises(ValueError, match="WRITEABLE"):
            mask.flags.writeable = True

    policy, eviction = having(select=select), EVICTIONS.make("lru")[1]
    with_listener = replay(trace, flat_profile(), policy, eviction, observers=[Told(listen)])
    assert set(seen) == {60}
    assert with_listener.unit_requests == sum(seen)


@pytest.mark.parametrize("eviction", ["lru", "belady"])
@pytest.mark.parametrize("extra", [-1, 1])
def test_a_mask_that_is_not_as_large_as_keep_says_is_refused(trace, eviction, extra):
    def select(self, ctx):
        return np.arange(ctx.units) < ctx.k + (extra if ctx.token == 2 else 0)

    text = rf"^policy mine: select\(\) at layer 0, group down, token 2: the mask holds {60 + extra} units, keep asks for 60; "
    with pytest.raises(ContractError, match=text + "give the group keep=None"):
        run(trace, having(select=select), eviction)


def _leaves(*_):
    sys.exit(3)


def _is_interrupted(*_):
    raise KeyboardInterrupt


def test_a_plugin_cannot_end_the_program(trace):
    for method in ("groups", "score", "select", "predictor_parameters"):
        with pytest.raises(ContractError, match=rf"{method}\(\).* raised SystemExit: 3"):
            run(trace, having(**{method: _leaves}))
        with pytest.raises(KeyboardInterrupt):
            run(trace, having(**{method: _is_interrupted}))
    for method in ("start", "use", "rank", "stay"):
        with pytest.raises(ContractError, match="eviction Broken: raised SystemExit: 3"):
            run(trace, "magnitude", evicting(**{method: _leaves}), dram="90%")
        with pytest.raises(KeyboardInterrupt):
            run(trace, "magnitude", evicting(**{method: _is_interrupted}), dram="90%")


def test_a_policy_cannot_take_a_result_apart(trace):
    """A field that JSON cannot hold is refused with its name before anything is computed."""

    class Holds(Base):
        """Holds what cannot be written."""

        table: object = np.zeros(3)

        def score(self, ctx):
            raise AssertionError("too late")

    with pytest.raises(ContractError, match=r"policy mine: its parameters cannot be written as JSON"):
        run(trace, Holds())


def test_an_eviction_by_its_file(tmp_path, trace):
    path = write(tmp_path / "mru.py", MRU)
    assert EVICTIONS.find(str(path))[0] == "mru"
    hits = {rule: run(trace, "magnitude", rule).unit_hits for rule in (path, f"{path}:Mru", "lru", "belady")}
    assert hits[path] == hits[f"{path}:Mru"] > 0
    assert hits[path] != hits["lru"]


def evicting(**methods):
    return type("Broken", (Eviction,), {"__doc__": "Broken.", **methods})()


def _changes(what):
    def change(self, state, use, count=None):
        array = use if what == "candidates" else getattr(use, what)
        array.flags.writeable = True

    return change


@pytest.mark.parametrize(
    ("methods", "text"),
    [
        ({"use": _changes("mask")}, "eviction Broken: raised ValueError: cannot set WRITEABLE flag"),
        ({"use": _changes("admitted")}, "eviction Broken: raised ValueError: cannot set WRITEABLE flag"),
        ({"stay": _changes("candidates")}, "eviction Broken: raised ValueError: cannot set WRITEABLE flag"),
        ({}, "Broken must define rank(self, state) or stay"),
        ({"start": lambda self, units, capacity, future: 1 / 0}, "eviction Broken: raised ZeroDivisionError: division by zero"),
        ({"use": lambda self, state, use: use.nothing}, "eviction Broken: raised AttributeError"),
        ({"rank": lambda self, state: np.zeros(3)}, "eviction Broken: rank() returned float64 of shape (3,), needs numbers of shape (120,)"),
        ({"rank": lambda self, state: None}, "eviction Broken: rank() returned NoneType"),
        ({"rank": lambda self, state: np.full(120, np.nan)}, "eviction Broken: rank() returned NaN"),
        ({"stay": lambda self, state, candidates, count: candidates}, "eviction Broken: stay() must return a mask of exactly"),
        ({"stay": lambda self, state, candidates, count: np.ones(120, bool)}, "eviction Broken: stay() must return a mask of exactly"),
        ({"stay": lambda self, state, candidates, count: None}, "eviction Broken: stay() must return a mask of exactly"),
    ],
)  # fmt: skip
def test_an_eviction_that_breaks_the_contract_is_named(trace, methods, text):
    with pytest.raises(PluginError, match=re.escape(text)) as found:
        run(trace, "magnitude", evicting(**methods), dram="90%")
    assert "\n" not in str(found.value)


def drifting():
    count = [0]

    def groups(self, model):
        count[0] += 1
        return [Group("down", "neuron", ["down.column"], 1 / (1 + count[0]))]

    return groups


class Upside(Base):
    """Reads less at a higher density."""

    density: float = 0.5

    def groups(self, model):
        return [Group("down", "neuron", ["down.column"], 1.05 - self.density, ["glu"])]


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (type("Stranger", (), {}), "Stranger is no subclass of hwsim.policy.Policy"),
        (type("Needs", (Base,), {"__doc__": "Needs.", "__annotations__": {"file": str}}), "^Needs: every parameter needs a default: file: has none$"),
        (type(having(groups=drifting())), r"groups\(\) gives another answer when it is asked again"),
        (type(having(select=lambda self, ctx: np.arange(ctx.units) < 3)), "the mask holds 3 units, keep asks for 60; give the group keep=None"),
        (type(having(predictor_parameters=lambda self, model: -1)), r"predictor_parameters\(\) returned -1, needs a whole number"),
        (type(having(predictor_parameters=lambda self, model: 10**20)), r"predictor_parameters\(\) returned 10+, needs a whole number"),
        (type("Holds", (Base,), {"__doc__": "Holds.", "__annotations__": {"table": object}, "table": object()}), "Holds: its parameters cannot be written as JSON"),
        (type(having(score=_leaves)), "raised SystemExit: 3"),
        (type(having(groups=_leaves)), r"groups\(\) raised SystemExit: 3"),
        (type("Leaves", (Base,), {"__doc__": "Leaves.", "model_post_init": _leaves}), "^Leaves: cannot be made with its defaults: SystemExit: 3"),
        (Upside, "density .* reads .* of the MLP"),
    ],
)  # fmt: skip
def test_check_policy_finds_more(made, text):
    """Beside what tests/policies/test_policies.py already holds it to."""
    with pytest.raises(HwsimError, match=text) as found:
        check_policy(made)
    assert "\n" not in str(found.value)


def test_check_policy_takes_an_instance():
    assert check_policy(having()) == check_policy(type(having()))


def test_the_example_of_the_documentation(trace):
    path = REPOSITORY / "docs" / "examples" / "sliding_top.py"
    assert len(path.read_text().splitlines()) <= 20
    name, made = POLICIES.make(str(path), {"memory": "0"})
    assert name == "sliding-top"
    assert run(trace, made).groups == run(trace, having()).groups  # without a past it takes the best of now
    slow = run(trace, POLICIES.make(str(path), {"memory": 0.9})[1])
    assert slow.unit_hits > run(trace, made).unit_hits  # masks change slowly


def test_a_context_made_by_hand_has_signals_and_no_cache():
    group, glu = Base().groups(SMALL_MODEL)[0], np.array([1, -2, 3], np.float32)
    ctx = Context(SMALL_MODEL, group, 0, 3, 1, np.random.default_rng(0), signals={"glu": glu})
    assert Base().score(ctx).tolist() == [1, 2, 3]
    assert ctx.magnitudes("glu").tolist() == [1, 2, 3]
    with pytest.raises(BlindError, match=r"^reads ctx\.cached, but there is no cache here$"):
        ctx.cached  # noqa: B018

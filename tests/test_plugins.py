"""Are policies and eviction rules found wherever an author puts them, and is each mistake of an author told in one line?"""

import json
import re
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from hwsim.cli.app import app
from hwsim.errors import ContractError, HwsimError, PluginError, SettingError
from hwsim.evictions import Eviction
from hwsim.plugins import EVICTIONS, POLICIES, build
from hwsim.policy import Field, Group, Policy
from hwsim.simulation import Settings, replay
from hwsim.testing import check_policy

from .conftest import REPOSITORY, flat_profile

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


# ---------------------------------------------------------------------- found


def test_the_built_in_ones():
    files = (REPOSITORY / "policies" / "hwsim_policies").glob("[!_]*.py")
    assert list(POLICIES.names()) == sorted(file.stem.replace("_", "-") for file in files)
    assert {"dense", "dip", "dip-ca", "magnitude", "noisy-oracle", "oracle", "predictor"} <= set(POLICIES.names())
    rules = "arc belady belady-bypass clock fifo lfu lfu-aged lru none random s3fifo sieve static"
    assert list(EVICTIONS.names()) == rules.split()
    for kind in (POLICIES, EVICTIONS):
        for name in kind.names():
            shown, found = kind.find(name)
            assert shown == name
            assert issubclass(found, kind.base)
            assert found.__doc__.strip()


def test_a_policy_by_its_file(tmp_path, trace):
    path = write(tmp_path / "my_policy.py", MINE)
    name, made = POLICIES.make(str(path), {"keep": "0.25"})
    assert (name, type(made).__name__, made.keep) == ("my-policy", "Mine", 0.25)
    # the same masks as the built-in that does the same
    theirs = run(trace, POLICIES.make("magnitude", {"density": 2.5 / 3})[1])
    assert run(trace, path).groups == theirs.groups


def test_a_relative_path(tmp_path, trace, monkeypatch):
    write(tmp_path / "sub" / "mine.py", MINE)
    monkeypatch.chdir(tmp_path)
    assert POLICIES.find("sub/mine.py")[0] == "mine"
    assert POLICIES.find("./sub/mine.py:Mine")[0] == "Mine"


def test_one_of_several_classes_of_a_file(tmp_path):
    path = write(tmp_path / "two.py", MINE + "\nclass Other(Mine):\n    '''Another.'''\n")
    assert POLICIES.find(f"{path}:Other")[1].__doc__ == "Another."
    with pytest.raises(PluginError, match=r"two\.py: defines several: Mine, Other; choose one with .*two\.py:Mine"):
        POLICIES.find(str(path))
    with pytest.raises(PluginError, match=r"has no policy class 'Othr'; did you mean 'Other'"):
        POLICIES.find(f"{path}:Othr")


def test_classes_that_a_file_imports_are_not_its_own(tmp_path):
    """Deriving from a built-in is the shortest policy of all."""
    path = write(
        tmp_path / "half.py",
        """
        from hwsim_policies.dip import Dip
        from hwsim_policies.magnitude import Magnitude

        class Half(Dip):
            '''Half the score.'''

            def score(self, ctx):
                return super().score(ctx) / 2
        """,
    )
    assert POLICIES.find(str(path))[1].__name__ == "Half"


def test_two_files_of_one_name_do_not_meet(tmp_path):
    first = write(tmp_path / "a" / "mine.py", MINE)
    second = write(tmp_path / "b" / "mine.py", MINE.replace("0.5", "0.75"))
    assert (POLICIES.make(str(first))[1].keep, POLICIES.make(str(second))[1].keep) == (0.5, 0.75)


def test_a_file_beside_a_policies_folder_of_its_own(tmp_path, small_trace):
    """A user's own `policies/`, `hwsim_policies.py` or `numpy`-like names in the current folder disturb nothing."""
    write(tmp_path / "policies" / "__init__.py", "raise RuntimeError('not mine')")
    write(tmp_path / "policies" / "dip.py", "raise RuntimeError('not mine')")
    mine = write(tmp_path / "policies" / "mine.py", MINE)
    command = (
        "import sys; from hwsim.plugins import POLICIES; path = list(sys.path);"
        "print(POLICIES.find('dip')[1].__module__, POLICIES.find(sys.argv[1])[0], path == sys.path)"
    )
    done = subprocess.run(
        [sys.executable, "-c", command, mine], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("hwsim_policies.dip mine True\n", "")


def test_by_entry_point(tmp_path, trace, monkeypatch):
    entries = "[hwsim.policies]\nglu-top = their_policies:Mine\n[hwsim.evictions]\nmru = their_policies:Mru\n"
    installed(tmp_path, monkeypatch, "their-policies", MINE + MRU, entries)
    assert POLICIES.names()["glu-top"] == "their_policies:Mine"
    assert EVICTIONS.names()["mru"] == "their_policies:Mru"
    assert POLICIES.find("glu-top")[1].__name__ == "Mine"
    assert run(trace, "glu-top", "mru").unit_hits > 0


def test_an_entry_point_may_name_a_module(tmp_path, monkeypatch):
    installed(tmp_path, monkeypatch, "their-policies", MINE, "[hwsim.policies]\nglu-top = their_policies\n")
    assert POLICIES.find("glu-top")[1].__name__ == "Mine"


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("their_policies:Missing", r"their_policies:Missing: cannot be loaded: AttributeError"),
        ("no_such_module:Mine", r"no_such_module:Mine: cannot be loaded: ModuleNotFoundError: No module named"),
        ("their_policies:np", r"their_policies:np: defines no policy|is no Policy"),
        ("their_policies:Mru", r"entry point glu-top = their_policies:Mru is no Policy"),
    ],
)
def test_a_broken_entry_point(tmp_path, monkeypatch, target, text):
    installed(tmp_path, monkeypatch, "their-policies", MINE + MRU, f"[hwsim.policies]\nglu-top = {target}\n")
    with pytest.raises(PluginError, match=text):
        POLICIES.find("glu-top")
    assert POLICIES.find("dip")  # the others still work


def test_a_name_that_is_defined_twice_is_refused(tmp_path, monkeypatch):
    installed(tmp_path / "a", monkeypatch, "one", MINE, "[hwsim.policies]\ndip = one:Mine\n")
    with pytest.raises(
        PluginError, match=r"policy 'dip' is defined twice: by hwsim_policies.dip and by one:Mine; rename"
    ):
        POLICIES.find("dip")
    write(tmp_path / "a" / "one-1.0.dist-info" / "entry_points.txt", "[hwsim.policies]\nmine = one:Mine\n")
    assert POLICIES.find("mine")
    installed(tmp_path / "b", monkeypatch, "two", MINE, "[hwsim.policies]\nmine = two:Mine\n")
    with pytest.raises(PluginError, match=r"policy 'mine' is defined twice: by (one|two):Mine and by (one|two):Mine"):
        POLICIES.names()


# ---------------------------------------------------------------------- not found, not loaded

BROKEN = {
    "syntax": ("def f(:\n    pass\n", r"broken\.py: line 1: invalid syntax"),
    "indentation": ("x = 1\n  y = 2\n", r"broken\.py: line 2: unexpected indent"),
    "import": ("import no_such_library\n", r"broken\.py: cannot be loaded: ModuleNotFoundError: No module named 'no_such_l"),
    "name": ("x = y\n", r"broken\.py: cannot be loaded: NameError: name 'y' is not defined"),
    "exit": ("import sys\nsys.exit(3)\n", r"broken\.py: cannot be loaded: SystemExit: 3"),
    "no class": ("x = 1\n", r"broken\.py: defines no policy: no subclass of hwsim\.policy\.Policy"),
    "empty": ("", r"broken\.py: defines no policy"),
    "another kind": (MRU, r"broken\.py: defines no policy"),
    "field without a type": (
        "from hwsim.policy import Policy\nclass A(Policy):\n    keep = 0.5\n",
        r"broken\.py: cannot be loaded: PydanticUserError: A non-annotated attribute",
    ),
    "not text": (b"\xff\xfe\x00", r"broken\.py: .*(unicode|utf-8|null bytes|not UTF-8)"),
    "null bytes": (b"x = 1\x00\n", r"broken\.py: .*null bytes"),
}  # fmt: skip


@pytest.mark.parametrize(("code", "text"), BROKEN.values(), ids=BROKEN)
def test_a_file_that_cannot_be_loaded(tmp_path, code, text):
    path = tmp_path / "broken.py"
    path.write_bytes(code if isinstance(code, bytes) else code.encode())
    with pytest.raises(PluginError, match=text) as found:
        POLICIES.find(str(path))
    assert "\n" not in str(found.value)
    assert "line None" not in str(found.value)


@pytest.mark.parametrize(
    ("kind", "spec", "text"),
    [
        (
            POLICIES,
            "dip-cs",
            r"no policy 'dip-cs'; did you mean 'dip-ca'\? Known: approximate-caching, .*; or give the path of a \.py",
        ),
        (POLICIES, "DIP", r"no policy 'DIP'; did you mean 'dip'"),
        (POLICIES, "", r"no policy ''"),
        (POLICIES, "dip_ca", r"no policy 'dip_ca'; did you mean 'dip-ca'"),
        (EVICTIONS, "lrru", r"no eviction 'lrru'; did you mean 'lru'"),
        (POLICIES, "no/such.py", r"policy file no/such\.py does not exist"),
        (EVICTIONS, "no/such.py:Mru", r"eviction file no/such\.py does not exist"),
        (POLICIES, "no/such.py:", r"no policy 'no/such.py:'"),
    ],
)
def test_what_is_not_there(kind, spec, text):
    with pytest.raises(PluginError, match=text):
        kind.find(spec)


# ---------------------------------------------------------------------- parameters


class Several(Policy):
    """Has parameters of many kinds."""

    keep: float = Field(0.5, gt=0, le=1, description="a share")
    count: int = 3
    on: bool = False
    weights: list[float] = Field(default_factory=list)
    maybe: float | None = None


def test_text_is_read_as_the_fields_type():
    made = build(Several, "it", {"keep": "0.25", "count": "7", "on": "true", "weights": "[1, 2.5]", "maybe": "none"})
    assert made == Several(keep=0.25, count=7, on=True, weights=[1, 2.5])


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"kep": "1"}, r"^it: unknown parameter 'kep'; did you mean 'keep'\? Known: count, keep, maybe, on, weights$"),
        ({"keep": "2"}, r"^it: keep=2: Input should be less than or equal to 1 \(a share\)$"),
        ({"keep": "nan"}, r"^it: keep=nan: Input should be .* \(a share\)$"),
        ({"keep": "much"}, r"^it: keep=much: Input should be a valid number.* \(a share\)$"),
        ({"keep": ""}, r"^it: keep=: Input should be a valid number"),
        ({"count": "1.5"}, r"^it: count=1.5: Input should be a valid integer"),
        ({"weights": "[1,"}, r"^it: weights=\[1,: Input should be a valid list"),
        ({"weights": "[1, \"x\"]"}, r"^it: weights.1=x: Input should be a valid number"),
        ({"on": "perhaps"}, r"^it: on=perhaps: Input should be a valid boolean"),
    ],
)  # fmt: skip
def test_impossible_parameters(parameters, text):
    with pytest.raises(SettingError, match=text):
        build(Several, "it", parameters)


def test_a_parameter_without_default_must_be_given():
    class Needs(Policy):
        """Needs one."""

        file: str = Field(description="where the nets are")

    with pytest.raises(SettingError, match=r"^it: file must be given, with --set file=\.\.\. \(where the nets are\)$"):
        build(Needs, "it", {})
    assert build(Needs, "it", {"file": "x"}).file == "x"


@pytest.mark.parametrize("error", [ValueError("they do\nnot fit"), KeyError("x"), ZeroDivisionError()])
def test_parameters_that_the_author_refuses_together(error):
    class Refuses(Policy):
        """Refuses."""

        def model_post_init(self, context):
            raise error

    with pytest.raises(SettingError, match=r"^it: ") as found:
        build(Refuses, "it", {})
    assert "\n" not in str(found.value)


# ---------------------------------------------------------------------- the contract, while it runs


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
        ({"score": lambda self, ctx: ctx.signals["input"]}, AT.format("score") + r"raised KeyError: 'input' \(test_plugins\.py, line \d+\)"),
        ({"score": lambda self, ctx: 1 / 0}, AT.format("score") + r"raised ZeroDivisionError: division by zero \(test_plugins\.py"),
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

    with_listener = replay(trace, flat_profile(), having(select=select), EVICTIONS.make("lru")[1], listener=listen)
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


# ---------------------------------------------------------------------- evictions


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


# ---------------------------------------------------------------------- the checks for authors


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
    """Beside what tests/test_policies.py already holds it to."""
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


# ---------------------------------------------------------------------- what the lists show


def listed(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_policy_shows_its_defaults_and_bounds():
    text = listed("policies", "dip-ca")
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert "0.2" in lines["gamma"]
    assert ">= 0, <= 1" in lines["gamma"]
    assert "weight of what is not cached" in lines["gamma"]
    assert "> 0, <= 1" in lines["density"]
    assert "none" in lines["keep_input"]
    assert "false" in lines["warm_up"].lower()
    assert "DIP that prefers what the cache holds" in text


def test_a_file_of_ones_own_shows_too(tmp_path):
    more = "    file: pathlib.Path = pathlib.Path('x')\n    must: int\n"
    path = write(tmp_path / "mine.py", "import pathlib\n" + MINE + more)
    text = listed("policies", path)
    assert "share of down's columns" in text
    assert "required" in next(line for line in text.splitlines() if line.startswith("must"))
    data = json.loads(listed("policies", path, "--json", "-"))
    assert [parameter["name"] for parameter in data["parameters"]] == ["keep", "file", "must"]
    assert [parameter["default"] for parameter in data["parameters"]] == [0.5, "x", None]
    assert [parameter["required"] for parameter in data["parameters"]] == [False, False, True]


def test_a_broken_third_party_does_not_hide_the_others(tmp_path, monkeypatch):
    installed(tmp_path, monkeypatch, "theirs", "x = 1 / 0\n", "[hwsim.policies]\nbroken = theirs\n")
    text = listed("policies")
    assert "dip-ca" in text
    assert "broken" in text
    assert "ZeroDivisionError" in text


def test_nothing_of_a_plugin_is_left_on_the_path(tmp_path):
    before = list(sys.path)
    POLICIES.find(str(write(tmp_path / "mine.py", MINE)))
    assert sys.path == before
    assert Path.cwd() not in map(Path, sys.path[1:]) or before == sys.path

"""Plug-ins are found by name, file and entry point, and what is not there or broken is told."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hwsim.cli.app import app
from hwsim.errors import PluginError, SettingError
from hwsim.policy import Field, Policy
from hwsim.simulation.plugins import EVICTIONS, POLICIES, build
from tests.conftest import REPOSITORY
from tests.simulation.made import MINE, MRU, installed, run, write


def test_the_built_in_ones():
    files = (REPOSITORY / "policies" / "hwsim_policies").glob("[!_]*.py")
    assert list(POLICIES.names()) == sorted(file.stem.replace("_", "-") for file in files)
    assert {"dense", "dip", "dip-ca", "magnitude", "noisy-oracle", "oracle", "predictor"} <= set(POLICIES.names())
    rules = "arc belady belady-bypass clock fifo lfru lfu lfu-aged lru none random s3fifo sieve static"
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
        "import sys; from hwsim.simulation.plugins import POLICIES; path = list(sys.path);"
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
    shutil.rmtree(tmp_path / "a" / "one-1.0.dist-info")  # as pip does before it installs another version
    installed(tmp_path / "a", monkeypatch, "one", MINE, "[hwsim.policies]\nmine = one:Mine\n")
    assert POLICIES.find("mine")
    installed(tmp_path / "b", monkeypatch, "two", MINE, "[hwsim.policies]\nmine = two:Mine\n")
    with pytest.raises(PluginError, match=r"policy 'mine' is defined twice: by (one|two):Mine and by (one|two):Mine"):
        POLICIES.names()


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
        ({"keep": "2"}, r"^it: keep=2: must be at most 1 \(a share\)$"),
        ({"keep": "nan"}, r"^it: keep=nan: must be .* \(a share\)$"),
        ({"keep": "much"}, r"^it: keep=much: must be a number \(a share\)$"),
        ({"keep": ""}, r"^it: keep=: must be a number"),
        ({"count": "1.5"}, r"^it: count=1.5: must be a whole number"),
        ({"weights": "[1,"}, r"^it: weights=\[1,: must be a list"),
        ({"weights": "[1, \"x\"]"}, r"^it: weights.1=x: must be a number"),
        ({"on": "perhaps"}, r"^it: on=perhaps: must be true or false"),
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

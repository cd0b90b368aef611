"""Whatever the code of a plug-in raises becomes one error that names the plug-in."""

from __future__ import annotations

import re
from typing import Any

import pytest

from hwsim.errors import BlindError, ContractError, PluginError, SettingError
from hwsim.util.calls import call, translated


def fails(error: BaseException) -> Any:
    raise error


def test_arguments_and_answer_pass_through():
    assert call("policy x", divmod, 7, 2) == (3, 1)


@pytest.mark.parametrize("error", [ValueError("no\nway"), SystemExit("no way"), RecursionError("no  way")])
def test_any_error_becomes_one_line_that_names_the_plug_in(error: BaseException):
    with pytest.raises(ContractError) as caught:
        call("policy x", fails, error)
    assert str(caught.value) == f"policy x: raised {type(error).__name__}: no way"
    assert caught.value.__cause__ is error


def test_an_interruption_is_no_error_of_the_plug_in():
    with pytest.raises(KeyboardInterrupt):
        call("policy x", fails, KeyboardInterrupt())


@pytest.mark.parametrize("kind", [SettingError, PluginError, BlindError])
def test_our_own_errors_keep_their_class(kind: type[PluginError]):
    with pytest.raises(kind, match=r"^of its own$") as plain:
        call("policy x", fails, kind("of its own"))
    assert type(plain.value) is kind
    with pytest.raises(kind, match=r"^policy x: of its own$") as named:
        call("policy x", fails, kind("of its own"), named=True)
    assert type(named.value) is kind


def test_other_words_and_another_class():
    with pytest.raises(SettingError) as caught:
        call("eviction y", fails, OSError("gone"), doing="refused:", kind=SettingError, text=lambda _: "briefly")
    assert str(caught.value) == "eviction y: refused: OSError: briefly"
    with pytest.raises(ContractError, match=r"^raised OSError: gone$"):
        call("", fails, OSError("gone"))


def test_the_line_is_the_last_that_is_not_of_the_caller():
    namespace: dict[str, Any] = {"fails": fails}
    exec(compile("def ask():\n    pass\n    fails(KeyError('a'))\n", "/some/where/mine.py", "exec"), namespace)
    try:
        namespace["ask"]()
    except KeyError as error:
        inside = translated(error, "policy x", located=__file__)
        outside = translated(error, "policy x", located="/some/where/mine.py")
        nowhere = translated(error, "policy x")
    assert str(inside) == "policy x: raised KeyError: 'a' (mine.py, line 3)"
    assert re.fullmatch(r"policy x: raised KeyError: 'a' \(test_calls\.py, line \d+\)", str(outside))
    assert str(nowhere) == "policy x: raised KeyError: 'a'"
    assert {type(each) for each in (inside, outside, nowhere)} == {ContractError}

"""Call the code of plug-ins; whatever it raises becomes one error that names the plug-in."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from hwsim.errors import ContractError, HwsimError, one_line

T = TypeVar("T")


def call(
    who: str,
    function: Callable[..., T],
    *arguments: Any,
    doing: str = "raised",
    named: bool = False,
    kind: type[HwsimError] = ContractError,
    text: Callable[[BaseException], str] = one_line,
) -> T:
    """Call a function of a plug-in.

    Args:
        who: the plug-in's name; empty: the error names none.
        function: function of the plug-in.
        arguments: of the function.
        doing: what goes between the plug-in's name and the error's type.
        named: also put the plug-in's name in front of an `HwsimError` of the plug-in; else it passes unchanged.
        kind: class of the error that replaces any other error.
        text: text of such an error.

    Raises:
        HwsimError: that of the plug-in. If the plug-in raised anything else, including `SystemExit`: an error of
            class `kind`, by default `ContractError`.
    """
    try:
        return function(*arguments)
    except (Exception, SystemExit) as error:  # a plug-in must not end the program
        if isinstance(error, HwsimError) and not named:
            raise
        raise translated(error, who, doing=doing, kind=kind, text=text) from error


def translated(
    error: BaseException,
    who: str,
    *,
    doing: str = "raised",
    located: str = "",
    kind: type[HwsimError] = ContractError,
    text: Callable[[BaseException], str] = one_line,
) -> HwsimError:
    """The error to raise in place of one that a plug-in raised.

    For callers that call a plug-in at every token, where `call` itself would take noticeable time.

    Args:
        error: error of the plug-in, while it is handled.
        who: the plug-in's name; empty: the error names none.
        doing: what goes between the plug-in's name and the error's type.
        located: file of the caller; the error names the last line outside this file. Empty: it names no line.
        kind: class of the error that replaces an error that is no `HwsimError`.
        text: text of such an error.
    """
    name = f"{who}: " if who else ""
    if isinstance(error, HwsimError):
        return type(error)(f"{name}{error}")
    at = f" ({_line(error, located)})" if located else ""
    return kind(f"{name}{doing} {type(error).__name__}: {text(error)}{at}")


def _line(error: BaseException, caller: str) -> str:
    """The file and line of the plug-in that raised an error; frames of the file `caller` do not count."""
    frames = traceback.extract_tb(error.__traceback__)
    last = next((frame for frame in reversed(frames) if frame.filename != caller), frames[-1])
    return f"{Path(last.filename).name}, line {last.lineno}"

"""The one place that calls plug-ins: what one raises becomes one line that names it."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from hwsim.errors import ContractError, HwsimError, one_line

R = TypeVar("R")
Who = str | Callable[[], str]
"""Names a plug-in and its method, for messages; a function where that takes time and is seldom needed."""


def call(who: Who, function: Callable[..., R], *arguments: Any, named: Who = "", caller: str = "") -> R:
    """Call a method of a plug-in.

    Args:
        who: what stands before "raised" in the message of an error that hwsim did not foresee.
        function: the method.
        arguments: for it.
        named: what stands before the text of an error of hwsim's own; empty: it stays as it is.
        caller: file of the caller: the message names the file and line of the plug-in, the first below this one.

    Raises:
        ContractError: the method raised something that is no `HwsimError`.
        HwsimError: the method raised one.
    """
    try:
        return function(*arguments)
    except HwsimError as error:
        if not named:
            raise
        raise type(error)(f"{_text(named)}: {error}") from error
    except (Exception, SystemExit) as error:  # a plug-in must not end the program
        place = f" ({_line(error, caller)})" if caller else ""
        raise ContractError(f"{_text(who)} raised {type(error).__name__}: {one_line(error)}{place}") from error


def _text(who: Who) -> str:
    return who if isinstance(who, str) else who()


def _line(error: BaseException, caller: str) -> str:
    """File and line at which an error was raised, below the call."""
    frames = traceback.extract_tb(error.__traceback__)
    last = next((frame for frame in reversed(frames) if frame.filename not in (caller, __file__)), frames[-1])
    return f"{Path(last.filename).name}, line {last.lineno}"

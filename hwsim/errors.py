"""Every error that a user can cause, as one tree.

HwsimError
├── UnitError        a quantity without its unit, or with a wrong one
├── ModelError       a model that is unknown, cannot be loaded, or has a shape that hwsim does not support
├── TraceError       a trace file that is missing, foreign, damaged, or lacks what is asked of it
├── ProfileError     a hardware profile that is missing or wrong
├── PluginError      a policy or eviction that cannot be found or loaded
│   ├── ContractError    a plug-in that broke the contract while it ran
│   └── BlindError       a policy reads a cache that its masks go through only later
├── SettingError     a parameter or setting that is unknown or out of bounds
└── OutputError      a result that could not be written

The message is one line: file, field, value, rule, way out. The command line prints it and exits with code 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HwsimError(Exception):
    """Base of all errors that a user can cause; its text is one line."""


class UnitError(HwsimError):
    """A quantity without its unit, or with a unit of another kind."""


class ModelError(HwsimError):
    """A model that is unknown, cannot be loaded, or has a shape that is not supported."""


class TraceError(HwsimError):
    """A trace file that is missing, foreign, damaged, or lacks what is asked of it."""


class ProfileError(HwsimError):
    """A hardware profile that is missing or wrong."""


class PluginError(HwsimError):
    """A policy or an eviction that cannot be found or loaded."""


class ContractError(PluginError):
    """A plug-in that broke the contract while it ran."""


class BlindError(PluginError):
    """A policy reads the cache where masks go through it only after all of them are decided."""


class SettingError(HwsimError):
    """A parameter or a setting that is unknown or out of bounds."""


class OutputError(HwsimError):
    """A file that could not be written."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'dip-ca'? Known: dense, dip, dip-ca"``: the nearest name and all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"{hint} Known: {', '.join(names)}" if names else hint


def one_line(error: BaseException) -> str:
    """The text of any exception on one line, for wrapping errors of other libraries."""
    text = " ".join(str(error).split())
    return text or type(error).__name__

"""Declaration of an option, beside its field; the command line and everything else that names options reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel

RUNS = ("replay", "eval", "generate", "sweep")
"""The commands that take every option of a run, unless its declaration says otherwise."""


@dataclass(frozen=True)
class Option:
    """Help, type and commands of an option.

    Attributes:
        help: what it does, in a sentence or two.
        given: type that a user gives on the command line: str, int, bool or Path; or a tuple of words of which one must
            be given.
        read: function that turns the given value into the option's value; None: they are the same. A value that has
            its final type already is not read.
        commands: commands that take it.
        least: smallest whole number; None: it is no number.
        most: largest whole number; None: no bound.
        unit: of the number, such as tokens.
        rule: what the value must be, for messages; None: it follows from the other fields.
        metavar: placeholder for the value in the help.
        text: the default as a user would write it, if that is not the value itself.
        shown: description of the default in the help, if the value itself says too little.
        flag: spelling on the command line; None: that of the field.
        panel: heading of the help under which it is listed.
        python: types that the Python interface takes besides `given`.
    """

    help: str
    given: type | tuple[str, ...] = str
    read: Callable[[Any], Any] | None = None
    commands: tuple[str, ...] = RUNS
    least: int | None = None
    most: int | None = None
    unit: str = ""
    rule: str | None = None
    metavar: str | None = None
    text: str | None = None
    shown: str | None = None
    flag: str | None = None
    panel: str | None = None
    python: str | None = None


@dataclass(frozen=True)
class Declared:
    """An option with its field.

    Attributes:
        name: of the field.
        option: its declaration.
        default: value if nothing is given.
        optional: whether None is a value.
    """

    name: str
    option: Option
    default: Any
    optional: bool

    @property
    def flag(self) -> str:
        """The option's spelling on the command line."""
        return self.option.flag or "--" + self.name.replace("_", "-")

    @property
    def rule(self) -> str:
        """What the option's value must be, for messages."""
        option = self.option
        if option.rule is not None:
            return option.rule
        if isinstance(option.given, tuple):
            rule = f"one of {', '.join(option.given)}"
        elif option.least is not None:
            rule = f"a whole number from {option.least}" + (f" to {option.most}" if option.most else "")
        else:
            rule = {bool: "True or False", int: "a whole number"}.get(option.given, "text")
            rule = " or ".join([rule, *(part for part in (option.python or "").split(" | ") if part)])
        return f"{rule}, or None" if self.optional else rule

    @property
    def plain_default(self) -> Any:
        """The default as a user would give it."""
        return self.default if self.option.text is None else self.option.text

    @property
    def python_type(self) -> str:
        """The types that the Python interface takes, as an annotation."""
        option = self.option
        given = "str" if isinstance(option.given, tuple) else option.given.__name__
        types = {"Path": ["str", "Path"], "dict": []}.get(given, [given])
        types += [part for part in (option.python or "").split(" | ") if part and part not in types]
        return " | ".join([*types, "None"] if self.optional else types)

    def value(self, given: Any) -> Any:
        """The option's value for a given one.

        Raises:
            ValueError: the given value breaks the rule.
            HwsimError: raised by `Option.read`.
        """
        option = self.option
        if given is None and self.optional:
            return None
        if isinstance(option.given, tuple) and given not in option.given:
            raise ValueError(self.rule)
        if option.least is not None and option.read is None and not is_whole(given, option.least, option.most):
            raise ValueError(self.rule)
        if option.given is bool and not isinstance(given, bool):
            raise ValueError(self.rule)
        return given if option.read is None else option.read(given)


def declared(model: type[BaseModel]) -> dict[str, Declared]:
    """The options that a model declares, by the names of their fields."""
    options = {}
    for name, field in model.model_fields.items():
        option = next((entry for entry in field.metadata if isinstance(entry, Option)), None)
        if option is not None:
            optional = type(None) in get_args(field.annotation)
            options[name] = Declared(name, option, field.get_default(call_default_factory=True), optional)
    return options


def is_whole(value: object, least: int, most: int | None = None) -> bool:
    """Whether `value` is a whole number of at least `least`, and at most `most`, if there is a bound."""
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
    return whole and (most is None or value <= most)  # type: ignore[operator]

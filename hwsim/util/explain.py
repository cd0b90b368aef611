"""Translate an error of pydantic into hwsim's words: one problem, with field, rule and value."""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic import ValidationError

from hwsim.util.units import shorten

_RULES = {
    "missing": "is missing",
    "extra_forbidden": "is not a known key",
    "invalid_key": "is not a known key",
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be below {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "finite_number": "must be a finite number",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "too_short": "must have at least {min_length}, has {actual_length}",
    "too_long": "must have at most {max_length}, has {actual_length}",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be a section of fields",
    "model_type": "must be a section of fields",
    "model_attributes_type": "must be a section of fields",
}
_UNKNOWN = ("extra_forbidden", "invalid_key")


class Problem(NamedTuple):
    """One invalid field.

    Attributes:
        loc: keys that lead to the field; empty if the whole is invalid.
        rule: the rule that it breaks.
        kind: pydantic's name of the rule.
        value: the given value.
    """

    loc: tuple[str | int, ...]
    rule: str
    kind: str
    value: Any

    @property
    def field(self) -> str:
        """The keys of the field, joined by dots."""
        return " ".join(".".join(str(part) for part in self.loc).split())

    @property
    def unknown(self) -> bool:
        """Whether the field is an unknown key."""
        return self.kind in _UNKNOWN

    @property
    def got(self) -> str:
        """`` (got VALUE)``; empty if there is no value, or the rule names it."""
        named = self.kind in ("missing", "value_error", "too_short", "too_long") or self.unknown
        return "" if named else f" (got {shorten(repr(self.value))})"

    @property
    def text(self) -> str:
        """Field, rule and value."""
        joint = " " if self.kind == "missing" or self.unknown else ": "
        return f"{self.field}{joint if self.field else ''}{self.rule}{self.got}"


def problem(error: ValidationError) -> Problem:
    """The first problem; unknown keys come first, since a misspelt key also makes the right one missing."""
    errors = error.errors(include_url=False)
    first = next((entry for entry in errors if entry["type"] in _UNKNOWN), errors[0])
    template = _RULES.get(first["type"])
    text = template.format(**first.get("ctx", {})) if template else first["msg"].removeprefix("Value error, ")
    return Problem(tuple(first["loc"]), " ".join(text.split()), first["type"], first["input"])

"""Common parts of the checks of policies and eviction rules: a contract is a list of rules, checked in order."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from hwsim.errors import ContractError, HwsimError
from hwsim.simulation.run import check_parameters
from hwsim.util.calls import call
from hwsim.util.explain import problem

T = TypeVar("T", bound=BaseModel)
_SIGNS = ("ge", "gt", "le", "lt")
_STEP = 1e-3  # distance of a tested value from an open bound, as a share of the range


class BrokenRuleError(ContractError):
    """The first rule that a plug-in breaks.

    Attributes:
        kept: the rules before it, which hold, in words.
        rule: the broken rule, in words.
        unchecked: the rules after it, which were not checked, in words.
    """

    def __init__(self, error: HwsimError, kept: list[str], rule: str, unchecked: list[str]) -> None:
        super().__init__(str(error))
        self.kept, self.rule, self.unchecked = kept, rule, unchecked


Check = Callable[[], str | None]
"""Raises a `HwsimError` if its rule is broken; returns a text instead of the rule's if the rule does not apply."""

MADE = "it has a summary, a default for every parameter, and parameters that JSON can hold"


def make(plugin: type[T] | T, base: type[T], rules: Iterable[str]) -> T:
    """Return the instance to check; making it is the first rule of every contract.

    Raises:
        BrokenRuleError: the class is no plug-in of this kind, has no summary, or cannot be made with its defaults.
    """
    try:
        return _made(plugin, base)
    except HwsimError as error:
        raise BrokenRuleError(error, [], MADE, list(rules)) from error


def check_rules(rules: Sequence[tuple[str, Check]]) -> list[str]:
    """Check the rules in order, after the rule of `make`.

    Args:
        rules: each rule in words, and its check.

    Returns:
        All rules, in words.

    Raises:
        BrokenRuleError: a rule is broken; it names the first.
    """
    kept = [MADE]
    for number, (text, check) in enumerate(rules, 1):
        try:
            kept.append(check() or text)
        except HwsimError as error:
            raise BrokenRuleError(error, kept, text, [other for other, _ in rules[number:]]) from error
    return kept


def _made(plugin: type[T] | T, base: type[T]) -> T:
    kind = plugin if isinstance(plugin, type) else type(plugin)
    if not issubclass(kind, base):
        raise ContractError(f"{kind.__name__} is no subclass of {base.__module__}.{base.__name__}")
    if not (kind.__doc__ or "").strip() or kind.__doc__ == base.__doc__:
        listed = "policies" if base.__name__ == "Policy" else "evictions"
        raise ContractError(f"{kind.__name__} has no docstring; its first line is what `hwsim list {listed}` prints")
    doing = "cannot be made with its defaults:"
    instance = call(kind.__name__, _with_defaults, kind, doing=doing) if isinstance(plugin, type) else plugin
    check_parameters(instance, kind.__name__)
    return instance


def _with_defaults(kind: type[T]) -> T:
    try:
        return kind()
    except ValidationError as error:
        explanation = problem(error)
        text = f"{explanation.field}: has none" if explanation.kind == "missing" else explanation.text
        raise ContractError(f"{kind.__name__}: every parameter needs a default: {text}") from error


def _unless_refused(kind: type[T], values: dict[str, Any]) -> T | None:
    """An instance with these parameters; None if the class refuses them."""
    try:
        return kind(**values)
    except (ValidationError, HwsimError):
        return None


def at_the_ends(plugin: T, run: Callable[[T], object]) -> str | None:
    """Run the plug-in with each parameter at each end of its bounds and at each choice, the others unchanged.

    A plug-in may refuse a value with a `PluginError` that gives the reason, or when it is made.

    Returns:
        A text if no parameter has bounds; otherwise None.

    Raises:
        ContractError: the plug-in breaks the contract with such a value.
    """
    kind, tries = type(plugin), 0
    for name, value in _ends(kind):
        tries += 1
        try:
            variant = call("", _unless_refused, kind, dict(plugin) | {name: value})
            if variant is not None:
                run(variant)
        except ContractError as error:
            raise ContractError(f"{kind.__name__} with {name}={value}: {error}; {_WAY_OUT}") from error
        except HwsimError:
            continue
    return None if tries else "none of its parameters has bounds, so there are no ends to try"


_WAY_OUT = "narrow the field's bounds, or refuse the value with hwsim.policy.PluginError and the reason"


def _ends(kind: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    """Yield each parameter with each end of its bounds (just inside an open bound), and with each of its choices."""
    for field_name, field in kind.model_fields.items():
        types_ = _types(field)
        if bool in types_:
            yield from ((field_name, choice) for choice in (False, True))
        choices = [
            choice for annotation in types_ if get_origin(annotation) is Literal for choice in get_args(annotation)
        ]
        yield from ((field_name, choice) for choice in choices)
        bounds = {name: getattr(rule, name) for rule in field.metadata for name in _SIGNS if hasattr(rule, name)}
        yield from ((field_name, value) for value in _numbers(bounds, whole=int in types_ and float not in types_))


def _types(field: FieldInfo) -> tuple[Any, ...]:
    """The types of a field; several if its annotation is a union."""
    union = get_origin(field.annotation) in (types.UnionType, Union)
    return get_args(field.annotation) if union else (field.annotation,)


def _numbers(bounds: dict[str, Any], *, whole: bool) -> list[float]:
    """The lowest and the highest number that the bounds allow; slightly inside an open bound."""
    numbers = {sign: value for sign, value in bounds.items() if isinstance(value, int | float)}
    step = 1.0
    if not whole:
        step = _STEP * (max(numbers.values()) - min(numbers.values()) or 1.0) if numbers else 0.0
    inside = {"ge": 0.0, "gt": step, "le": 0.0, "lt": -step}
    return [type(value)(value + inside[sign]) if whole else value + inside[sign] for sign, value in numbers.items()]

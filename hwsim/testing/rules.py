"""What the checks of policies and of eviction rules share: a contract as a list of rules, checked in order."""

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
_STEP = 1e-3  # how far inside an open bound a value is tried, as a share of the range


class BrokenRuleError(ContractError):
    """The first rule that a plug-in breaks.

    Attributes:
        kept: the rules that were checked before it, in words.
        rule: the broken one, in words.
        unchecked: those that were not reached.
    """

    def __init__(self, error: HwsimError, kept: list[str], rule: str, unchecked: list[str]) -> None:
        super().__init__(str(error))
        self.kept, self.rule, self.unchecked = kept, rule, unchecked


Check = Callable[[], str | None]
"""Raises a `HwsimError` if its rule is broken; returns other words if what the rule asks for is not there."""

MADE = "it has a summary, a default for every parameter, and parameters that JSON can hold"


def make(plugin: type[T] | T, base: type[T], rules: Iterable[str]) -> T:
    """The instance to check; the first rule of every contract is that there is one.

    Raises:
        BrokenRuleError: it is no plug-in of this kind, has no summary, or cannot be made with its defaults.
    """
    try:
        return _made(plugin, base)
    except HwsimError as error:
        raise BrokenRuleError(error, [], MADE, list(rules)) from error


def check_rules(rules: Sequence[tuple[str, Check]]) -> list[str]:
    """Check the rules in order, after that of `make`.

    Args:
        rules: each in words, and its check.

    Returns:
        All rules, in words.

    Raises:
        BrokenRuleError: the first one that does not hold.
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
        raise ContractError(f"{kind.__name__} has no docstring; its first line is what `hwsim {listed}` prints")
    doing = "cannot be made with its defaults:"
    made = call(kind.__name__, _with_defaults, kind, doing=doing) if isinstance(plugin, type) else plugin
    check_parameters(made, kind.__name__)
    return made


def _with_defaults(kind: type[T]) -> T:
    try:
        return kind()
    except ValidationError as error:
        found = problem(error)
        text = f"{found.field}: has none" if found.kind == "missing" else found.text
        raise ContractError(f"{kind.__name__}: every parameter needs a default: {text}") from error


def _unless_refused(kind: type[T], values: dict[str, Any]) -> T | None:
    """An instance with these parameters; None: it refuses them."""
    try:
        return kind(**values)
    except (ValidationError, HwsimError):
        return None


def at_the_ends(plugin: T, run: Callable[[T], object]) -> str | None:
    """Run the plug-in with each parameter at each end of its bounds, and at each choice, the others as they are.

    It may refuse a value with a `PluginError` that gives the reason, or while it is made.

    Raises:
        ContractError: it breaks the contract there.
    """
    kind, tried = type(plugin), 0
    for name, value in _ends(kind):
        tried += 1
        try:
            made = call("", _unless_refused, kind, dict(plugin) | {name: value})
            if made is not None:
                run(made)
        except ContractError as error:
            raise ContractError(f"{kind.__name__} with {name}={value}: {error}; {_WAY_OUT}") from error
        except HwsimError:
            continue
    return None if tried else "none of its parameters has bounds, so there are no ends to try"


_WAY_OUT = "narrow the field's bounds, or refuse the value with hwsim.policy.PluginError and the reason"


def _ends(kind: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    """Each parameter with each value at an end of its bounds, or just inside an open one, and each of its choices."""
    for field_name, field in kind.model_fields.items():
        types_ = _types(field)
        if bool in types_:
            yield from ((field_name, choice) for choice in (False, True))
        choices = [choice for each in types_ if get_origin(each) is Literal for choice in get_args(each)]
        yield from ((field_name, choice) for choice in choices)
        bounds = {name: getattr(rule, name) for rule in field.metadata for name in _SIGNS if hasattr(rule, name)}
        yield from ((field_name, value) for value in _numbers(bounds, whole=int in types_ and float not in types_))


def _types(field: FieldInfo) -> tuple[Any, ...]:
    """The field's type, or those that a union allows."""
    union = get_origin(field.annotation) in (types.UnionType, Union)
    return get_args(field.annotation) if union else (field.annotation,)


def _numbers(bounds: dict[str, Any], *, whole: bool) -> list[float]:
    """The lowest and the highest number that the bounds allow; of an open bound a bit inside."""
    numbers = {sign: value for sign, value in bounds.items() if isinstance(value, int | float)}
    step = 1.0
    if not whole:
        step = _STEP * (max(numbers.values()) - min(numbers.values()) or 1.0) if numbers else 0.0
    inside = {"ge": 0.0, "gt": step, "le": 0.0, "lt": -step}
    return [type(value)(value + inside[sign]) if whole else value + inside[sign] for sign, value in numbers.items()]

"""Commands that take an object of options: its fields are the options, so no function has dozens of parameters.

A command's options are the fields of a frozen dataclass, annotated as parameters are::

    @dataclass(frozen=True, kw_only=True)
    class DrawOptions:
        tokens: Annotated[int, typer.Option(help="Tokens to draw.")] = 512
        cache: CacheOptions  # the fields of another dataclass, at this place

    def draw(options: DrawOptions) -> None: ...

`declared` gives typer one parameter for each field, and calls the command with the object. The names of all fields of a
command are names of its options, so they must differ; how deep a field lies makes no difference to the command line.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from inspect import Parameter
from typing import Annotated, Any, get_args, get_origin, get_type_hints

_Build = Callable[[dict[str, Any]], Any]
"""Makes the value of one parameter from the values of all options."""


@dataclass(frozen=True)
class Derived:
    """Marks a field whose options are computed: ``run: Annotated[Run, Derived(parameters, build)]``.

    Attributes:
        parameters: returns the options at this place for the name of a command, such as ``train lora``; their
            annotations are those of typer, ``Annotated[int, typer.Option(...)]``.
        build: makes the field's value from the values of these options by name. A `HwsimError` that it raises is
            reported as an error of the command.
    """

    parameters: Callable[[str], list[Parameter]]
    build: Callable[[dict[str, Any]], Any]


def declared(command: Callable[..., None], name: str) -> Callable[..., None]:
    """Wrap a command for typer, with a parameter for each field of its objects of options.

    Args:
        command: function whose parameters are dataclasses of options, single options, or types of typer such as its
            context.
        name: name of the command, for options that are computed.

    Raises:
        TypeError: two options have one name, or a field cannot be an option.
    """
    hints = get_type_hints(command, include_extras=True)
    parameters: list[Parameter] = []
    builds = {
        parameter.name: _declare(parameter.replace(annotation=hints[parameter.name]), name, parameters)
        for parameter in inspect.signature(command).parameters.values()
    }
    names = [parameter.name for parameter in parameters]
    if twice := {option_name for option_name in names if names.count(option_name) > 1}:
        raise TypeError(f"hwsim {name}: two options are called {', '.join(sorted(twice))}")

    @functools.wraps(command)
    def run(**values: Any) -> None:
        command(**{key: build(values) for key, build in builds.items()})

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _declare(parameter: Parameter, command: str, parameters: list[Parameter]) -> _Build:
    """Add the options of one parameter or field, and return the function that makes its value."""
    annotation = parameter.annotation
    for mark in get_args(annotation)[1:] if get_origin(annotation) is Annotated else ():
        if isinstance(mark, Derived):
            own = [option.replace(kind=Parameter.KEYWORD_ONLY) for option in mark.parameters(command)]
            parameters += own
            return functools.partial(_build, mark.build, [option.name for option in own])
    if is_dataclass(annotation):
        return _declare_fields(annotation, command, parameters)
    parameters.append(parameter.replace(kind=Parameter.KEYWORD_ONLY))
    return lambda values: values[parameter.name]


def _declare_fields(kind: Any, command: str, parameters: list[Parameter]) -> _Build:
    """Add the options of a dataclass, and return the function that makes an instance."""
    hints = get_type_hints(kind, include_extras=True)
    builds: dict[str, _Build] = {}
    for field in fields(kind):
        if field.default_factory is not MISSING or not field.init:
            raise TypeError(f"hwsim {command}: {kind.__name__}.{field.name} must have a plain default, or none")
        default = Parameter.empty if field.default is MISSING else field.default
        parameter = Parameter(field.name, Parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name])
        builds[field.name] = _declare(parameter, command, parameters)
    return lambda values: kind(**{key: build(values) for key, build in builds.items()})


def _build(build: _Build, names: list[str], values: dict[str, Any]) -> Any:
    return build({name: values[name] for name in names})


def flat(options: Any) -> dict[str, Any]:
    """The values of an object of options by name, including those of dataclasses in it."""
    hints = get_type_hints(type(options), include_extras=True)
    values: dict[str, Any] = {}
    for field in fields(options):
        value = getattr(options, field.name)
        values |= flat(value) if is_dataclass(hints[field.name]) else {field.name: value}
    return values

"""What pydantic found wrong, in hwsim's words."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from hwsim.util.explain import problem


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: Annotated[str, Field(min_length=2, max_length=3)] = "ab"


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    right: int
    above: Annotated[float, Field(gt=0, lt=10)] = 1
    least: Annotated[float, Field(ge=0.5, le=2, allow_inf_nan=False)] = 1
    some: Annotated[list[int], Field(min_length=1, max_length=2)] = [1]
    which: Literal["a", "b"] = "a"
    on: bool = True
    inner: Inner = Inner()
    own: int = 1

    @field_validator("own")
    @classmethod
    def _own(cls, value: int) -> int:
        if value == 13:
            raise ValueError("13 is unlucky")
        return value


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({}, "right is missing"),
        ({"rihgt": 1}, "rihgt is not a known key"),  # not: right is missing
        ({"right": 1.5}, "right: must be a whole number (got 1.5)"),
        ({"right": "x"}, "right: must be a whole number (got 'x')"),
        ({"right": 1, "above": 0}, "above: must be above 0 (got 0)"),
        ({"right": 1, "above": 10}, "above: must be below 10 (got 10)"),
        ({"right": 1, "least": 0.25}, "least: must be at least 0.5 (got 0.25)"),
        ({"right": 1, "least": 3}, "least: must be at most 2 (got 3)"),
        ({"right": 1, "least": float("nan")}, "least: must be a finite number (got nan)"),
        ({"right": 1, "above": []}, "above: must be a number (got [])"),
        ({"right": 1, "some": []}, "some: must have at least 1, has 0"),
        ({"right": 1, "some": [1, 2, 3]}, "some: must have at most 2, has 3"),
        ({"right": 1, "some": [1, "x"]}, "some.1: must be a whole number (got 'x')"),
        ({"right": 1, "some": 1}, "some: must be a list (got 1)"),
        ({"right": 1, "which": "c"}, "which: must be 'a' or 'b' (got 'c')"),
        ({"right": 1, "on": "perhaps"}, "on: must be true or false (got 'perhaps')"),
        ({"right": 1, "inner": 3}, "inner: must be a section of fields (got 3)"),
        ({"right": 1, "inner": {"name": 3}}, "inner.name: must be text (got 3)"),
        ({"right": 1, "inner": {"name": "a"}}, "inner.name: must have at least 2 characters (got 'a')"),
        ({"right": 1, "inner": {"name": "a" * 80}}, f"inner.name: must have at most 3 characters (got '{'a' * 56}...)"),
        ({"right": 1, "inner": {"mane": "ab"}}, "inner.mane is not a known key"),
        ({"right": 1, "own": 13}, "own: 13 is unlucky"),
        ({"right": 1, "two\nlines": 13}, "two lines is not a known key"),
    ],
)
def test_the_first_problem(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(values)
    assert problem(caught.value).text == text
